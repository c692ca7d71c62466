"""Core ML: runs packages through coremltools on macOS. Not yet run on a Mac by this project's authors.

Kept thin: what Core ML says is not believed here, `runtime.guard` checks it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError, PackageError, UsageError
from ..library import Component
from .base import PackageRunner

_PLAIN = (str, int, dict)  # what a classifier gives


def coreml_available() -> bool:
    """Whether Core ML can predict on this machine."""
    return sys.platform == "darwin"


class CoreMLBackend:
    """Loads packages with the compute units their conversion asked for, which a package itself does not store."""

    name = "coreml"
    detail = "compute units as recorded, ALL by default"

    def load(self, component: Component, stage: str) -> PackageRunner:
        entry = component.manifest.stages[stage]
        return PackageRunner(CoreMLModel(component.package(stage), entry.compute_units), entry.window)


class CoreMLModel:
    """One package in Core ML. Raises BackendError where Core ML is absent or refuses the package."""

    def __init__(self, path: Path, compute_units: str, function: str | None = None) -> None:
        if not coreml_available():
            raise BackendError("Core ML can run only on macOS; use --backend reference or torch here")
        from ...coremltools_import import ct
        from ..reference.features import package_features
        from ..reference.package import open_package
        from ..reference.program import DTYPES

        if compute_units not in ct.ComputeUnit.__members__:
            raise UsageError(f"there are no compute units {compute_units!r}; choose {', '.join(ct.ComputeUnit.__members__)}")
        self.path = path
        _program, features = package_features(open_package(path), function)
        self.inputs, self.outputs, self.states = features.inputs, features.outputs, features.states
        options: dict[str, Any] = {"function_name": function} if function else {}
        self._dtypes = {name: DTYPES[feature.dtype][1] for name, feature in self.inputs.items() if feature.image is None}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is raised below
                self._model: Any = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units], **options)
        except Exception as error:
            raise BackendError(f"Core ML could not load {path.name}: {error}") from error
        # A package that Core ML cannot compile, or that is newer than the system, gives a model without a proxy.
        if getattr(self._model, "__proxy__", None) is None:
            reason = getattr(self._model, "_framework_error", None) or "it is newer than this system"
            raise BackendError(f"Core ML could not load {path.name}: {reason}")

    def make_state(self) -> Any:
        """New states, Core ML's own. Raises PackageError for a model that has none, BackendError before macOS 15."""
        if not self.states:
            raise PackageError(f"{self.path} has no states")
        try:
            return self._model.make_state()
        except Exception as error:
            raise BackendError(f"Core ML could not make states for {self.path.name}: {error}") from error

    def predict(self, data: Any, state: Any = None) -> Any:
        """Outputs by name for a dict of arrays; a list of dicts gives a list of results."""
        if isinstance(data, list):
            if state is not None:
                raise PackageError(f"{self.path}: a state goes with one prediction, not with a list of them")
            return [self.predict(item) for item in data]
        # Core ML takes numpy's memory as it lies, so every input is a fresh array in C order and of the declared type.
        prepared = {
            name: np.array(value, dtype=self._dtypes[name], order="C") if name in self._dtypes else value for name, value in data.items()
        }
        try:
            results = self._model.predict(prepared) if state is None else self._model.predict(prepared, state)
        except Exception as error:
            raise BackendError(f"Core ML failed while running {self.path.name}: {error}") from error
        return {name: value if isinstance(value, _PLAIN) else np.asarray(value) for name, value in results.items()}
