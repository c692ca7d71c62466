"""What windows cost a stage that attends over a whole clip: its outputs joined from windows, against those of the clip at once.

Windows are planned and blended as the pipeline does it, and run in float32 PyTorch at their own length, which is what a masked
package computes; so all that differs is how far a frame can see. Flow and decoder see a known number of frames and have no such
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..golden_outputs.metrics import snr_db
from ..models.hubert import Hubert
from ..models.stages import TextEncoderStage
from .windows import Window, blend_windows, plan_windows

NEAR = 5  # frames on either side of a seam that count as its own
Compute = Callable[[Window], Mapping[str, Tensor]]  # outputs (1, channels, valid) of a window by name
Choice = tuple[int, int]  # frames of a window, and of the context on either side of a seam


@dataclass(frozen=True)
class WindowError:
    """One choice of window and context. `seams` are joins of `windows` windows, which compute `work` frames for one of the clip's.

    `snr_db` is mean-removed and that of the worst output, infinite where one window holds the clip. The other two are dB of the signal
    (its RMS over all frames) over the error of single frames: at the worst frame, `worst_frame`, and on average near the seams.
    """

    window: int
    context: int
    windows: int
    work: float
    snr_db: float
    worst_frame_db: float
    worst_frame: int
    seams_db: float

    @property
    def fits(self) -> bool:
        """Whether one window holds the clip, so that there is nothing to measure."""
        return self.windows == 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None."""
        return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in asdict(self).items()}


def measure_windows(compute: Compute, frames: int, choices: Iterable[Choice], done: Callable[[], None] | None = None) -> list[WindowError]:
    """The error of every choice over a clip of `frames`, which is computed once as a whole. `done` is called after each.

    Raises ValueError where a window is all context.
    """
    whole = {name: value.numpy() for name, value in compute(Window(0, frames, 0, frames)).items()}
    measured = []
    for window, context in choices:
        measured.append(_measured(compute, whole, plan_windows(0, frames, window, context), window, context))
        if done:
            done()
    return measured


def text_encoder_windows(stage: TextEncoderStage, phone: Tensor, embedding: Tensor | None) -> Compute:
    """phone (1, T, D) and the pitch embedding (1, T, hidden), None for a voice without f0, at 100 frames a second."""

    @torch.inference_mode()
    def compute(window: Window) -> dict[str, Tensor]:
        part = slice(window.start, window.stop)
        inputs = {"phone": phone[:, part]}
        if embedding is not None:
            inputs["pitch_embedding"] = embedding[:, part]
        return stage.compute(inputs)

    return compute


def content_encoder_windows(hubert: Hubert, convolved: Tensor) -> Compute:
    """`convolved` (1, F, hidden) is the whole clip through the convolutions and the projection, 50 frames a second.

    They see no further than a frame (and GroupNorm's statistics are the clip's in any window), so windows begin behind them.
    """
    config = hubert.config

    @torch.inference_mode()
    def compute(window: Window) -> dict[str, Tensor]:
        last, middle = hubert.encoder(convolved[:, window.start : window.stop], (config.layers, config.v1_layer))
        outputs = {"features_v2": last.transpose(1, 2)}
        if config.projection is not None:
            outputs["features_v1"] = hubert.final_proj(middle).transpose(1, 2)
        return outputs

    return compute


def choices_within(frames: int, windows: Sequence[int], contexts: Sequence[int], own: Iterable[Choice] = ()) -> list[Choice]:
    """Windows shorter than the clip with every context that leaves half of them, and whatever is in use, in order."""
    tried = {(window, context) for window in windows for context in contexts if window < frames and 4 * context <= window}
    return sorted(tried | set(own))


def _measured(compute: Compute, whole: Mapping[str, np.ndarray], windows: Sequence[Window], window: int, context: int) -> WindowError:
    """The outputs joined from windows against the whole ones (1, channels, frames)."""
    frames = windows[-1].stop
    if len(windows) == 1:
        return WindowError(window, context, 1, window / frames, np.inf, np.inf, 0, np.inf)
    names, widths = list(whole), [value.shape[1] for value in whole.values()]
    joined = blend_windows(windows, lambda part: _stacked(compute(part), names)).split(widths, dim=1)
    near = _near([part.keep_to for part in windows[:-1]], frames)
    found = [_compared(whole[name], value.numpy(), near) for name, value in zip(names, joined, strict=True)]
    worst_frame_db, worst_frame = min((item[1], item[2]) for item in found)
    work = sum(part.valid for part in windows) / frames
    return WindowError(
        window, context, len(windows), work, min(item[0] for item in found), worst_frame_db, worst_frame, min(item[3] for item in found)
    )


def _stacked(outputs: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([outputs[name] for name in names], dim=1)


def _near(seams: Sequence[int], frames: int) -> np.ndarray:
    """Places of the frames around the seams."""
    return np.unique(np.clip(np.concatenate([np.arange(seam - NEAR, seam + NEAR) for seam in seams]), 0, frames - 1))


def _compared(whole: np.ndarray, joined: np.ndarray, near: np.ndarray) -> tuple[float, float, int, float]:
    """SNR, dB at the worst frame, that frame, and dB near the seams, of one output (1, channels, frames)."""
    signal = whole[0].astype(np.float64)
    signal = float(np.mean((signal - signal.mean(axis=1, keepdims=True)) ** 2))
    errors = np.mean((joined[0].astype(np.float64) - whole[0]) ** 2, axis=0)
    worst = int(np.argmax(errors))
    return snr_db(whole, joined), _decibels(signal, errors[worst]), worst, _decibels(signal, float(np.mean(errors[near])))


def _decibels(signal: float, error: float) -> float:
    if error == 0:
        return np.inf
    return 10 * float(np.log10(signal / error)) if signal > 0 else -np.inf
