"""How a package lays out the tensors of a stage: pure rearrangements that the host makes on the way in and out.

A stage's own tensors are the same in every layout (`Stage.inputs`, `Stage.outputs`), and so are its golden outputs. A package
in the Neural Engine's layout takes them as (1, C, 1, S), a waveform in phases, a source in overlapping rows; what leads from
the one to the other is data, kept in the manifest, so that a library needs no code for it and an app can follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ELEMENTS = 1 << 31  # of one tensor: more is a damaged description
_MAX_RANK = 8


@dataclass(frozen=True)
class Step:
    """One rearrangement: `kind` is one of STEPS, `numbers` are its arguments."""

    kind: str
    numbers: tuple[int, ...]

    def apply(self, value: Tensor) -> Tensor:
        """Raises ValueError, RuntimeError or IndexError where the tensor does not fit."""
        return STEPS[self.kind](value, *self.numbers)


def pad(axis: int, before: int, after: int) -> Step:
    """Zeros before and after along an axis."""
    return Step("pad", (axis, before, after))


def cut(axis: int, start: int, stop: int) -> Step:
    """The entries from start to stop along an axis."""
    return Step("cut", (axis, start, stop))


def reshape(*sizes: int) -> Step:
    """The same elements in their order under another shape."""
    return Step("reshape", sizes)


def permute(*axes: int) -> Step:
    """Axes in another order."""
    return Step("permute", axes)


def repeat(axis: int, times: int) -> Step:
    """Every entry along an axis, so many times one after the other."""
    return Step("repeat", (axis, times))


def windows(axis: int, size: int, stride: int) -> Step:
    """Overlapping windows along an axis: it becomes two, their number and their `size`. What fills no window is dropped."""
    return Step("windows", (axis, size, stride))


def _pad(value: Tensor, axis: int, before: int, after: int) -> Tensor:
    widths = [0] * (2 * value.ndim)
    place = 2 * (value.ndim - 1 - axis % value.ndim)
    widths[place : place + 2] = before, after
    return F.pad(value, widths)


def _windows(value: Tensor, axis: int, size: int, stride: int) -> Tensor:
    axis %= value.ndim
    return value.unfold(axis, size, stride).movedim(-1, axis + 1)


STEPS: dict[str, Callable[..., Tensor]] = {
    "pad": _pad,
    "cut": lambda value, axis, start, stop: value.narrow(axis, start, stop - start),
    "reshape": lambda value, *sizes: value.reshape(sizes),
    "permute": lambda value, *axes: value.permute(axes),
    "repeat": lambda value, axis, times: value.repeat_interleave(times, axis),
    "windows": _windows,
}


@dataclass(frozen=True)
class Arranged:
    """A tensor `name` of this `shape`, made of the tensor `source` by `steps`."""

    name: str
    source: str
    shape: tuple[int, ...]
    description: str = ""
    steps: tuple[Step, ...] = ()

    def of(self, value: Tensor) -> Tensor:
        """Raises ValueError where the tensor does not fit."""
        try:
            for step in self.steps:
                value = step.apply(value)
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"{self.source} of shape {tuple(value.shape)} does not become {self.name} ({error})") from error
        if tuple(value.shape) != self.shape:
            raise ValueError(f"{self.source} becomes {tuple(value.shape)} and not {self.name}'s {self.shape}")
        return value


@dataclass(frozen=True)
class Arrangement:
    """What a package takes, made of the stage's inputs, and the stage's outputs, made of what the package gives."""

    inputs: tuple[Arranged, ...]
    outputs: tuple[Arranged, ...]

    def enter(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The package's inputs, contiguous. Raises ValueError where one does not fit, KeyError where one is missing."""
        return {item.name: item.of(tensors[item.source]).contiguous() for item in self.inputs}

    def leave(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stage's outputs. Raises as `enter`."""
        return {item.name: item.of(tensors[item.source]) for item in self.outputs}

    def check(self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]) -> None:
        """That it leads from inputs of these shapes into the package and back to such outputs. Raises ValueError."""
        for item in (*self.inputs, *self.outputs):
            if not 0 < len(item.shape) <= _MAX_RANK or not 0 < math.prod(item.shape) <= MAX_ELEMENTS:
                raise ValueError(f"{item.name} has the shape {item.shape}")
        given = {name: torch.empty(tuple(shape), device="meta") for name, shape in inputs.items()}
        for item in self.inputs:
            if item.source not in given:
                raise ValueError(f"{item.name} is made of {item.source}, which is no input")
            item.of(given[item.source])
        if {item.name: list(item.shape) for item in self.outputs} != {name: list(shape) for name, shape in outputs.items()}:
            raise ValueError("its outputs are not the stage's")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Arrangement:
        """Raises ValueError where it is none."""
        try:
            return cls(*(tuple(_arranged(item) for item in values[side]) for side in ("inputs", "outputs")))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no arrangement ({type(error).__name__}: {error})") from error


def _arranged(values: Mapping[str, Any]) -> Arranged:
    steps = tuple(Step(str(step["kind"]), _numbers(step["numbers"])) for step in values["steps"])
    unknown = [step.kind for step in steps if step.kind not in STEPS]
    if unknown:
        raise ValueError(f"there is no step {unknown[0]!r}")
    if any(step.kind in ("pad", "repeat") and any(abs(number) > MAX_ELEMENTS for number in step.numbers) for step in steps):
        raise ValueError("a step is too large")
    return Arranged(str(values["name"]), str(values["source"]), _numbers(values["shape"]), str(values["description"]), steps)


def _numbers(values: Any) -> tuple[int, ...]:
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{values!r} are no whole numbers")
    return tuple(values)
