"""Every value that a source network computes, small enough to keep, to find a package's values among them.

A value is kept as a sketch: sums over fixed buckets with fixed random signs. The squared distance of two sketches
estimates the squared distance of the tensors, wherever they differ, to about 2 percent (0.1 dB).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..models.stages import Stage
from .reference.compare import NO_VARIATION

BUCKETS = 4096
ARENA = 1 << 20  # numbers of sketches that are stored together
MODELS = str(Path(__file__).resolve().parent.parent / "models")
INPUT = "input"  # stands for a function where a value is an input of the stage
_SEED = 5
_INDEX = "_rvc_coreml_value"


@dataclass(frozen=True)
class SourceValue:
    """One result: the module it was computed in ("" for the stage itself), the torch function, and who called it.

    `caller` is the function of `models` that the call stands in, `parents` the indices of what it was made from.
    """

    index: int
    module: str
    function: str
    caller: str
    shape: tuple[int, ...]
    sketch: np.ndarray
    energy: float
    parents: tuple[int, ...]

    @property
    def place(self) -> str:
        """For people: `add in sample_prior()`, `conv1d of dec.ups.0`."""
        if self.function == INPUT:
            return f"the input {self.caller!r}"
        of_module = f" of {self.module}" if self.module else ""
        return f"{self.function}{of_module}" + (f" in {self.caller}()" if self.caller and self.caller != "forward" else "")


class SourceTrace:
    """All values of one run of a stage in float32 on the CPU, in order; its outputs by name, and the values that they are.

    Inputs and outputs are the package's (`Stage.package_inputs`), which in a layout of its own are not the stage's.
    """

    def __init__(self, stage: Stage, inputs: Mapping[str, np.ndarray]) -> None:
        recorder = _Recorder()
        names = tuple(stage.package_inputs)
        tensors = [torch.from_numpy(np.array(inputs[name], np.float32)) for name in names]
        with torch.inference_mode(), _scopes(stage, recorder.scope):
            for name, tensor in zip(names, tensors, strict=True):
                recorder.add(tensor, INPUT, name, ())
            with recorder:
                results = stage(*tensors)
        self.values = recorder.values
        given = dict(zip(stage.package_outputs, results, strict=True))
        self.outputs = {name: result.numpy() for name, result in given.items()}
        self.ends = {name: self.values[getattr(result, _INDEX)] for name, result in given.items()}
        # The best that `find` has met of each, wherever in the package; of parameters and inputs nothing is asked.
        self.agreements = [-np.inf if value.parents else np.inf for value in self.values]
        groups: dict[tuple[int, tuple[int, ...]], list[SourceValue]] = {}
        for value in self.values:
            groups.setdefault((int(np.prod(value.shape)), value.shape), []).append(value)
        self._by_size: dict[int, list[_Group]] = {}
        for (size, shape), values in groups.items():
            group = _Group(shape, values, np.stack([value.sketch for value in values]), np.array([value.energy for value in values]))
            self._by_size.setdefault(size, []).append(group)

    def find(self, tensor: Tensor, module: str | None) -> tuple[float, SourceValue | None]:
        """The value that a package's tensor agrees with best and its SNR in dB: in the same module, above or below it.

        Axes may be permuted. (-inf, None) where no value has as many elements.
        """
        sketches: dict[tuple[int, ...], np.ndarray] = {}
        best: tuple[float, SourceValue | None] = (-np.inf, None)
        for group in self._by_size.get(tensor.numel(), []):
            for order in _orders(tuple(tensor.shape), group.shape):
                if order not in sketches:
                    sketches[order] = sketch(tensor.permute(order) if order else tensor)
                for value, found in zip(group.values, group.agreements(sketches[order]), strict=True):
                    self.agreements[value.index] = max(self.agreements[value.index], found)
                    if (best[1] is None or found > best[0]) and _related(value.module, module):
                        best = (found, value)
        return best


@dataclass(frozen=True)
class _Group:
    """Values of one shape, their sketches (values, buckets) and energies (values,)."""

    shape: tuple[int, ...]
    values: list[SourceValue]
    sketches: np.ndarray
    energies: np.ndarray

    def agreements(self, actual: np.ndarray) -> list[float]:
        """SNR of a sketch against each in dB; inf where equal, -inf where anything is not finite."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            difference = self.sketches - actual
            error = np.einsum("ij,ij->i", difference, difference)
            found = 10 * np.log10(self.energies / error)
        found[error == 0] = np.inf
        found[~np.isfinite(error) | ((self.energies <= 0) & (error > 0))] = -np.inf
        return found.tolist()


def sketch(tensor: Tensor) -> np.ndarray:
    """float64 (BUCKETS + rest,); the values themselves where these are few."""
    flat = tensor.detach().reshape(-1).float()
    size = flat.numel()
    if size <= BUCKETS:
        return flat.double().numpy()
    signed = flat * _signs(size)
    body = size // BUCKETS * BUCKETS
    sums = signed[:body].reshape(BUCKETS, -1).sum(dim=1, dtype=torch.float64)
    return torch.cat([sums, signed[body:].double()]).numpy()


@lru_cache(maxsize=8)
def _signs(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8).float() * 2 - 1


def _energy(tensor: Tensor) -> float:
    """Of the signal, its mean removed; of the values themselves where they do not vary, as `reference.compare` has it."""
    low, high = (float(value) for value in torch.aminmax(tensor))
    varies = high - low > NO_VARIATION * max(abs(low), abs(high))
    mean = float(tensor.sum(dtype=torch.float64)) / tensor.numel() if varies else 0.0
    return float(torch.linalg.vector_norm(tensor - mean, dtype=torch.float64)) ** 2


@lru_cache(maxsize=4096)
def _orders(actual: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """How to permute the axes of one shape to get the other's order of elements; () leaves them as they are."""
    target = [size for size in wanted if size != 1]
    long = [axis for axis, size in enumerate(actual) if size != 1]
    if sorted(actual[axis] for axis in long) != sorted(target):
        return ((),)  # reshaped
    ones = [axis for axis, size in enumerate(actual) if size == 1]
    found = [order for order in permutations(long) if [actual[axis] for axis in order] == target]
    return tuple(() if list(order) == long else (*ones, *order) for order in found)


def _related(module: str, other: str | None) -> bool:
    """Whether one is the other, above it or below it; the stage itself and what is unknown are above all."""
    if other is None or not module or not other or module == other:
        return True
    return module.startswith(f"{other}.") or other.startswith(f"{module}.")


class _Recorder(TorchFunctionMode):
    """Sees every call of a torch function on tensors; what a call changes in place is a new value."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[SourceValue] = []
        self.scope: list[str] = [""]
        self._arena = np.empty(0)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        parents = tuple(dict.fromkeys(getattr(item, _INDEX) for item in _tensors((args, kwargs or {})) if hasattr(item, _INDEX)))
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if name != "get":  # attributes such as shape
            for tensor in _tensors(result):
                self.add(tensor, name, _caller(), parents)
        return result

    def add(self, tensor: Tensor, function: str, caller: str, parents: tuple[int, ...]) -> None:
        if not tensor.is_floating_point() or not tensor.numel():
            return
        index = len(self.values)
        setattr(tensor, _INDEX, index)
        kept = (self._kept(sketch(tensor)), _energy(tensor))
        self.values.append(SourceValue(index, self.scope[-1], function, caller, tuple(tensor.shape), *kept, parents))

    def _kept(self, array: np.ndarray) -> np.ndarray:
        """A copy among its like: between the network's tensors, what stays would keep the allocator from using their room again."""
        if len(self._arena) < array.size:
            self._arena = np.empty(max(ARENA, array.size))
        room, self._arena = self._arena[: array.size], self._arena[array.size :]
        room[:] = array
        return room


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _caller() -> str:
    """The function of `models` that is nearest on the stack."""
    frame = sys._getframe(2)  # noqa: SLF001 - the one way to ask who calls
    while frame is not None:
        if frame.f_code.co_filename.startswith(MODELS):
            return frame.f_code.co_name
        frame = frame.f_back
    return ""


@contextmanager
def _scopes(stage: Stage, scope: list[str]) -> Iterator[None]:
    """Keeps the path of the module that is being called on top of `scope`."""
    handles = []
    for path, module in stage.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _module, _args, path=path: scope.append(path)))
        handles.append(module.register_forward_hook(lambda _module, _args, _result: _left(scope), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _left(scope: list[str]) -> None:
    scope.pop()
