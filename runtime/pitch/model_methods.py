"""Estimators that run a pitch model of the library, or the one that comes with rvc-coreml."""

from __future__ import annotations

from .registry import EMBEDDED, PITCH_MODEL, Contour, PitchModels, Progress, Run, Signal, estimator

SUMMARIES = {  # in the order in which users see them
    "rmvpe": "RMVPE: the field's default, robust against accompaniment",
    "fcpe": "FCPE: nearly as good and several times faster",
    "crepe": "CREPE, full: accurate on a clean voice, by far the slowest",
    "crepe-tiny": "CREPE, tiny: forty times smaller than the full model",
    EMBEDDED: "SwiftF0: the smallest, comes with rvc-coreml and needs no download",
}


def _with_model(kind: str) -> Run:
    def run(audio: Signal, models: PitchModels | None = None, progress: Progress | None = None) -> Contour:
        from .neural import estimate_with_model  # torch is loaded for those who ask for a model

        if kind == EMBEDDED and (models is None or kind not in models.available()):
            from .embedded import EmbeddedPitchModels

            return estimate_with_model(EmbeddedPitchModels(), kind, audio, progress)
        assert models is not None  # noqa: S101 - resolve_method has looked
        return estimate_with_model(models, kind, audio, progress)

    return run


for _kind, _summary in SUMMARIES.items():
    estimator(_kind, summary=_summary, needs=PITCH_MODEL)(_with_model(_kind))
