"""What is asked and what is answered: a graph of operations, and the steps it is cut into. Plain data, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...errors import ConversionError

ISLAND = "island"


@dataclass(frozen=True)
class Operation:
    """One operation; its value carries its name.

    `inputs` are names of operations or of graph inputs. `allowed`: it may go into a package. `work`: the price of leaving it in
    PyTorch, 0 for what only moves data. `tied`: it stays in the step of its producer, as what takes one of several results must.
    """

    name: str
    inputs: tuple[str, ...]
    allowed: bool
    work: float
    tied: bool = False


@dataclass(frozen=True)
class Problem:
    """Operations in an order in which they can run. `sizes`: bytes by value, for the price per byte; a value without one has none.

    Raises ConversionError where names repeat or are unknown, the order is none, or a price is no number from 0.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = set(self.inputs)
        if len(known) < len(self.inputs):
            raise ConversionError("a graph to be partitioned names an input twice; give each input one name")
        made = set()
        for operation in self.operations:
            name = operation.name
            if name in known:
                raise ConversionError(f"a graph to be partitioned names {name} twice; give each operation a name of its own")
            if missing := [value for value in operation.inputs if value not in known]:
                raise ConversionError(f"{name} reads {missing[0]}, which nothing before it makes; list operations in the order they run")
            if not (math.isfinite(operation.work) and operation.work >= 0):
                raise ConversionError(f"{name} has {operation.work} as the price of its work; give a number from 0")
            if operation.tied and len(set(operation.inputs) & made) != 1:
                raise ConversionError(f"{name} is tied to its producer, but does not read exactly one operation; leave `tied` out")
            known.add(name)
            made.add(name)
        if missing := [value for value in self.outputs if value not in known]:
            raise ConversionError(f"a graph to be partitioned gives out {missing[0]}, which nothing makes; name a value that it has")


@dataclass(frozen=True)
class Step:
    """Operations that run together, in the order of the problem: one package, or one stretch of PyTorch."""

    kind: Literal["package", "pytorch"]
    operations: tuple[str, ...]


@dataclass(frozen=True)
class Assignment:
    """Steps in the order they run.

    `crossings`: values that enter or leave packages, counted once a package. `left`: allowed operations that stay in PyTorch with
    the rule ("island"); `reasons`: a sentence for each. `proved`: nothing costs less, and nothing that costs as much has fewer packages
    or fewer PyTorch steps. `bound`: nothing costs less than this, proved or not.
    """

    steps: tuple[Step, ...]
    cost: float
    packages: int
    crossings: int
    left: dict[str, str]
    reasons: dict[str, str]
    proved: bool
    bound: float

    def packages_of(self) -> list[Step]:
        return [step for step in self.steps if step.kind == "package"]
