"""Core ML: runs packages through coremltools on macOS. Not yet run on a Mac by this project's authors.

Kept thin: what Core ML says is not believed here, `runtime.guard` checks it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError
from ..library import Component
from .base import Arrays

# ArrayFeatureType.ArrayDataType in coremltools' FeatureTypes.proto
_NUMPY_TYPES: dict[int, type[np.generic]] = {65552: np.float16, 65568: np.float32, 65600: np.float64, 131104: np.int32}


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
        from ..reference.package import open_package

        self.path = path
        description = open_package(path).specification.description
        self._dtypes = {item.name: _NUMPY_TYPES.get(item.type.multiArrayType.dataType, np.float32) for item in description.input}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is raised below
                self._model: Any = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units])
        except Exception as error:
            raise BackendError(f"Core ML could not load {path.name}: {error}") from error
        # A package that Core ML cannot compile, or that is newer than the system, gives a model without a proxy.
        if getattr(self._model, "__proxy__", None) is None:
            reason = getattr(self._model, "_framework_error", None) or "it is newer than this system"
            raise BackendError(f"Core ML could not load {path.name}: {reason}")

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        # Core ML takes numpy's memory as it lies, so every input is a fresh array in C order and of the declared type.
        prepared = {name: np.array(value, dtype=self._dtypes.get(name), order="C") for name, value in inputs.items()}
        try:
            results = self._model.predict(prepared)
        except Exception as error:
            raise BackendError(f"Core ML failed while running {self.path.name}: {error}") from error
        return {name: np.asarray(value) for name, value in results.items()}
