"""The rules: one small function each, registered with what it is about, where it comes from and how sure it is.

A rule looks at one operation (or, with `scope="function"`, at a function) and a chip, and yields what it finds. An id that is
registered twice, an unknown severity or chip, and a rule without a source are errors at import. Severities:

- `off-ane`: the operation does not run on the Neural Engine; where the finding is not proven, it may not
- `slow`: it runs there and costs more than it has to
- `hazard`: it runs there and may give wrong numbers
- `note`: worth knowing, with nothing to be done about it
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .chips import CHIPS, Chip

if TYPE_CHECKING:
    from .view import FunctionView, OperationView

SEVERITIES = ("off-ane", "hazard", "slow", "note")
CONFIDENCES = ("H", "M", "L")
UNITS = ("ane", "gpu", "cpu")


@dataclass(frozen=True)
class Found:
    """What a rule saw: one sentence with the shape, and the remedy. Not `proven`: no source says it of this case."""

    what: str
    remedy: str
    proven: bool = True


@dataclass(frozen=True)
class Finding:
    """A rule's verdict on an operation."""

    rule: str
    severity: str
    proven: bool
    what: str
    remedy: str

    @property
    def blocks(self) -> bool:
        """Whether it keeps its operation off the Neural Engine."""
        return self.severity == "off-ane" and self.proven


Check = Callable[..., Iterable[Found]]
CheckFunction = TypeVar("CheckFunction", bound=Check)


@dataclass(frozen=True)
class Rule:
    """`types`: the operations it looks at, empty for all. `unit`: where a blocked operation is taken to run instead.

    `needs`: "shapes", or "ranges" for what can only be decided with the values of an execution.
    """

    id: str
    title: str
    severity: str
    source: str
    confidence: str
    chips: tuple[str, ...]
    types: frozenset[str]
    unit: str
    needs: str
    scope: str
    check: Check

    def findings(self, subject: OperationView | FunctionView, chip: Chip) -> Iterator[Finding]:
        """Nothing where the rule is not about this chip or operation."""
        if chip.name not in self.chips or (self.types and getattr(subject, "type", None) not in self.types):
            return
        for found in self.check(subject, chip):
            yield Finding(self.id, self.severity, found.proven, found.what, found.remedy)


RULES: dict[str, Rule] = {}


def rule(
    identity: str,
    title: str,
    severity: str,
    *,
    source: str,
    confidence: str,
    chips: Collection[str] = tuple(CHIPS),
    types: Collection[str] = (),
    unit: str = "gpu",
    needs: str = "shapes",
    scope: str = "operation",
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a rule. Raises TypeError for an id that is taken and for anything not in the lists above."""

    def register(check: CheckFunction) -> CheckFunction:
        add(Rule(identity, title, severity, source, confidence, tuple(chips), frozenset(types), unit, needs, scope, check))
        return check

    return register


def add(made: Rule, rules: dict[str, Rule] = RULES) -> None:
    """Raises TypeError for a rule that cannot be."""
    allowed: dict[str, tuple[Any, Collection[str]]] = {
        "severity": (made.severity, SEVERITIES),
        "confidence": (made.confidence, CONFIDENCES),
        "unit": (made.unit, UNITS[1:]),
        "needs": (made.needs, ("shapes", "ranges")),
        "scope": (made.scope, ("operation", "function")),
        **{f"chip {name}": (name, CHIPS) for name in made.chips},
    }
    if made.id in rules:
        raise TypeError(f"the rule {made.id} is registered twice")
    for what, (value, choices) in allowed.items():
        if value not in choices:
            raise TypeError(f"rule {made.id}: there is no {what} {value!r}; choose {', '.join(choices)}")
    if not (made.id and made.title and made.source and made.chips):
        raise TypeError(f"rule {made.id}: an id, a title, a source and a chip are needed")
    rules[made.id] = made
