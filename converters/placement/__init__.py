"""The placement linter: which operations of a package the Neural Engine of a chip can take, by rule, before any Mac sees it.

A static view of a function (view.py) is put to every registered rule (registry.py, rules/), with the facts of a chip as data
(chips.py). assess.py collects what they find, cost.py predicts times, labelled as a model. What is stated nowhere is reported
as unproven and never dropped. Rules come from published measurements and never from this project's packages; nothing here
has been compared with a Mac by this project (not yet run on a Mac).
"""

from .assess import Assessment, Placed, assess, assess_package
from .chips import CHIPS, Chip, Fact, find_chip
from .registry import RULES, Finding, Rule
from .view import Range

__all__ = ["CHIPS", "RULES", "Assessment", "Chip", "Fact", "Finding", "Placed", "Range", "Rule", "assess", "assess_package", "find_chip"]
