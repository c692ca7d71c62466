"""The reference executor as a backend: runs the saved packages on any machine."""

from __future__ import annotations

from .base import Packaged, StageRunner, package_runner


class ReferenceBackend:
    """Runs packages with torch on the CPU, every result rounded to its declared type."""

    name = "reference"
    detail = "cpu"

    def load(self, component: Packaged, stage: str) -> StageRunner:
        from ..reference import ReferenceModel  # brings coremltools in, which the torch backend does not need

        if component.parts(stage) is not None:
            from ..hybrid.stages import StageInParts

            return StageInParts.loaded(component, stage, self.load)
        return package_runner(ReferenceModel(component.package(stage), component.function(stage)), component, stage)
