"""Estimators without weights: WORLD's harvest and dio, and Praat's autocorrelation.

Up to five minutes they see the clip in one piece, as upstream does; beyond that they work in blocks with context, so
that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .constants import F0_MAX, F0_MIN, FRAME_RATE, HOP, SAMPLE_RATE, frames_of
from .registry import PARSELMOUTH, Contour, PitchModels, Progress, Run, Signal, estimator

WHOLE_SECONDS = 300  # longer clips are cut
BLOCK_SECONDS, OVERLAP_SECONDS = 60, 2  # into these, with context on either side
FRAME_MS = 1000.0 * HOP / SAMPLE_RATE
VOICING_THRESHOLD = 0.6  # RVC-WebUI get_f0(), pm
PRAAT_PERIODS = 3  # Praat's window holds three periods of the lowest pitch; a shorter sound is refused

Samples = NDArray[np.float64]


def in_blocks(estimate: Callable[[Samples], Contour]) -> Run:
    """Samples of a clip of any length, at once where it is short enough, else block by block."""

    @wraps(estimate)
    def run(audio: Signal, models: PitchModels | None = None, progress: Progress | None = None) -> Contour:
        del models
        frames = frames_of(len(audio))
        pitch = np.zeros(frames)
        for start, stop, first, last in _blocks(frames):
            found = estimate(np.ascontiguousarray(audio[first * HOP : last * HOP], dtype=np.float64))
            wanted = found[start - first : stop - first]
            pitch[start : start + len(wanted)] = wanted
            if progress:
                progress(stop / frames)
        return pitch

    return run


def _blocks(frames: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, first, last): frames to keep, and the frames of audio to look at for them."""
    if frames <= WHOLE_SECONDS * FRAME_RATE + 1:
        yield 0, frames, 0, frames
        return
    length, overlap = BLOCK_SECONDS * FRAME_RATE, OVERLAP_SECONDS * FRAME_RATE
    start = 0
    while start < frames:
        stop = frames if frames - start <= length + overlap else start + length
        yield start, stop, max(0, start - overlap), stop + overlap
        start = stop


@estimator("harvest", summary="WORLD's Harvest, refined by StoneMask: robust and slow, needs no download", median=True)
@in_blocks
def harvest(audio: Samples) -> Contour:
    import pyworld

    pitch, times = pyworld.harvest(audio, SAMPLE_RATE, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=FRAME_MS)
    return pyworld.stonemask(audio, pitch, times, SAMPLE_RATE)


@estimator("dio", summary="WORLD's DIO, refined by StoneMask: several times faster than harvest, more octave errors")
@in_blocks
def dio(audio: Samples) -> Contour:
    import pyworld

    pitch, times = pyworld.dio(audio, SAMPLE_RATE, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=FRAME_MS)
    return pyworld.stonemask(audio, pitch, times, SAMPLE_RATE)


@estimator("pm", summary="Praat's autocorrelation: fast, needs the extra 'praat' (praat-parselmouth, GPL)", needs=PARSELMOUTH)
@in_blocks
def pm(audio: Samples) -> Contour:
    """Praat finds fewer frames than the clip has; the rest is split between both ends, as RVC-WebUI does."""
    try:
        import parselmouth  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError("pitch method 'pm' needs praat-parselmouth (GPL): install it with 'pip install \"rvc-coreml[praat]\"'") from error
    frames = len(audio) // HOP
    if len(audio) * F0_MIN < PRAAT_PERIODS * SAMPLE_RATE:
        return np.zeros(frames)
    sound = parselmouth.Sound(audio, SAMPLE_RATE)
    found = sound.to_pitch_ac(
        time_step=FRAME_MS / 1000, voicing_threshold=VOICING_THRESHOLD, pitch_floor=F0_MIN, pitch_ceiling=F0_MAX
    ).selected_array["frequency"]
    left = max(0, (frames - len(found) + 1) // 2)
    return np.pad(found, (left, max(0, frames - len(found) - left)))
