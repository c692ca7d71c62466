"""The one protocol all backends follow. Stages speak torch tensors, so that what PyTorch computes need not leave its device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import PackageError
from ...models.arrangement import Arrangement

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

    def function(self, stage: str) -> str | None:
        """The package's function that is the stage; None where it has only one."""
        ...

    def arrangement(self, stage: str) -> Arrangement | None:
        """How the package's tensors are made of the stage's; None where they are the same."""
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


class ArrangedRunner(PackageRunner):
    """A package in another layout: takes and gives the stage's own tensors."""

    def __init__(self, model: Any, window: int | None, arrangement: Arrangement) -> None:
        super().__init__(model, window)
        self.arrangement = arrangement

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        """Raises PackageError where inputs are missing or of another shape."""
        return leaving(self.arrangement, super().predict(entering(self.arrangement, inputs), wanted))


def entering(arrangement: Arrangement, inputs: Mapping[str, Tensor]) -> Tensors:
    """What a package takes, of a stage's inputs. Raises PackageError where one is missing or of another shape."""
    try:
        return arrangement.enter(inputs)
    except KeyError as error:
        raise PackageError(f"the input {error.args[0]!r} is missing") from error
    except ValueError as error:
        raise PackageError(f"an input does not fit the package: {error}") from error


def leaving(arrangement: Arrangement, outputs: Mapping[str, Tensor]) -> Tensors:
    """A stage's outputs, of what a package gives. Raises PackageError where one is missing or of another shape."""
    try:
        return arrangement.leave(outputs)
    except (KeyError, ValueError) as error:
        raise PackageError(f"the package gives other outputs than its library says ({error})") from error


def package_runner(model: Any, component: Packaged, stage: str) -> PackageRunner:
    """A loaded package as its stage, whatever its layout."""
    arrangement = component.arrangement(stage)
    if arrangement is None:
        return PackageRunner(model, component.window(stage))
    return ArrangedRunner(model, component.window(stage), arrangement)


def _array(value: Tensor) -> np.ndarray:
    """As packages take it; on the CPU in one of their types it is the same memory."""
    value = value.detach()
    return (value if value.dtype in PACKAGE_TYPES else value.float()).cpu().numpy()


def predict_arrays(runner: StageRunner, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same for arrays."""
    outputs = runner.predict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()})
    return {name: value.detach().cpu().numpy() for name, value in outputs.items()}
