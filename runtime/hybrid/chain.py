"""A plan's parts one after the other, each on what runs it, and what crosses between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import PackageError
from ..backends.base import StageRunner
from ..backends.torch_backend import TorchBackend
from .execute import Executable, Values
from .parts import Parts, Unfit, entering, leaving
from .plan import PACKAGE, PartPlan

Notify = Callable[[str], None]


class Chain:
    """Runs a network in parts. `runners` has what runs each package, by its name in placement; what has none runs in PyTorch.

    What PyTorch computes lies on `backend`'s device. `notify` gets one line for a part that had to leave its package for a call.
    """

    def __init__(self, parts: Parts, runners: Mapping[str, StageRunner], backend: TorchBackend, notify: Notify = print) -> None:
        self.parts = parts
        self.runners = dict(runners)
        self.device = torch.device(backend.device)
        self._wanted = parts.graph.wanted()
        if not runners:
            steps: list[_Step] = [_InPyTorch(parts.executable(), parts.constants(backend), self._inputs(), self.device)]
        else:
            steps = self._made(backend, notify)
        kept = set(self._wanted)
        last = {name: number for number, step in enumerate(steps) for name in (*step.needs, *step.gives)}
        self._steps = [
            (step, tuple(name for name, at in last.items() if at == number and name not in kept)) for number, step in enumerate(steps)
        ]
        constants = parts.constants(backend) if any(name in parts.graph.constants for name in self._wanted) else {}
        self._constants = {name: constants[name] for name in self._wanted if name in constants}

    def __call__(self, values: Mapping[str, Any]) -> Values:
        """The values that the graph wants, from its inputs and from the buffers that it changes, by name."""
        known: Values = {**self._constants, **values}
        with torch.no_grad():
            for step, dropped in self._steps:
                known.update(step(known))
                for name in dropped:
                    known.pop(name, None)
        return {name: known[name] for name in self._wanted}

    def _inputs(self) -> set[str]:
        """What a call gives: the inputs, and the buffers that change."""
        graph = self.parts.graph
        return set(graph.inputs) | {value for value, name in graph.constants.items() if name in graph.buffers}

    def _made(self, backend: TorchBackend, notify: Notify) -> list[_Step]:
        constants, given = self.parts.constants(backend), self._inputs()
        read = [set(self._wanted)]  # after each part, from the last one back
        graph = {node.name: node for node in self.parts.graph.nodes}
        for part in reversed(self.parts.plan.parts):
            read.append(read[-1] | {name for operation in part.operations for name in graph[operation].references()})
        steps: list[_Step] = []
        for part, later in zip(self.parts.plan.parts, reversed(read[:-1]), strict=True):
            runner = self.runners.get(self.parts.stage(part)) if part.kind == PACKAGE else None
            wanted = tuple(name for name in part.operations if name in later)
            in_pytorch = _InPyTorch(self.parts.executable(part, wanted), constants, given, self.device)
            steps.append(in_pytorch if runner is None else _InPackage(self.parts, part, runner, in_pytorch, notify))
        return steps


class _Step:
    """`needs` are the values that it reads, `gives` those that it makes."""

    needs: tuple[str, ...]
    gives: tuple[str, ...]

    def __call__(self, known: Values) -> Values:
        raise NotImplementedError


class _InPyTorch(_Step):
    def __init__(self, executable: Executable, constants: Mapping[str, Tensor], given: set[str], device: torch.device) -> None:
        self._executable = executable
        self.device = device
        self._constants = {name: constants[name] for name in executable.needs if name in constants and name not in given}
        self.needs = tuple(name for name in executable.needs if name not in self._constants)
        self.gives = executable.wanted

    def __call__(self, known: Values) -> Values:
        return self._executable({**{name: known[name] for name in self.needs if name in known}, **self._constants}, self.device)


class _InPackage(_Step):
    def __init__(self, parts: Parts, part: PartPlan, runner: StageRunner, otherwise: _InPyTorch, notify: Notify) -> None:
        self._parts, self._part, self._runner = parts, part, runner
        self._otherwise = otherwise
        self._notify = notify
        self._told = False
        self.needs = tuple(dict.fromkeys([*(seam.value for seam in part.inputs), *otherwise.needs]))
        self.gives = tuple(seam.value for seam in part.outputs)

    def __call__(self, known: Values) -> Values:
        try:
            inputs = {seam.feature: entering(known[seam.value], seam) for seam in self._part.inputs}
        except Unfit as reason:
            if not self._told:
                self._told = True
                self._notify(f"{self._parts.title}, {self._part.name}: {reason}; this part runs in PyTorch for such calls")
            return self._otherwise(known)
        outputs = self._runner.predict(inputs)
        found: Values = {}
        for seam in self._part.outputs:
            value = outputs.get(seam.feature)
            if value is None or tuple(value.shape) != seam.package_shape:
                got = "nothing" if value is None else f"a tensor {tuple(value.shape)}"
                raise PackageError(f"{self._parts.package(self._parts.stage(self._part))} gives {got} for {seam.feature!r}: convert again")
            found[seam.value] = leaving(value, seam, self._otherwise.device)
        return found
