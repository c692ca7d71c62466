"""A model in Core ML, as the worker has it. Not yet run on a Mac."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError
from .compiled_cache import CompiledCache, Entry, compile_alone

COMPILABLE = (".mlpackage", ".mlmodel")  # what coremltools' compile_model takes
COMPILED = ".mlmodelc"
_PLAIN = (str, int, float, dict)  # what a classifier gives
# coremltools imports these where they are installed, for converters that a worker does not need: 3.5 s instead of 1.0 s.
_UNNEEDED = ("torch", "torchvision", "torchaudio", "torchao", "transformers", "sklearn", "xgboost", "tensorflow")


def import_coremltools(*, whole: bool = True) -> Any:
    """coremltools; without the frameworks it converts from where not `whole`, which only a process with one thread may ask for."""
    hidden = [] if whole else [name for name in _UNNEEDED if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(hidden))  # None means: it cannot be imported
    try:
        from ...coremltools_import import ct
    finally:
        for name in hidden:
            modules.pop(name, None)
    return ct


class LoadedModel:
    """A package, or a compiled model, in Core ML. Raises BackendError with Core ML's reason where it is refused."""

    def __init__(
        self, path: Path, compute_units: str, function: str | None, cache: CompiledCache | None, toolchain: str, wait: float
    ) -> None:
        self._ct = import_coremltools()
        self._units = self._ct.ComputeUnit[compute_units]
        self._function = function
        self._entry: Entry | None = None
        start = time.perf_counter()
        if path.suffix == COMPILED:
            self._model: Any = self._load(path)
        elif path.suffix not in COMPILABLE:
            self._model = self._load_package(path)
        else:
            self._model = self._load_compiled(path, cache, toolchain, wait)
        self.seconds = time.perf_counter() - start
        self.from_cache = self._entry is not None and self._entry.cached and not self._entry.fresh

    def make_state(self) -> Any:
        return self._model.make_state()

    def predict(self, inputs: dict[str, Any], state: Any) -> dict[str, Any]:
        """Outputs by name: arrays, and a classifier's plain values."""
        results = self._model.predict(inputs) if state is None else self._model.predict(inputs, state)
        return {name: value if isinstance(value, _PLAIN) else np.asarray(value) for name, value in results.items()}

    def close(self) -> None:
        self._model = None  # before its files go
        if self._entry is not None:
            self._entry.close()

    def _load_compiled(self, path: Path, cache: CompiledCache | None, toolchain: str, wait: float) -> Any:
        """By way of the cache. A damaged compiled model that was found there is dropped, and made once more."""
        kept = cache.open(path, toolchain, self._compile, wait) if cache else compile_alone(path, self._compile)
        try:
            self._entry = kept
            return self._load(kept.path)
        except Exception:
            damaged = not kept.fresh and not kept.intact()
            if not damaged or cache is None:
                kept.close()
                raise
        kept.drop()
        self._entry = compile_alone(path, self._compile) if kept.path.exists() else cache.open(path, toolchain, self._compile, wait)
        try:
            return self._load(self._entry.path)
        except Exception:
            self._entry.close()
            raise

    def _compile(self, package: Path, folder: Path) -> Path:
        del folder  # Core ML chooses its own place, and where it cannot be moved from there it can still be loaded
        try:
            return Path(self._ct.models.utils.compile_model(str(package)))
        except OSError as error:  # Core ML's, not the cache's
            raise BackendError(str(error)) from error

    def _load(self, path: Path) -> Any:
        return self._ct.models.CompiledMLModel(str(path), compute_units=self._units, function_name=self._function)

    def _load_package(self, path: Path) -> Any:
        options: dict[str, Any] = {"function_name": self._function} if self._function else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is raised below
            model = self._ct.models.MLModel(str(path), compute_units=self._units, **options)
        # A package that Core ML cannot compile, or that is newer than the system, gives a model without a proxy.
        if getattr(model, "__proxy__", None) is None:
            raise BackendError(str(getattr(model, "_framework_error", None) or "it is newer than this system"))
        return model
