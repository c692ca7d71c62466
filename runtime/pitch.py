"""Pitch: estimators behind one registry, and the two forms in which a voice takes it.

An estimator turns 16 kHz audio into Hz at 100 frames a second, 0 where unvoiced. Those here come from WORLD and need
no download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

SAMPLE_RATE = 16000
HOP = 160  # samples between frames: 10 ms
F0_MIN, F0_MAX = 50.0, 1100.0  # Hz, RVC-WebUI's search range
MEL_BINS = 254  # coarse pitch spreads them over 1..255
BLOCK_SECONDS, OVERLAP_SECONDS = 60, 2  # long clips are estimated in blocks, with context on either side
Signal = NDArray[np.floating]
Estimator = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Function = TypeVar("Function", bound=Estimator)
ESTIMATORS: dict[str, Estimator] = {}


def estimator(name: str) -> Callable[[Function], Function]:
    """Register an estimator: float64 audio (N,) -> Hz (frames,). Raises ValueError for a name taken already."""

    def register(function: Function) -> Function:
        if name in ESTIMATORS:
            raise ValueError(f"pitch estimator {name!r} is registered twice")
        ESTIMATORS[name] = function
        return function

    return register


@estimator("harvest")
def harvest(audio: NDArray[np.float64]) -> NDArray[np.float64]:
    """WORLD's Harvest, refined by StoneMask: robust, the slower of the two."""
    import pyworld

    pitch, times = pyworld.harvest(audio, SAMPLE_RATE, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=10.0)
    return pyworld.stonemask(audio, pitch, times, SAMPLE_RATE)


@estimator("dio")
def dio(audio: NDArray[np.float64]) -> NDArray[np.float64]:
    """WORLD's DIO, refined by StoneMask: several times faster, more octave errors."""
    import pyworld

    pitch, times = pyworld.dio(audio, SAMPLE_RATE, f0_floor=F0_MIN, f0_ceil=F0_MAX, frame_period=10.0)
    return pyworld.stonemask(audio, pitch, times, SAMPLE_RATE)


def estimate_pitch(audio: Signal, method: str, progress: Callable[[float], None] | None = None) -> NDArray[np.float64]:
    """Hz for each 10 ms of 16 kHz audio (N,): N // 160 + 1 frames. Raises UsageError for an unknown method.

    Clips beyond a minute are estimated in blocks of one minute with two seconds of context, so memory stays bounded.
    """
    if method not in ESTIMATORS:
        raise UsageError(f"pitch method {method!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
    frames = len(audio) // HOP + 1
    pitch = np.zeros(frames)
    for start, stop, first, last in _blocks(frames):
        block = np.ascontiguousarray(audio[first * HOP : last * HOP], dtype=np.float64)
        found = ESTIMATORS[method](block)
        wanted = found[start - first : stop - first]
        pitch[start : start + len(wanted)] = wanted
        if progress:
            progress(stop / frames)
    return np.nan_to_num(pitch, nan=0.0, posinf=0.0, neginf=0.0)


def _blocks(frames: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, first, last): frames to keep, and the frames of audio to look at for them."""
    length, overlap = BLOCK_SECONDS * 100, OVERLAP_SECONDS * 100
    start = 0
    while start < frames:
        stop = frames if frames - start <= length + overlap else start + length
        yield start, stop, max(0, start - overlap), stop + overlap
        start = stop


def coarse_pitch(pitchf: Signal) -> NDArray[np.int64]:
    """Hz (T,) -> 1..255 on the mel scale between F0_MIN and F0_MAX; 1 for unvoiced.

    Formula and rounding (half to even) as in RVC-WebUI.
    """
    low, high = _mel(np.array(F0_MIN)), _mel(np.array(F0_MAX))
    mel = _mel(np.asarray(pitchf, dtype=np.float64))
    scaled = np.where(mel > 0, (mel - low) * MEL_BINS / (high - low) + 1, mel)
    return np.rint(np.clip(scaled, 1, MEL_BINS + 1)).astype(np.int64)


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127.0 * np.log(1.0 + hertz / 700.0)


def shift_semitones(pitchf: Signal, semitones: float) -> NDArray[np.float64]:
    """Transpose; unvoiced frames stay 0."""
    return np.asarray(pitchf, dtype=np.float64) * 2.0 ** (semitones / 12.0)
