"""The reference executor as a backend: runs the saved packages on any machine."""

from __future__ import annotations

from ..library import Component
from .base import PackageRunner


class ReferenceBackend:
    """Runs packages with torch on the CPU, every result rounded to its declared type."""

    name = "reference"
    detail = "cpu"

    def load(self, component: Component, stage: str) -> PackageRunner:
        from ..reference import ReferenceModel  # brings coremltools in, which the torch backend does not need

        return PackageRunner(ReferenceModel(component.package(stage)), component.manifest.stages[stage].window)
