"""What the cost model says of a whole song: every stage's windows over the segments that `infer` would cut, added up.

A model, not a measurement. The host's work (reading, retrieval, the source, joining) is not in it, nor is loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...models.flow import RECEPTIVE_FIELD
from ...models.stages import ATTENTION_OVERLAP
from ...runtime.segments import CENTER, LONGEST, PAD, SAMPLE_RATE
from ...runtime.windows import plan_windows
from .assess import Assessment

SECONDS = 180
FRAMES_PER_SECOND = {"content_encoder": 50}  # 20 ms; all other stages have frames of 10 ms
WITHOUT_PADS = frozenset({"decoder"})  # computes the kept region only
CONTEXTS = {**ATTENTION_OVERLAP, "flow": RECEPTIVE_FIELD, "decoder": 14, "pitch": 100}  # frames; the manifest has each network's own


@dataclass(frozen=True)
class StageSong:
    """A stage over a song: how many windows, and seconds by unit, for dispatches and transfers."""

    window: int
    windows: int
    seconds_per_window: float
    by_unit: dict[str, float]
    overhead: float

    @property
    def seconds(self) -> float:
        return self.windows * self.seconds_per_window


@dataclass(frozen=True)
class SongPrediction:
    """`stages` add up to `total`; `others` are further windows of the same stages (`STAGE@FRAMES`), which `infer` may take instead."""

    audio_seconds: float
    segments: int
    stages: dict[str, StageSong]
    others: dict[str, StageSong]
    is_model: bool = True

    @property
    def total(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio."""
        return self.total / self.audio_seconds


def predict_song(
    stages: Mapping[str, Assessment], windows: Mapping[str, int], seconds: float = SECONDS, contexts: Mapping[str, int] | None = None
) -> SongPrediction:
    """`windows` and `contexts` in frames by stage. `infer` cuts a song into pieces of about 38 s with a pad of 1 s at both ends."""
    kept = _segments(seconds)
    known = {**CONTEXTS, **(contexts or {})}
    found = {name: _stage(name, assessment, windows[name], known, kept) for name, assessment in stages.items()}
    first = {name: song for name, song in found.items() if "@" not in name or name.split("@")[0] not in found}
    return SongPrediction(seconds, len(kept), first, {name: song for name, song in found.items() if name not in first})


def _segments(seconds: float) -> list[float]:
    """Seconds of each segment, its pads aside."""
    if seconds + 0.01 <= LONGEST / SAMPLE_RATE:
        return [seconds]
    step = CENTER / SAMPLE_RATE
    cuts = [step * index for index in range(1, int(seconds / step) + 1) if step * index < seconds]
    return [stop - start for start, stop in zip([0.0, *cuts], [*cuts, seconds], strict=True)]


def _stage(name: str, assessment: Assessment, window: int, contexts: Mapping[str, int], kept: list[float]) -> StageSong:
    stage = name.split("@")[0]
    context = min(contexts.get(name, contexts.get(stage, 0)), (window - 1) // 2)
    rate = FRAMES_PER_SECOND.get(stage, 100)
    pad = 0 if stage in WITHOUT_PADS else 2 * PAD / SAMPLE_RATE
    count = sum(len(plan_windows(0, max(1, round((part + pad) * rate)), window, context)) for part in kept)
    times = assessment.times
    return StageSong(window, count, times.total, dict(times.by_unit), times.dispatch_seconds + times.transfer_seconds)
