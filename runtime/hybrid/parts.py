"""The parts of a network as placement takes them: packages with goldens, and PyTorch executing a part's operations beside each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import LibraryError
from ...golden_outputs.golden import GATE, Golden, GoldenSet, Layout
from ...golden_outputs.thresholds import PART
from ..backends.base import StageRunner, Tensors
from ..backends.torch_backend import TorchBackend
from .execute import Executable, Values, check_constants
from .graph import DTYPES, Graph
from .plan import PACKAGE, PartPlan, Plan, Seam

INT32 = torch.iinfo(torch.int32)
TensorSource = Callable[[TorchBackend], Mapping[str, Tensor]]


class Unfit(ValueError):
    """A value that no package can hold."""


class Parts:
    """A plan, its graph, and where its packages and recordings lie. A part is called `prefix` and its name.

    `tensors` gives the network's own tensors by name. `where` is the graph's file, for errors.
    """

    def __init__(
        self,
        title: str,
        build: Path,
        build_id: str,
        graph: Graph,
        plan: Plan,
        tensors: TensorSource,
        *,
        golden: Path,
        prefix: str = "",
        compute_units: str = "ALL",
        where: str = "the graph",
        custom_operations: Collection[str] = (),
    ) -> None:
        self.title, self.build, self.build_id = title, build, build_id
        self.graph, self.plan, self.where = graph, plan, where
        self.names = tuple(prefix + part.name for part in plan.packages)
        self._tensors = tensors
        self._golden = golden
        self._prefix = prefix
        self._units = compute_units
        self._custom = tuple(custom_operations)
        self._constants: dict[str, dict[str, Tensor]] = {}
        self._checked = Executable(graph, where=where, custom_operations=self._custom)  # every operation, once, before anything runs

    def part(self, stage: str) -> PartPlan:
        return self.plan.part(stage.removeprefix(self._prefix))

    def stage(self, part: PartPlan) -> str:
        """What placement and recordings call a part."""
        return self._prefix + part.name

    def package(self, stage: str) -> Path:
        return self.build / str(self.part(stage).package)

    def goldens(self, stage: str, cases: tuple[str, ...] | None = None) -> dict[str, Golden]:
        """Recorded cases of a part. Raises LibraryError where they are missing, damaged or of another shape."""
        found = GoldenSet.load(self._golden, only=[stage], cases=cases).sets[stage]
        part = self.part(stage)
        for golden in found.values():
            for arrays, seams in ((golden.inputs, part.inputs), (golden.outputs, part.outputs)):
                fits = {seam.feature: (seam.package_shape, seam.package_dtype) for seam in seams}
                if {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} != fits:
                    raise LibraryError(f"the golden outputs of the {self.title}, {stage}, do not fit its package: convert it again")
        return found

    def precision(self, stage: str) -> str:
        return self.part(stage).precision or self.plan.precision

    def window(self, stage: str) -> int | None:
        """None: a part does not count in frames."""
        del stage
        return None

    def function(self, stage: str) -> None:
        """None: a part's package has one."""
        del stage

    def arrangement(self, stage: str) -> None:
        """None: a part's tensors are its package's."""
        del stage

    def compute_units(self, stage: str) -> str:
        del stage
        return self._units

    def in_torch(self, stage: str, backend: TorchBackend) -> StageRunner:
        part = self.part(stage)
        return PartRunner(part, self.executable(part), self.constants(backend), torch.device(backend.device))

    def parts(self, stage: str) -> None:
        """None: a part is one package."""
        del stage

    def executable(self, part: PartPlan | None = None, wanted: Sequence[str] | None = None) -> Executable:
        """A part's operations in PyTorch, or the whole graph's."""
        if part is None:
            return self._checked
        names = set(part.operations)
        wanted = tuple(seam.value for seam in part.outputs) if wanted is None else wanted
        return Executable(self.graph, names, wanted, where=self.where, custom_operations=self._custom)

    def constants(self, backend: TorchBackend) -> Mapping[str, Tensor]:
        """The network's tensors by value name on a backend's device; those that it changes as they are at first.

        Raises PackageError where one is not what the graph was made for.
        """
        if backend.device not in self._constants:
            tensors = self._tensors(backend)
            check_constants(self.graph, tensors, self.where)
            self._constants[backend.device] = {value: tensors[name].to(backend.device) for value, name in self.graph.constants.items()}
        return self._constants[backend.device]


class PartRunner:
    """A package's operations in PyTorch, with the package's own inputs and outputs."""

    window: int | None = None

    def __init__(self, part: PartPlan, executable: Executable, constants: Mapping[str, Tensor], device: torch.device) -> None:
        self.device = device
        self._part = part
        self._executable = executable
        inputs = {seam.value for seam in part.inputs}
        self._constants = {name: constants[name] for name in executable.needs if name not in inputs}

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        """By name in the package, in the package's types."""
        del wanted
        values: Values = {seam.value: leaving(inputs[seam.feature], seam, self.device) for seam in self._part.inputs}
        found = self._executable({**self._constants, **values}, self.device)
        return {seam.feature: entering(found[seam.value], seam, checked=False) for seam in self._part.outputs}


def entering(value: Tensor, seam: Seam, checked: bool = True) -> Tensor:
    """A value as a package takes it; the same memory where it has the type already. Raises Unfit for what int32 cannot hold."""
    if checked and value.dtype is torch.int64 and value.numel() and not (INT32.min <= int(value.min()) and int(value.max()) <= INT32.max):
        raise Unfit(f"{seam.value} holds {int(value.abs().max())}, and a package's integers have 32 bits")
    value = value.to(DTYPES[seam.package_dtype])
    return value if value.dim() else value.reshape(1)


def leaving(value: Tensor, seam: Seam, device: torch.device) -> Tensor:
    """What a package gave, as the network has it; the same memory where it has the type already."""
    return value.reshape(seam.shape).to(device, DTYPES[seam.dtype])


def record_parts(
    graph: Graph,
    tensors: Mapping[str, Tensor],
    plan: Plan,
    cases: Mapping[str, Mapping[str, Tensor]],
    prefix: str = "",
    *,
    facts: Mapping[str, object] | None = None,
    custom_operations: Collection[str] = (),
) -> dict[str, list[Golden]]:
    """Goldens of every package by its name: what goes in and comes out when PyTorch runs the graph on the cases' inputs by name.

    Raises PackageError where PyTorch cannot run it.
    """
    seams = {seam.value: seam for part in plan.packages for seam in (*part.inputs, *part.outputs)}
    executable = Executable(graph, None, tuple(seams), custom_operations=custom_operations)
    constants = {value: tensors[name] for value, name in graph.constants.items()}
    found: dict[str, list[Golden]] = {prefix + part.name: [] for part in plan.packages}
    state = torch.get_rng_state()
    try:
        for case, inputs in cases.items():
            values = executable({**constants, **inputs})
            arrays = {name: entering_array(values[name], seam) for name, seam in seams.items()}
            for part in plan.packages:
                given, wanted = ({seam.feature: arrays[seam.value] for seam in side} for side in (part.inputs, part.outputs))
                layouts = {name: Layout(0, array.shape[0], 1) for name, array in wanted.items()}
                found[prefix + part.name].append(Golden(case, PART, given, wanted, layouts, {"still": True, **(facts or {})}))
    finally:
        torch.set_rng_state(state)
    return found


def entering_array(value: Tensor, seam: Seam) -> np.ndarray:
    """The same as an array, unchecked."""
    return np.ascontiguousarray(entering(value.detach().cpu(), seam, checked=False).numpy())


__all__ = ["GATE", "PACKAGE", "PartRunner", "Parts", "Unfit", "entering", "entering_array", "leaving", "record_parts"]
