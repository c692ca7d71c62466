"""The one protocol all backends follow. Stages speak torch tensors, so that what PyTorch computes need not leave its device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ...golden_outputs.golden import Golden
    from .torch_backend import TorchBackend

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")
PACKAGE_TYPES = (torch.float32, torch.int32)  # of what packages take and give


class Packaged(Protocol):
    """What has stages in packages, with goldens: a component of a library, or the parts of a network."""

    @property
    def title(self) -> str:
        """For messages."""
        ...

    @property
    def build(self) -> Path:
        """The folder it lies in, which no other has."""
        ...

    @property
    def build_id(self) -> str:
        """What tells one conversion from another."""
        ...

    def package(self, stage: str) -> Path: ...

    def goldens(self, stage: str, cases: tuple[str, ...] | None = None) -> dict[str, Golden]:
        """Recorded cases by name, or those asked for, at the package's shapes. Raises LibraryError."""
        ...

    def precision(self, stage: str) -> str:
        """fp16 or fp32: whose limits the package's outputs are judged by."""
        ...

    def window(self, stage: str) -> int | None:
        """Frames that the package takes; None where it does not count in frames."""
        ...

    def compute_units(self, stage: str) -> str:
        """What the conversion asked for."""
        ...

    def in_torch(self, stage: str, backend: TorchBackend) -> StageRunner:
        """The stage in PyTorch, which defines correct."""
        ...

    def parts(self, stage: str) -> Packaged | None:
        """The parts of a stage that is more than one package; None for one that is a package."""
        ...


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


class PlacedRunner(StageRunner, Protocol):
    """A stage that placement has found a place for, whole or in parts."""

    @property
    def executed_by(self) -> str:
        """Name of what serves."""
        ...

    @property
    def due(self) -> bool:
        """Whether `verify` should be called."""
        ...

    def verify(self) -> bool:
        """Run goldens again; False where what came since the last time is to be computed again."""
        ...


class Backend(Protocol):
    """Loads stages. `name` is what `--backend` calls it; `detail` says on what it runs (a device, compute units)."""

    name: str

    @property
    def detail(self) -> str: ...

    def load(self, component: Packaged, stage: str) -> StageRunner:
        """Raises a BackendError or PackageError where the stage cannot be loaded here."""
        ...


class PackageRunner:
    """A package as a stage: a model with MLModel's calling convention, at its one window."""

    device = CPU

    def __init__(self, model: Any, window: int | None) -> None:
        self.model = model
        self._window = window

    @property
    def window(self) -> int | None:
        return self._window

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        del wanted  # a package computes all its outputs
        outputs = self.model.predict({name: _array(value) for name, value in inputs.items()})
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in outputs.items()}


def _array(value: Tensor) -> np.ndarray:
    """As packages take it; on the CPU in one of their types it is the same memory."""
    value = value.detach()
    return (value if value.dtype in PACKAGE_TYPES else value.float()).cpu().numpy()


def predict_arrays(runner: StageRunner, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same for arrays."""
    outputs = runner.predict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()})
    return {name: value.detach().cpu().numpy() for name, value in outputs.items()}
