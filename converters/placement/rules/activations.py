"""D12 and D15: activations from tables, NaN that disappears, exponentials that overflow."""

from __future__ import annotations

from collections.abc import Iterator

from ..bounds import interval_of
from ..chips import Chip
from ..registry import Found, rule
from ..view import OperationView

EXP_LIMIT = {"exp": 11.09, "exp2": 16.0}  # D15: ln 65504, and its logarithm to the base 2
TABLE_ERRORS: dict[str, float | None] = {"gelu": 0.0059, "erf": None, "tanh": 0.0017, "sigmoid": 0.0034}  # D12, absolute
_D12 = "coreml_ane.md D12 (ane-guide, ANEForge)"


@rule("D12-table", "An activation from a table", "note", source=_D12, confidence="M", types=tuple(TABLE_ERRORS))
def table(operation: OperationView, chip: Chip) -> Iterator[Found]:
    error = TABLE_ERRORS[operation.type]
    size = "an error that is not stated" if error is None else f"an absolute error up to {error}"
    yield Found(f"{operation.type} is looked up in a table, with {size}", "none is needed where goldens and the device's own check pass")


@rule("D12-nan", "A test for NaN behind which NaN may be gone", "hazard", source=_D12, confidence="M", types=("equal", "not_equal"))
def swallowed(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """A value compared with itself: relu makes infinity of NaN and tanh 1, so that the comparison sees nothing."""
    x, y = operation.input("x"), operation.input("y")
    if x is not None and y is not None and x.name is not None and x.name == y.name:
        yield Found(f"{x.name} is compared with itself, and NaN does not survive activations there", "look for NaN on the host")


@rule(
    "D15-exp",
    "A bare exponential",
    "hazard",
    source="coreml_ane.md D15: exp overflows at 11.09",
    confidence="H",
    types=tuple(EXP_LIMIT),
)
def exponential(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Not where its argument has a bound: a clip, a minimum, a value less its own maximum, or what an execution gave."""
    limit = EXP_LIMIT[operation.type]
    x = operation.input("x")
    seen = None if x is None else operation.function.range_of(x)
    high = interval_of(x, operation.function.intervals).high
    if high <= limit:
        return
    if seen is not None:
        yield Found(f"its argument reaches {seen.high:.1f} in an execution; above {limit} it overflows", f"clamp it below {limit}")
    else:
        yield Found(f"nothing bounds its argument; above {limit} it overflows ({operation})", f"clamp the argument below {limit}")
