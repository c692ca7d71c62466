"""The one protocol all backends follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ..library import Component

Arrays = dict[str, np.ndarray]


class StageRunner(Protocol):
    """A loaded stage."""

    def predict(self, inputs: Mapping[str, np.ndarray], /) -> Arrays:
        """One window: float32 arrays by name, in and out, with the shapes of the stage."""
        ...


class Backend(Protocol):
    """Loads stages. `name` is what `--backend` calls it; `detail` says on what it runs (a device, compute units)."""

    name: str

    @property
    def detail(self) -> str: ...

    def load(self, component: Component, stage: str) -> StageRunner:
        """Raises a BackendError or PackageError where the stage cannot be loaded here."""
        ...
