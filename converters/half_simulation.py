"""What a half-precision package with some operations in float32 would compute, without converting it.

A float32 package is run in the reference executor, and everything that coremltools would make half precision is rounded: what an
operation reads, its constants included, and what it gives. An operation that stays in float32 reads what others have rounded and
rounds nothing itself, as in the package with its casts. So one conversion serves any number of trials.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConversionError
from ..golden_outputs.golden import Golden
from ..models.arrangement import Arrangement
from ..runtime.reference import ReferenceModel
from ..runtime.reference.plan import Step
from ..runtime.reference.program import OPSETS, Constant, TensorType
from ..runtime.reference.registry import find_handler

HALF_MAX = 65504.0
# What coremltools 9.0's FP16ComputePrecision leaves alone: these operations, those with a constant beyond half precision, and
# settings of activations and reciprocals.
_NEVER_HALF = frozenset(
    {"cast", "while_loop", "cond", "make_list", "list_gather", "list_scatter", "list_read", "list_write", "list_length"}
)
_INFINITE = 1e38  # constants from here on stand for infinity and are let be
_KEPT_SETTINGS = {
    "epsilon": frozenset({"inverse", "log", "rsqrt"}),
    "alpha": frozenset(
        {"elu", "leaky_relu", "prelu", "thresholded_relu", "clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard"}
    ),
    "beta": frozenset({"clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard"}),
}
PROBES = 2  # random directions in which the outputs' dependence on every rounding is taken
_SEED = 7
_LEAST = 1e-30  # energy
INPUT, OUTPUT = "<input>", "<output>"  # stand for the package's ends, which are float32


@dataclass
class Noise:
    """What rounding costs at the outputs, as shares of their energy.

    `constants`: by node, of what it computes with. `values`: by pair of nodes, of what the first gives to the second.
    """

    constants: dict[str, float] = field(default_factory=dict)
    values: dict[tuple[str, str], float] = field(default_factory=dict)


class HalfSimulation:
    """A float32 package at `path`, the graph's node of every operation in it, and a golden case to judge by.

    `nodes` are those that would be half precision, in the package's order.
    """

    def __init__(self, path: Path, operations: Mapping[str, str], golden: Golden, arrangement: Arrangement | None = None) -> None:
        self.golden, self.arrangement = golden, arrangement
        self.model = ReferenceModel(path, numerics="float32")
        self.operations = dict(operations)
        self.steps = self.model.prepared.steps
        if any(step.walks for step in self.steps):
            raise ConversionError(
                f"{golden.what} has loops, and single operations of a loop cannot be kept in float32: use --precision fp32"
            )
        self.halved = [step.operation.type not in _NEVER_HALF and not self._beyond(step) and _floats(step) for step in self.steps]
        self.nodes = tuple(dict.fromkeys(self._node(step) for step, halved in zip(self.steps, self.halved, strict=True) if halved))
        self.runs = 0
        self._rounded: dict[int, Tensor] = {}
        given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in golden.inputs.items()}
        self._inputs: dict[str, Tensor] = given if arrangement is None else arrangement.enter(given)

    def snr_db(self, kept: Collection[str]) -> float:
        """Of the worst output, with these nodes in float32."""
        self.runs += 1
        with torch.no_grad():
            results = self._run(frozenset(kept))
        found = results if self.arrangement is None else self.arrangement.leave(results)
        arrays = {name: np.array(value.float().numpy()) for name, value in found.items()}
        return min(comparison.snr_db for comparison in self.golden.compare(arrays, audio=False).values())

    def noise(self) -> Noise:
        """Of every rounding where all that can be is half precision: its error through the outputs' gradient.

        The gradient is taken along PROBES random directions; roundings count as independent of each other.
        """
        recorder = _Recorder()
        with torch.enable_grad():
            results = self._run(frozenset(), recorder)
            generator = torch.Generator().manual_seed(_SEED)
            given = results if self.arrangement is None else self.arrangement.leave(results)
            wanted = {name: value for name, value in given.items() if value.requires_grad}
            for probe in range(PROBES):
                along = [self._direction(name, value, generator) for name, value in wanted.items()]
                torch.autograd.backward(list(wanted.values()), along, retain_graph=probe < PROBES - 1)
                recorder.collect()
        return recorder.noise(self._readers())

    def _direction(self, name: str, value: Tensor, generator: torch.Generator) -> Tensor:
        """Random signs over the valid part of an output, scaled so that what is its signal, as the golden case sees it, has energy one."""
        layout, wanted = self.golden.layouts[name], self.golden.outputs[name].astype(np.float64)
        signal = layout.crop(wanted)
        centred = signal - (signal.mean() if self.golden.steady(name) else signal.mean(axis=layout.time_axis, keepdims=True))
        signs = torch.zeros(value.shape)
        part = signs.narrow(layout.time_axis, 0, layout.valid * layout.samples)
        part.copy_(torch.randint(0, 2, part.shape, generator=generator).mul_(2).sub_(1))
        return signs / max(float(np.sum(centred**2)), _LEAST) ** 0.5

    def moving(self) -> frozenset[str]:
        """Nodes that only move values."""
        opset = OPSETS[self.model.program.opset]
        found: dict[str, bool] = {}
        for step in self.steps:
            handler = find_handler(step.operation.type, opset)
            node = self._node(step)
            found[node] = found.get(node, True) and handler is not None and handler.moves
        return frozenset(node for node, moves in found.items() if moves)

    def _node(self, step: Step) -> str:
        return self.operations.get(step.operation.name, step.operation.name)

    def _readers(self) -> dict[str, list[str]]:
        """Value -> nodes of the operations that read it."""
        readers: dict[str, list[str]] = {name: [OUTPUT] for name in self.model.program.outputs}
        for step in self.steps:
            for name in _read(step):
                readers.setdefault(name, []).append(self._node(step))
        return readers

    def _beyond(self, step: Step) -> bool:
        """Whether an operation has a constant that half precision has not."""
        for bindings in step.operation.inputs.values():
            for binding in bindings:
                constant = self.model.program.constants.get(binding) if isinstance(binding, str) else binding
                if isinstance(constant, Constant) and isinstance(constant.type, TensorType) and constant.type.dtype == "fp32":
                    values = np.abs(np.asarray(constant.value))
                    if np.max(values[values < _INFINITE], initial=0.0) > HALF_MAX:
                        return True
        return False

    def _run(self, kept: frozenset[str], recorder: _Recorder | None = None) -> dict[str, Tensor]:
        values: dict[str, Any] = dict(self._inputs)
        rounded = _Rounded(values, set())
        for step, halved in zip(self.steps, self.halved, strict=True):
            node = self._node(step)
            half = halved and node not in kept
            source: Mapping[str, Any] = rounded if half else values
            if recorder is not None and half:
                recorder.inputs(self._inputs, rounded, step)
            arguments = {name: get(source) for name, get in step.arguments.items()}
            if half:
                arguments = {name: self._argument(step, name, value, values, recorder) for name, value in arguments.items()}
            injected: dict[str, Any] = dict.fromkeys(step.injected)
            for name, form in step.injected.items():
                injected[name] = torch.Generator().manual_seed(0) if form == "generator" else step.declared
            found = step.function(**arguments, **injected)
            results = tuple(found) if isinstance(found, (tuple, list)) and not step.returns_list else (found,)
            for name, value in zip(step.names, results, strict=True):
                if half and isinstance(value, Tensor) and value.is_floating_point():
                    plain, value = value, _half(value)
                    rounded.done.add(name)
                    if recorder is not None and value.requires_grad:
                        recorder.value(node, name, plain, value)
                values[name] = value
            if recorder is None:
                for name in step.release:
                    values.pop(name, None)
                    rounded.made.pop(name, None)
        block = self.model.prepared
        return {name: block.fixed[name] if name in block.fixed else values[name] for name in self.model.program.outputs}

    def _argument(self, step: Step, name: str, value: Any, values: Mapping[str, Any], recorder: _Recorder | None) -> Any:
        """As an operation in half precision computes with it: constants rounded, and settings that become half precision too."""
        if isinstance(value, float):
            return value if step.operation.type in _KEPT_SETTINGS.get(name, ()) else float(np.float16(value))
        computed = [isinstance(binding, str) and binding in values for binding in step.operation.inputs[name]]
        if isinstance(value, list):
            pairs = zip(value, computed, strict=True) if len(value) == len(computed) else ((item, True) for item in value)
            return [item if known else self._constant(step, item, recorder) for item, known in pairs]
        return value if computed[0] else self._constant(step, value, recorder)

    def _constant(self, step: Step, value: Any, recorder: _Recorder | None) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if id(value) not in self._rounded:
            self._rounded[id(value)] = _half(value)
        rounded = self._rounded[id(value)]
        return rounded if recorder is None else recorder.constant(self._node(step), value, rounded)


class _Rounded(Mapping[str, Any]):
    """The values of a run as operations in half precision read them; each is rounded once. `done`: rounded when it was made."""

    def __init__(self, values: dict[str, Any], done: set[str]) -> None:
        self.values_, self.done = values, done
        self.made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Any:
        value = self.values_[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if name in self.done:
            return value
        if name not in self.made:
            self.made[name] = _half(value)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


@dataclass
class _Rounding:
    """A rounding: the node it happens at, what is rounded ("" for a constant), its squared error, and a tensor that gets a gradient."""

    node: str
    value: str
    error: Tensor
    tensor: Tensor
    cost: float = 0.0


class _Recorder:
    """Every rounding of a run, and what it costs at the outputs."""

    def __init__(self) -> None:
        self.roundings: list[_Rounding] = []
        self.given: set[str] = set()

    def value(self, node: str, name: str, plain: Tensor, rounded: Tensor) -> None:
        rounded.retain_grad()
        self.roundings.append(_Rounding(node, name, _error(plain, rounded), rounded))

    def constant(self, node: str, plain: Tensor, rounded: Tensor) -> Tensor:
        leaf = rounded.detach().clone().requires_grad_()
        self.roundings.append(_Rounding(node, "", _error(plain, rounded), leaf))
        return leaf

    def inputs(self, inputs: Mapping[str, Tensor], rounded: _Rounded, step: Step) -> None:
        """The package's inputs become leaves when an operation first reads them."""
        for name in _read(step):
            if name in inputs and name not in self.given and inputs[name].is_floating_point():
                leaf = _half(inputs[name]).requires_grad_()
                rounded.made[name] = leaf
                self.given.add(name)
                self.roundings.append(_Rounding(INPUT, name, _error(inputs[name], leaf), leaf))

    def collect(self) -> None:
        """After a backward pass: errors through squared gradients, a mean over the passes."""
        for rounding in self.roundings:
            if rounding.tensor.grad is not None:
                cost = float((rounding.error * rounding.tensor.grad.square()).double().sum()) / PROBES
                rounding.cost += cost if np.isfinite(cost) else np.inf
                rounding.tensor.grad = None

    def noise(self, readers: Mapping[str, list[str]]) -> Noise:
        found = Noise()
        for rounding in self.roundings:
            if not rounding.value:
                found.constants[rounding.node] = found.constants.get(rounding.node, 0.0) + rounding.cost
                continue
            to = list(dict.fromkeys(readers.get(rounding.value, ())))
            for reader in to:
                pair = rounding.node, reader
                found.values[pair] = found.values.get(pair, 0.0) + rounding.cost / len(to)
        return found


def _read(step: Step) -> set[str]:
    return {binding for bindings in step.operation.inputs.values() for binding in bindings if isinstance(binding, str)}


def _floats(step: Step) -> bool:
    """Whether an operation gives anything that has a precision."""
    return any(isinstance(kind, TensorType) and kind.dtype == "fp32" for kind in step.declared)


def _half(value: Tensor) -> Tensor:
    """Rounded; for gradients as if it were not. What is beyond half precision saturates there, so that gradients stay finite."""
    if value.requires_grad:
        return value + (value.detach().half().float().clamp(-HALF_MAX, HALF_MAX) - value.detach())
    return value.half().float()


def _error(plain: Tensor, rounded: Tensor) -> Tensor:
    """Squared, in half the memory: only magnitudes matter."""
    return (plain.detach() - rounded.detach()).square_()
