"""Core ML's own word on placement, MLComputePlan, and where the linter and it disagree. Not yet run on a Mac.

The plan says of every operation which units support it and which one Core ML prefers; the linter says which operations the
Neural Engine can take. So they disagree where an operation that the linter lets through is not supported there, and where
one that it blocks is. Core ML may also prefer another unit for an operation that the Neural Engine could take: that is its
choice, and is counted by itself. The plan is made in the worker process, which a bad package may end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BackendError
from ...runtime.backends import coreml_backend
from ...runtime.reference.package import open_package
from ...runtime.reference.program import all_operations
from ...runtime.reference.reader import read_function

if TYPE_CHECKING:
    from ...runtime.worker import CoreMLWorker
    from .assess import Assessment

ANE = "ane"
PLAN_SECONDS = 600.0  # compiling is part of it
KINDS = ("unsupported", "elsewhere", "taken")


@dataclass(frozen=True)
class PlannedOperation:
    """What Core ML says of an operation: the unit that it prefers, those that support it, its share of the cost, 0 to 1."""

    name: str
    type: str
    unit: str
    supported: tuple[str, ...]
    cost: float


@dataclass(frozen=True)
class ComputePlan:
    """A function's operations that have a device, by name."""

    compute_units: str
    operations: Mapping[str, PlannedOperation]

    def share(self, unit: str = ANE) -> float:
        """Of the operations, what runs on a unit, 0 to 1."""
        return sum(item.unit == unit for item in self.operations.values()) / len(self.operations) if self.operations else 0.0

    def share_of_cost(self, unit: str = ANE) -> float:
        """Of Core ML's estimated cost."""
        return sum(item.cost for item in self.operations.values() if item.unit == unit)


@dataclass(frozen=True)
class Disagreement:
    """An operation of which the linter and the plan say different things.

    `kind`: "unsupported", the linter lets it through and the plan says that the Neural Engine does not support it;
    "taken", the linter blocks it and the plan says that it is supported; "elsewhere", both say that it could run there and
    Core ML prefers another unit.
    """

    kind: str
    name: str
    type: str
    unit: str
    rules: tuple[str, ...]
    cost: float


@dataclass(frozen=True)
class Comparison:
    """A plan beside an assessment. `unplanned`: operations that the linter counts and the plan does not have."""

    plan: ComputePlan
    compared: int
    disagreements: tuple[Disagreement, ...]
    unplanned: tuple[str, ...]

    def of_kind(self, kind: str) -> tuple[Disagreement, ...]:
        return tuple(item for item in self.disagreements if item.kind == kind)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "compute_units": self.plan.compute_units,
            "share_of_operations": {unit: self.plan.share(unit) for unit in ("ane", "gpu", "cpu")},
            "share_of_cost": {unit: self.plan.share_of_cost(unit) for unit in ("ane", "gpu", "cpu")},
            "compared": self.compared,
            "disagreements": [vars(item) | {"rules": list(item.rules)} for item in self.disagreements],
            "not_in_the_plan": list(self.unplanned),
        }


def require_plan() -> None:
    """Raises BackendError off a Mac."""
    if not coreml_backend.coreml_available():
        raise BackendError("Core ML's compute plan exists only on macOS: leave out --compare-plan and --plan here, the linter needs no Mac")


def compute_plans(
    package: Path, compute_units: str = "ALL", *, worker: CoreMLWorker | None = None, limit: float = PLAN_SECONDS
) -> dict[str, ComputePlan]:
    """The plan of every function of a package. Raises BackendError off a Mac, WorkerFailure where Core ML gives none."""
    require_plan()
    from ...runtime.worker import shared_worker

    opened = open_package(package)
    planned = (worker or shared_worker()).plan(package, compute_units, limit=limit)
    plans = {}
    for function, rows in planned.items():
        names = {output: item.name for item in all_operations(read_function(opened, function)) for output, _kind in item.outputs}
        operations = {
            names.get(output, output): PlannedOperation(names.get(output, output), kind, unit, tuple(supported), cost)
            for output, kind, unit, supported, cost in rows
        }
        plans[function] = ComputePlan(compute_units, operations)
    return plans


def compare_plan(assessment: Assessment, plan: ComputePlan) -> Comparison:
    """Operation by operation, those that the linter counts and the plan has."""
    disagreements, unplanned, compared = [], [], 0
    for placed in assessment.operations:
        if not placed.counted:
            continue
        planned = plan.operations.get(placed.name)
        if planned is None:
            unplanned.append(placed.name)
            continue
        compared += 1
        kind = _kind(placed.unit == ANE, planned)
        if kind is not None:
            rules = tuple(dict.fromkeys(finding.rule for finding in placed.findings if finding.severity == "off-ane"))
            disagreements.append(Disagreement(kind, placed.name, placed.type, planned.unit, rules, planned.cost))
    return Comparison(plan, compared, tuple(disagreements), tuple(unplanned))


def _kind(eligible: bool, planned: PlannedOperation) -> str | None:
    if eligible and ANE not in planned.supported:
        return "unsupported"
    if not eligible and ANE in planned.supported:
        return "taken"
    return "elsewhere" if eligible and planned.unit != ANE else None
