"""Every operation of a function with what the rules say of it on a chip, and what that adds up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...runtime.reference.features import package_features
from ...runtime.reference.package import open_package
from ...runtime.reference.program import Function
from ...runtime.reference.reader import function_names
from . import rules
from .chips import Chip, find_chip
from .cost import Times, predict
from .registry import RULES, Finding
from .view import FunctionView, OperationView, Range, Tensor

assert rules  # noqa: S101 - imported for its registrations


@dataclass(frozen=True)
class Placed:
    """One operation. `inputs` and `outputs` are what it computes with and gives, settings aside.

    `counted`: a compute plan gives it a device (D24: constants and casts to and from float32 at the border have none). `flops` is
    None where a shape is open. `unit`: "ane", or where it is taken to run instead ("gpu" or "cpu"). `source` names the module
    that it came from, "" where that is not known.
    """

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flops: int | None
    bytes: int
    constant_bytes: int
    counted: bool
    unit: str
    findings: tuple[Finding, ...]
    source: str = ""

    @property
    def is_eligible(self) -> bool:
        """Whether nothing keeps it off the Neural Engine."""
        return self.unit == "ane"

    @property
    def blocking(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.blocks)

    @property
    def unproven(self) -> tuple[Finding, ...]:
        """What may keep it off the Neural Engine, or be a hazard, without a source that says so."""
        return tuple(finding for finding in self.findings if not finding.proven)


@dataclass(frozen=True)
class Located:
    """A finding and its operation; None where it is about the whole function."""

    operation: Placed | None
    finding: Finding


@dataclass(frozen=True)
class Assessment:
    """What a function would do on a chip. `unchecked` are rules that need the values of an execution, where none was given."""

    function: str
    chip: Chip
    opset: str
    operations: tuple[Placed, ...]
    general: tuple[Finding, ...]
    unchecked: tuple[str, ...]

    @cached_property
    def counted(self) -> tuple[Placed, ...]:
        return tuple(operation for operation in self.operations if operation.counted)

    @property
    def eligible(self) -> tuple[Placed, ...]:
        return tuple(operation for operation in self.counted if operation.is_eligible)

    @property
    def blocked(self) -> tuple[Placed, ...]:
        return tuple(operation for operation in self.counted if not operation.is_eligible)

    @property
    def share_of_operations(self) -> float:
        """0 to 1, of the counted operations; 1 where there are none."""
        return len(self.eligible) / len(self.counted) if self.counted else 1.0

    @property
    def share_of_flops(self) -> float:
        """0 to 1, of the counted operations of known shape; where none has FLOPs, their share of the operations."""
        total = self.flops
        return sum(operation.flops or 0 for operation in self.eligible) / total if total else self.share_of_operations

    @property
    def flops(self) -> int:
        return sum(operation.flops or 0 for operation in self.counted)

    @property
    def uncounted_flops(self) -> int:
        """How many counted operations have an open shape, so that their FLOPs are not known."""
        return sum(operation.flops is None for operation in self.counted)

    def found(self, severity: str) -> tuple[Located, ...]:
        """All findings of a severity, those about the function first."""
        own = [Located(None, finding) for finding in self.general if finding.severity == severity]
        return (*own, *(Located(item, finding) for item in self.operations for finding in item.findings if finding.severity == severity))

    @property
    def hazards(self) -> tuple[Located, ...]:
        return self.found("hazard")

    @property
    def slow(self) -> tuple[Located, ...]:
        return self.found("slow")

    @property
    def notes(self) -> tuple[Located, ...]:
        return self.found("note")

    @property
    def unproven(self) -> tuple[Located, ...]:
        """Findings of any severity that no source proves. They block nothing and are never dropped."""
        own = [Located(None, finding) for finding in self.general if not finding.proven]
        return (*own, *(Located(operation, finding) for operation in self.operations for finding in operation.unproven))

    @cached_property
    def times(self) -> Times:
        """A model, not a measurement (cost.py)."""
        return predict(self.counted, self.chip)


def assess(
    function: Function,
    chip: str = "m1",
    *,
    ranges: Mapping[str, Range] | None = None,
    operations: Mapping[str, str] | None = None,
    name: str = "main",
    enumerated: int | None = None,
) -> Assessment:
    """Put every rule to every operation. `ranges`: what an execution has seen of each value; `operations`: names to modules.

    `enumerated`: how many shapes the flexible inputs list. Raises UsageError for an unknown chip.
    """
    row = find_chip(chip)
    view = FunctionView(function, ranges, enumerated)
    modules = operations or {}
    placed = tuple(_placed(operation, row, modules.get(operation.name, "")) for operation in view.operations)
    general = tuple(finding for rule in RULES.values() if rule.scope == "function" for finding in rule.findings(view, row))
    unchecked = () if ranges is not None else tuple(rule.id for rule in RULES.values() if rule.needs == "ranges" and chip in rule.chips)
    return Assessment(name, row, view.opset, placed, general, unchecked)


def assess_package(
    path: str | Path,
    chip: str = "m1",
    *,
    operations: Mapping[str, str] | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> dict[str, Assessment]:
    """Every function of a package, the default one first. Raises PackageError for one that cannot be read, UsageError for the chip."""
    package = open_package(path)
    found = {}
    for name in function_names(package):
        function, features = package_features(package, name)
        listed = max((len(feature.enumerated) for feature in features.inputs.values()), default=0)
        found[name] = assess(function, chip, ranges=ranges, operations=operations, name=name, enumerated=listed or None)
    return found


def _placed(operation: OperationView, chip: Chip, source: str) -> Placed:
    counted = not operation.is_constant and not is_border_cast(operation)
    applied = [
        (rule, finding)
        for rule in RULES.values()
        if rule.scope == "operation" and (counted or operation.type in rule.types)
        for finding in rule.findings(operation, chip)
    ]
    blocking = [rule for rule, finding in applied if finding.blocks]
    unit = "ane" if not blocking else "cpu" if any(rule.unit == "cpu" for rule in blocking) else "gpu"
    activations = sum(tensor.bytes for tensor in operation.activations)
    return Placed(
        operation.name,
        operation.type,
        operation.inputs,
        operation.outputs,
        operation.flops,
        operation.bytes,
        operation.bytes - activations,
        counted,
        unit,
        tuple(finding for _rule, finding in applied),
        source,
    )


def is_border_cast(operation: OperationView) -> bool:
    """D24: a cast between what the function takes or gives and half precision. Other float32 operations are counted, and blocked."""
    if operation.type != "cast" or operation.depth:
        return False
    x = operation.input("x")
    inputs, outputs = operation.function.function.inputs, operation.function.function.outputs
    enters = x is not None and x.name in inputs and x.dtype == "fp32"
    leaves = any(tensor.name in outputs and tensor.dtype == "fp32" for tensor in operation.outputs)
    return enters or leaves
