"""The one protocol all backends follow. Stages speak torch tensors, so that what PyTorch computes need not leave its device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..library import Component

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")


class StageRunner(Protocol):
    """A loaded stage. `window` is the number of frames that it always takes, None where it takes any."""

    @property
    def window(self) -> int | None: ...

    @property
    def device(self) -> torch.device:
        """Where outputs lie; inputs may come from anywhere."""
        ...

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        """Float32 tensors by name, in and out; `wanted` names the one output that will be read.

        A runner with a window needs all inputs at its size; one without takes any length, and the mask may be left out.
        """
        ...


class Backend(Protocol):
    """Loads stages. `name` is what `--backend` calls it; `detail` says on what it runs (a device, compute units)."""

    name: str

    @property
    def detail(self) -> str: ...

    def load(self, component: Component, stage: str) -> StageRunner:
        """Raises a BackendError or PackageError where the stage cannot be loaded here."""
        ...


class PackageRunner:
    """A package as a stage: a model with MLModel's calling convention, at its one window."""

    device = CPU

    def __init__(self, model: Any, window: int) -> None:
        self.model = model
        self._window = window

    @property
    def window(self) -> int | None:
        return self._window

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        del wanted  # a package computes all its outputs
        outputs = self.model.predict({name: value.detach().float().cpu().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in outputs.items()}


def predict_arrays(runner: StageRunner, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same for arrays."""
    outputs = runner.predict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()})
    return {name: value.detach().cpu().numpy() for name, value in outputs.items()}
