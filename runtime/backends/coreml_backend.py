"""Core ML: runs packages in a worker process on macOS. Not yet run on a Mac by this project's authors.

Kept thin: what Core ML says is not believed here, `runtime.placement` checks it.
"""

from __future__ import annotations

import sys

from ...errors import BackendError
from ..worker.client import CoreMLWorker, RemoteModel, shared_worker
from .base import Packaged, StageRunner, package_runner


def coreml_available() -> bool:
    """Whether Core ML can predict on this machine."""
    return sys.platform == "darwin"


def require_coreml() -> None:
    """Raises BackendError off a Mac."""
    if not coreml_available():
        raise BackendError("Core ML can run only on macOS; use --backend reference or torch here")


class CoreMLBackend:
    """Loads packages with these compute units, or with those their conversion asked for, which a package itself does not store.

    `worker`: None for the one that this process shares.
    """

    name = "coreml"

    def __init__(self, compute_units: str | None = None, worker: CoreMLWorker | None = None) -> None:
        self.compute_units = compute_units
        self.worker = worker

    @property
    def detail(self) -> str:
        return self.compute_units or "compute units as recorded, ALL by default"

    def load(self, component: Packaged, stage: str, limit: float | None = None) -> StageRunner:
        """`limit`: seconds for a package, None for the worker's. Raises WorkerFailure, BackendError off a Mac."""
        require_coreml()
        if component.parts(stage) is not None:
            from ..hybrid.stages import StageInParts

            return StageInParts.loaded(component, stage, lambda parts, name: self.load(parts, name, limit))
        worker = self.worker or shared_worker()
        units = self.compute_units or component.compute_units(stage)
        model: RemoteModel = worker.load(component.package(stage), units, component.function(stage), limit=limit)
        return package_runner(model, component, stage)
