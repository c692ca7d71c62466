"""What a crossing costs and what an operation left in PyTorch costs: docs/partition.md says where the defaults come from.

The unit is one small operation left in PyTorch. Every price is rounded to 1/64 of it (`GRAIN`): nothing finer means anything, and sums are
exact, so that "costs the same" is a fact and not a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from ...errors import ConversionError
from .problem import Problem, Step

GRAIN = 64


@dataclass(frozen=True)
class Prices:
    """`crossing`: a value entering or leaving a package, `per_byte` of it; `operation`: one left in PyTorch, `per_flop` of it."""

    crossing: float = 1.0
    per_byte: float = 1 / 400_000
    operation: float = 1.0
    per_flop: float = 1 / 100_000

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConversionError(f"the price `{entry.name}` is {value}; give a number from 0")
        if grains(self.crossing) == 0:
            raise ConversionError(f"the price `crossing` is {self.crossing}; give at least 1/{GRAIN}, or every operation becomes a package")

    def work(self, flops: int, moves: bool) -> float:
        """The price of leaving one operation in PyTorch; what only moves data has none, since it costs on either side."""
        return 0.0 if moves else grains(self.operation + self.per_flop * flops) / GRAIN

    def seam(self, size: int) -> float:
        """The price of one value of `size` bytes entering or leaving one package."""
        return grains(self.crossing + self.per_byte * size) / GRAIN


@dataclass(frozen=True)
class Cost:
    """`total` = the price of all crossings + the work of allowed operations in PyTorch."""

    total: float
    crossings: int
    packages: int
    pytorch_steps: int


def grains(price: float) -> int:
    """A price in 1/64, rounded to the nearest."""
    return round(price * GRAIN)


def crossing_values(problem: Problem, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What enters a package of these operations, and what leaves it; each value once, in the problem's order."""
    inside = set(names)
    entering, leaving = dict[str, None](), set(inside & set(problem.outputs))
    for operation in problem.operations:
        if operation.name in inside:
            entering.update((value, None) for value in operation.inputs if value not in inside)
        else:
            leaving.update(value for value in operation.inputs if value in inside)
    return list(entering), [operation.name for operation in problem.operations if operation.name in leaving]


def cost(problem: Problem, steps: Sequence[Step], prices: Prices) -> Cost:
    """What these steps cost. The one definition: the search minimises this, and the answer is priced with it."""
    sizes: Mapping[str, int] = problem.sizes
    packaged = [step for step in steps if step.kind == "package"]
    inside = {name for step in packaged for name in step.operations}
    total = sum(grains(operation.work) for operation in problem.operations if operation.allowed and operation.name not in inside)
    crossings = 0
    for step in packaged:
        entering, leaving = crossing_values(problem, step.operations)
        crossings += len(entering) + len(leaving)
        total += sum(grains(prices.crossing + prices.per_byte * sizes.get(value, 0)) for value in entering + leaving)
    return Cost(total / GRAIN, crossings, len(packaged), len(steps) - len(packaged))
