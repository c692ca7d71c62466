"""A package in Core ML as this side sees it: its interface, its predictions, its states."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError, PackageError, UsageError, WorkerFailure

if TYPE_CHECKING:
    from .client import CoreMLWorker

COMPUTE_UNITS = ("ALL", "CPU_AND_GPU", "CPU_ONLY", "CPU_AND_NE")  # coremltools.ComputeUnit
QUICK_SECONDS = 30.0  # for calls that compute nothing
AGAIN_SECONDS, AGAIN_FACTOR = 10.0, 10.0  # at least, and times what it took before: for a load after the worker was replaced


class RemoteModel:
    """A package in Core ML, with MLModel's calling convention.

    `prediction_limit`: seconds for one prediction, None for the worker's. `load_seconds` is what loading took, compiling
    included unless `compiled_from_cache`. When its worker was lost, it is loaded again by the next prediction, and has
    more time for that than a first load that was given little.
    """

    def __init__(
        self, worker: CoreMLWorker, package: Path, compute_units: str, function: str | None, limit: float | None, cached: bool
    ) -> None:
        if compute_units not in COMPUTE_UNITS:
            raise UsageError(f"there are no compute units {compute_units!r}; choose {', '.join(COMPUTE_UNITS)}")
        self.path = package
        self.compute_units = compute_units
        self.prediction_limit: float | None = None
        self.load_seconds = 0.0
        self.compiled_from_cache = False
        self._worker = worker
        self._function = function
        self._limit = limit
        self._cached = cached
        self._life = 0
        self._number = 0
        self._finalizer: weakref.finalize | None = None
        features, self._dtypes = _features(package, function)  # what cannot be read is not Core ML's refusal
        self.inputs, self.outputs, self.states = features.inputs, features.outputs, features.states
        self._load()

    def predict(self, inputs: Any, state: RemoteState | None = None, *, limit: float | None = None) -> Any:
        """Outputs by name for a dict of arrays; a list of dicts gives a list of results.

        Raises WorkerFailure, also where a state was lost with its worker.
        """
        if isinstance(inputs, list):
            if state is not None:
                raise PackageError(f"{self.path}: a state goes with one prediction, not with a list of them")
            return [self.predict(item, limit=limit) for item in inputs]
        from ..reference.features import check_names

        check_names(self.path, inputs, self.inputs)
        prepared = {
            name: np.asarray(value, dtype=self._dtypes[name]) if name in self._dtypes else value
            for name, value in inputs.items()
            if value is not None
        }
        limit = limit or self.prediction_limit or self._worker.limits.prediction_seconds
        doing = f"running {self.path.name}"
        with self._worker.lock, refused("failed", f"Core ML failed while {doing}"):
            if state is None:
                self._reload()
            elif state.life != self._life or state.life != self._worker.life:
                raise WorkerFailure("died", f"the state of {self.path.name} was lost with Core ML's process; make a new one")
            arguments = {"model": self._number, "state": None if state is None else state.number}
            return self._worker.call("predict", arguments, doing, limit, prepared, self._life)[1]

    def make_state(self) -> RemoteState:
        """New states, which live in the worker. Raises PackageError for a model without, BackendError before macOS 15."""
        if not self.states:
            raise PackageError(f"{self.path} has no states")
        number = self._worker.number()
        doing = f"making states for {self.path.name}"
        with self._worker.lock, refused("failed", f"Core ML could not make states for {self.path.name}"):
            self._reload()
            self._worker.call("make_state", {"model": self._number, "state": number}, doing, QUICK_SECONDS, life=self._life)
        return RemoteState(self._worker, self._life, number, self.path.name)

    def unload(self) -> None:
        """Free what Core ML holds of it; another prediction loads it again."""
        if self._finalizer is not None:
            self._finalizer()
        self._life = 0
        self._worker.tidy()

    def _reload(self) -> None:
        if self._life != self._worker.life:
            self._load()

    def _load(self) -> None:
        worker, limit = self._worker, self._limit or self._worker.limits.load_seconds
        if self.load_seconds:
            limit = max(limit, min(worker.limits.load_seconds, max(AGAIN_SECONDS, AGAIN_FACTOR * self.load_seconds)))
        number, cache = worker.number(), worker.cache if self._cached else None
        arguments = {
            "model": number,
            "path": str(self.path.resolve()),
            "compute_units": self.compute_units,
            "function": self._function,
            "cache": None if cache is None else (str(cache.folder.absolute()), cache.max_bytes),
            "wait": limit,
        }
        with worker.lock, refused("refused", f"Core ML could not load {self.path.name}"):
            life = worker.life
            facts, _arrays = worker.call("load", arguments, f"loading {self.path.name} with {self.compute_units}", limit, life=life)
        self._life, self._number = life, number
        self.load_seconds, self.compiled_from_cache = facts["seconds"], facts["from_cache"]
        self._finalizer = weakref.finalize(self, worker.release, "model", number)
        self._finalizer.atexit = False
        for line in facts["notices"]:
            worker.remark(line)


class RemoteState:
    """The states of a model between predictions, held by the worker, as MLState."""

    def __init__(self, worker: CoreMLWorker, life: int, number: int, name: str) -> None:
        self.life, self.number = life, number
        self._worker = worker
        self._name = name
        weakref.finalize(self, worker.release, "state", number).atexit = False

    def read_state(self, name: str) -> np.ndarray:
        """A copy of a state's value."""
        doing = f"reading a state of {self._name}"
        with refused("failed", f"Core ML failed while {doing}"):
            arrays = self._worker.call("read_state", {"state": self.number, "name": name}, doing, QUICK_SECONDS, life=self.life)[1]
        return arrays["value"]

    def write_state(self, name: str, value: np.ndarray) -> None:
        doing = f"writing a state of {self._name}"
        with refused("failed", f"Core ML failed while {doing}"):
            values = {"value": np.asarray(value, dtype=np.float32)}  # coremltools takes no half precision here
            self._worker.call("write_state", {"state": self.number, "name": name}, doing, QUICK_SECONDS, values, self.life)


def _features(package: Path, function: str | None) -> tuple[Any, dict[str, Any]]:
    """A package's interface, and numpy's types for its tensor inputs."""
    from ..reference.features import package_features  # brings torch in, which asking for a worker need not
    from ..reference.package import open_package
    from ..reference.program import DTYPES

    _program, features = package_features(open_package(package), function)
    return features, {name: DTYPES[feature.dtype][1] for name, feature in features.inputs.items() if feature.image is None}


@contextlib.contextmanager
def refused(kind: str, doing: str) -> Iterator[None]:
    """Within it, Core ML's own reason becomes a WorkerFailure of this kind."""
    try:
        yield
    except WorkerFailure:
        raise
    except BackendError as error:
        raise WorkerFailure(kind, f"{doing}: {error}") from error
