"""`validate --windows`: what windows cost the stages of a library that attend over a whole clip, on the user's own audio.

The content encoder and the voices' text encoders run in float32 PyTorch from the library's weights, whatever their packages hold.
Only a clip longer than a window can tell what that window costs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import AudioError, UsageError
from ..models.host import ContentHost, VoiceHost
from ..models.hubert import Hubert
from ..models.stages import TextEncoderStage
from ..models.synthesizer import Synthesizer
from .audio.storage import SAMPLE_RATE
from .backends.torch_backend import CONVOLUTION_PIECES, TorchBackend
from .library import CONTENT_ENCODER, Component, Library
from .pitch import coarse_pitch, estimate_pitch
from .segments import HOP
from .window_error import Choice, Compute, WindowError, choices_within, content_encoder_windows, measure_windows, text_encoder_windows

TEXT_ENCODER = "text_encoder"
GLOBAL_STAGES = (CONTENT_ENCODER, TEXT_ENCODER)
# Frames tried beside the library's own: 20 ms of the content encoder, 10 ms of the text encoder.
TRIED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    CONTENT_ENCODER: ((25, 50, 125, 255, 500, 1000, 1500), (5, 10, 25, 50, 100)),
    TEXT_ENCODER: ((50, 100, 250, 500, 928, 1500, 2000, 3000), (10, 25, 50, 100, 200)),
}
FRAME_SECONDS = {CONTENT_ENCODER: 0.02, TEXT_ENCODER: 0.01}
PITCH_METHOD = "dio"  # quick; how good a contour is decides nothing here
MOST_SECONDS = 60.0  # of audio: attention over the whole of it grows with its square, and upstream never attends over more than 52 s
Progress = Callable[[str, float], None]
HEADINGS = ["window", "overlap on either side", "windows", "work", "SNR", "worst frame", "near seams"]


@dataclass(frozen=True)
class StageWindows:
    """One stage's errors over a clip of `frames`; `own` are the windows and contexts of the library's packages."""

    component: str
    stage: str
    frames: int
    rows: tuple[WindowError, ...]
    own: tuple[Choice, ...]

    @property
    def frame_seconds(self) -> float:
        return FRAME_SECONDS[self.stage]

    def is_own(self, row: WindowError) -> bool:
        return (row.window, row.context) in self.own

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**row.as_dict(), "in_library": self.is_own(row)} for row in self.rows]
        return {"component": self.component, "stage": self.stage, "frames": self.frames, "frame_seconds": self.frame_seconds, "rows": rows}


@dataclass(frozen=True)
class WindowReport:
    """Of a library over one clip."""

    library: str
    audio: str
    seconds: float
    stages: tuple[StageWindows, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {"library": self.library, "audio": self.audio, "seconds": self.seconds}
        return {**values, "stages": [stage.as_dict() for stage in self.stages], "notes": list(self.notes)}


def measure_library(
    library: Library,
    samples: NDArray[np.float32],
    audio: str,
    progress: Progress | None = None,
    *,
    stages: Collection[str] | None = None,
    voices: Collection[str] | None = None,
) -> WindowReport:
    """The windows of a library over 16 kHz samples (N,), which `audio` names. `stages` and `voices` limit what is measured.

    Raises UsageError for names that the library lacks and where it has no content encoder, AudioError for a clip that is too short
    or longer than MOST_SECONDS.
    """
    chosen = tuple(stages or GLOBAL_STAGES)
    others = [name for name in chosen if name not in GLOBAL_STAGES]
    if others:
        raise UsageError(f"{others[0]} has windows without error: only {' and '.join(GLOBAL_STAGES)} attend over a whole clip")
    seconds = len(samples) / SAMPLE_RATE
    if seconds > MOST_SECONDS:
        raise AudioError(f"{audio} lasts {seconds:.1f} s: windows are measured on at most {MOST_SECONDS:.0f}, cut a part out of it")
    names = list(voices or library.voice_names()) if TEXT_ENCODER in chosen else []
    components = [library.voice(name) for name in names]
    run = _Run(library.content_encoder(), samples, audio, progress, len(components) + 1)
    found = [run.content_encoder()] if CONTENT_ENCODER in chosen else []
    found += [run.text_encoder(component) for component in components]
    return WindowReport(str(library.path), audio, seconds, tuple(found), tuple(_notes(audio, seconds, found)))


def row_cells(row: WindowError, frame_seconds: float) -> list[str]:
    """One choice for a table: window, overlap, windows, work, SNR, worst frame and when, seams."""
    place = f"{row.window} ({row.window * frame_seconds:.2f} s)"
    if row.fits:
        return [place, str(row.context), "1", "", "holds the clip", "", ""]
    worst = f"{row.worst_frame_db:.1f} dB at {row.worst_frame * frame_seconds:.2f} s" if np.isfinite(row.worst_frame_db) else "equal"
    return [place, str(row.context), str(row.windows), f"{row.work:.2f}", _shown(row.snr_db), worst, _shown(row.seams_db)]


def _shown(value: float) -> str:
    return f"{value:.1f} dB" if np.isfinite(value) else "equal"


def _notes(audio: str, seconds: float, stages: Sequence[StageWindows]) -> list[str]:
    """What the clip can tell and what not."""
    notes = [f"{audio} lasts {seconds:.1f} s: it can tell about shorter windows only"]
    for stage in stages:
        held = [row.window for row in stage.rows if row.fits and stage.is_own(row)]
        if held:
            needed = min(held) * stage.frame_seconds
            notes.append(
                f"{stage.component}, {stage.stage}: a window of the library holds all of it; give --audio with more than {needed:.1f} s"
            )
    return notes


class _Run:
    """The clip, and its features once they are known."""

    def __init__(self, content: Component, samples: NDArray[np.float32], audio: str, progress: Progress | None, parts: int) -> None:
        self.content, self.samples, self.progress, self.parts = content, samples, progress, parts
        self.done = 0.0
        network = TorchBackend("cpu").network(content)
        assert isinstance(network, Hubert), "a content encoder's network"  # noqa: S101
        self.hubert = network
        self.frames = network.config.frames(len(samples)) if len(samples) >= network.config.receptive_field else 0
        if self.frames < 2:
            raise AudioError(f"{audio} is too short to be cut into windows")
        self._convolved: Tensor | None = None
        self._pitch: NDArray[np.int64] | None = None

    @torch.inference_mode()
    def convolved(self) -> Tensor:
        """(1, F, hidden) behind the convolutions, with GroupNorm's statistics of the whole clip."""
        if self._convolved is None:
            waveform = torch.from_numpy(np.array(self.samples, np.float32))
            norm = ContentHost.of(self.hubert).norm(waveform)
            extractor, piece = self.hubert.feature_extractor, CONVOLUTION_PIECES["cpu"]
            self._convolved = self.hubert.project(extractor.with_statistics(norm.apply(waveform)[None], norm.scale, norm.shift, piece))
        return self._convolved

    def content_encoder(self) -> StageWindows:
        return self._measured(self.content, CONTENT_ENCODER, self.frames, content_encoder_windows(self.hubert, self.convolved()))

    def text_encoder(self, component: Component) -> StageWindows:
        network = TorchBackend("cpu").network(component)
        assert isinstance(network, Synthesizer), "a voice's network"  # noqa: S101
        frames = min(len(self.samples) // HOP, 2 * self.frames)
        with torch.inference_mode():
            version = component.manifest.details["version"]
            phone = self.hubert.encode(self.convolved(), version).repeat_interleave(2, dim=1)[:, :frames]
            embedding = VoiceHost.of(network).pitch_embedding(self.pitch()[:frames]) if network.has_f0 else None
        stage = TextEncoderStage(network, frames).eval()
        return self._measured(component, TEXT_ENCODER, frames, text_encoder_windows(stage, phone, embedding))

    def pitch(self) -> NDArray[np.int64]:
        """Coarse pitch of the clip's frames."""
        if self._pitch is None:
            self._pitch = coarse_pitch(estimate_pitch(self.samples, PITCH_METHOD))
        return self._pitch

    def _measured(self, component: Component, stage: str, frames: int, compute: Compute) -> StageWindows:
        entries = [component.manifest.stages[name] for name in component.windows(stage).values()]
        own = tuple((entry.window, entry.context) for entry in entries)
        choices = choices_within(frames, *TRIED[stage], own)
        before = self.done

        def done() -> None:
            self.done += 1 / len(choices)
            if self.progress:
                self.progress(f"{component.title}, {stage}", self.done / self.parts)

        rows = measure_windows(compute, frames, choices, done)
        self.done = before + 1
        return StageWindows(component.title, stage, frames, tuple(rows), own)
