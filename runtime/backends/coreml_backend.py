"""Core ML: runs packages through coremltools on macOS. Not yet run on a Mac by this project's authors.

Kept thin: what Core ML says is not believed here, `runtime.guard` checks it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError
from ..library import Component
from .base import Arrays


def coreml_available() -> bool:
    """Whether Core ML can predict on this machine."""
    return sys.platform == "darwin"


class CoreMLBackend:
    """Loads packages with the compute units their conversion asked for, which a package itself does not store."""

    name = "coreml"
    detail = "compute units as recorded, ALL by default"

    def load(self, component: Component, stage: str) -> CoreMLModel:
        return CoreMLModel(component.package(stage), component.manifest.stages[stage].compute_units)


class CoreMLModel:
    """One package in Core ML. Raises BackendError where Core ML is absent or refuses the package."""

    def __init__(self, path: Path, compute_units: str) -> None:
        if not coreml_available():
            raise BackendError("Core ML can run only on macOS; use --backend reference or torch here")
        from ...coremltools_import import ct

        self.path = path
        try:
            self._model: Any = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units])
        except Exception as error:
            raise BackendError(f"Core ML could not load {path.name}: {error}") from error

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        try:
            results = self._model.predict(dict(inputs))
        except Exception as error:
            raise BackendError(f"Core ML failed while running {self.path.name}: {error}") from error
        return {name: np.asarray(value) for name, value in results.items()}
