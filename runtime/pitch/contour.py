"""What is done to a contour between estimator and voice, and the two forms in which a voice takes it.

A contour is Hz at 100 frames a second, 0 where unvoiced.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .constants import F0_MAX, F0_MIN
from .f0_file import PitchTrack
from .registry import ESTIMATORS, Contour, Signal

MEL_BINS = 254  # coarse pitch spreads them over 1..255
MEDIAN_FRAMES = 3  # RVC-WebUI's harvest; the radius that users give only switches it on
MEDIAN_ABOVE = 2
LOWEST_NOTE, HIGHEST_NOTE = 31, 84  # G1 (49.00 Hz) and C6 (1046.50 Hz) as MIDI numbers: Applio's autotune table
NOTES = np.round(440.0 * 2.0 ** ((np.arange(LOWEST_NOTE, HIGHEST_NOTE + 1) - 69) / 12), 2)  # Hz; Applio's has two decimals
UNVOICED = ("keep", "interpolate")


def apply_contour_options(
    pitchf: Signal,
    *,
    method: str | None = None,
    filter_radius: int = 3,
    autotune_strength: float = 0.0,
    unvoiced: str = "keep",
    semitones: float = 0.0,
    track: PitchTrack | None = None,
    pad_frames: int = 0,
) -> Contour:
    """An estimated contour (T,) -> what the voice gets, in upstream's order.

    1. median filter, for the methods that upstream filters (harvest) and a `filter_radius` above 2;
    2. autotune (Applio, before its shift);
    3. unvoiced frames (RVC-WebUI 2026, before its shift);
    4. shift;
    5. the pitch file's track, laid over the clip behind its leading pad of `pad_frames`: its Hz are final.
    """
    pitch = np.array(pitchf, dtype=np.float64)
    if method in ESTIMATORS and ESTIMATORS[method].median:
        pitch = median_filter(pitch, filter_radius)
    pitch = fill_unvoiced(autotune(pitch, autotune_strength), unvoiced)
    pitch = shift_semitones(pitch, semitones)
    return pitch if track is None else track.laid_over(pitch, pad_frames)


def median_filter(pitchf: Signal, filter_radius: int) -> Contour:
    """Median over three frames, zeros beyond the ends, where the radius is above 2; else the contour as it is."""
    pitch = np.asarray(pitchf, dtype=np.float64)
    if filter_radius <= MEDIAN_ABOVE or not len(pitch):
        return pitch
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(pitch, MEDIAN_FRAMES // 2), MEDIAN_FRAMES)
    return np.median(windows, axis=1)


def autotune(pitchf: Signal, strength: float) -> Contour:
    """Moves voiced frames by `strength` (0 to 1) of their distance in Hz to the nearest note from G1 to C6.

    Unvoiced frames stay so; Applio's move towards G1. Raises UsageError for another strength.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"autotune strength {strength} is out of range: give 0 to 1")
    pitch = np.asarray(pitchf, dtype=np.float64)
    if strength == 0:
        return pitch
    above = np.clip(np.searchsorted(NOTES, pitch), 1, len(NOTES) - 1)
    nearest = np.where(pitch - NOTES[above - 1] <= NOTES[above] - pitch, NOTES[above - 1], NOTES[above])
    return np.where(pitch > 0, pitch + (nearest - pitch) * strength, 0.0)


def fill_unvoiced(pitchf: Signal, how: str) -> Contour:
    """`keep`: as it is; `interpolate`: linear through unvoiced frames, the first and last voiced value held outwards.

    A contour without a voiced frame stays as it is. Raises UsageError for another word.
    """
    if how not in UNVOICED:
        raise UsageError(f"unvoiced {how!r} is unknown; choose {' or '.join(UNVOICED)}")
    pitch = np.asarray(pitchf, dtype=np.float64)
    voiced = np.flatnonzero(pitch > 0)
    if how == "keep" or not len(voiced):
        return pitch
    return np.interp(np.arange(len(pitch)), voiced, pitch[voiced])


def shift_semitones(pitchf: Signal, semitones: float, octaves: float = 0.0) -> Contour:
    """Transpose; unvoiced frames stay 0."""
    return np.asarray(pitchf, dtype=np.float64) * 2.0 ** (semitones / 12.0 + octaves)


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
