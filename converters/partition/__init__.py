"""Which operation goes into which package: the cheapest cut of an operation graph into packages and PyTorch steps.

`problem` is what goes in and comes out, `prices` what things cost; docs/partition.md says how it works and where the prices come from.
"""

from .prices import Cost, Prices, cost, crossing_values
from .problem import ISLAND, Assignment, Operation, Problem, Step
from .solving import solve

__all__ = ["ISLAND", "Assignment", "Cost", "Operation", "Prices", "Problem", "Step", "cost", "crossing_values", "solve"]
