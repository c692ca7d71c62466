"""How two arrays compare. Metrics take arrays and know no backend; docs/metrics.md defines and explains them.

SNR always means mean-removed SNR: the reference's mean over time is subtracted from both sides first (per channel for
features), because a constant that both share says nothing about the signal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .audio_metrics import QUIET_FRAME, AudioComparison, compare_sound
from .spectra import Array

FRAMES_A_SECOND = 100  # audio is compared in frames of 10 ms


@dataclass(frozen=True)
class Comparison:
    """Agreement of one array with its reference; `audio` where both are clips."""

    snr_db: float
    worst_cosine: float
    level: float
    max_error: float
    finite: bool
    psnr_db: float
    max_relative_error: float
    audio: AudioComparison | None = None

    def as_dict(self) -> dict[str, float | bool | None]:
        """For JSON, which has no infinity and no NaN; `exact` says that an SNR of null is an infinite one.

        The metrics of audio stand beside the others, where there are any.
        """
        values = asdict(self)
        values |= values.pop("audio") or {}
        known = {name: value if np.isfinite(value) else None for name, value in values.items()}
        return {**known, "exact": self.snr_db == np.inf}


def compare(
    reference: Array,
    actual: Array,
    time_axis: int = -1,
    frame: int = 1,
    steady: bool = False,
    centred: bool = True,
    quietest_frame: float = 0.0,
) -> Comparison:
    """All metrics at once. `time_axis` is the axis of frames; `frame` samples make one frame (audio: one per 10 ms).

    `steady` and `centred` as in snr_db, `quietest_frame` as in worst_frame_cosine. Raises ValueError where the shapes differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {actual.shape}")
    return Comparison(
        snr_db(reference, actual, time_axis, steady, centred),
        worst_frame_cosine(reference, actual, time_axis, frame, quietest_frame),
        level_ratio(reference, actual),
        float(np.max(np.abs(reference.astype(np.float64) - actual), initial=0.0)),
        bool(np.isfinite(actual).all()),
        psnr_db(reference, actual),
        max_relative_error(reference, actual),
    )


def compare_audio(reference: Array, actual: Array, rate: int, noise: float = 0.0, quietest_frame: float = 0.0) -> Comparison:
    """Two clips (N,) at `rate` Hz: all of `compare` in frames of 10 ms, and the metrics of audio.

    `noise` is what counts as silence in spectra, as in compare_sound, `quietest_frame` as in worst_frame_cosine. Raises
    ValueError where the clips differ in length or have another number of axes.
    """
    compared = compare(reference, actual, 0, rate // FRAMES_A_SECOND, quietest_frame=quietest_frame)
    return replace(compared, audio=compare_sound(reference, actual, rate, noise))


def snr_db(reference: Array, actual: Array, time_axis: int = -1, steady: bool = False, centred: bool = True) -> float:
    """10 log10 of signal over error energy after mean removal; inf where equal, -inf for NaN or a dead reference.

    Features that stand still (digital silence through a content encoder) are nearly all mean over time, and what is left is no
    signal to hold an error against. A golden output that is known to be `steady` loses the mean of all its values instead, and so
    does a single frame. What is nothing but its mean, a single number or a constant, keeps it: not `centred`.
    """
    wanted = _centred(reference, time_axis, steady) if centred else reference.astype(np.float64)
    signal = float(np.sum(wanted**2))
    error = float(np.sum((reference.astype(np.float64) - actual.astype(np.float64)) ** 2))
    return _decibels(signal, error)


def psnr_db(reference: Array, actual: Array) -> float:
    """20 log10 of the reference's peak over the RMS error, over all values at once, no mean removed; inf and -inf as in snr_db."""
    wanted = reference.astype(np.float64)
    peak = float(np.max(np.abs(wanted), initial=0.0))
    return _decibels(peak**2, float(np.mean((wanted - actual.astype(np.float64)) ** 2)))


def max_relative_error(reference: Array, actual: Array) -> float:
    """Largest |error| over the RMS of the reference, over all values at once; inf where the reference is silent and they differ.

    Not relative to each value: those near zero would decide alone.
    """
    wanted = reference.astype(np.float64)
    largest = float(np.max(np.abs(wanted - actual.astype(np.float64)), initial=0.0))
    rms = _rms(wanted)
    if largest == 0:
        return 0.0
    return largest / rms if rms > 0 else np.inf


def worst_frame_cosine(reference: Array, actual: Array, time_axis: int = -1, frame: int = 1, quietest: float = 0.0) -> float:
    """Smallest cosine between corresponding frames, quiet frames left out; -1 where anything is not finite.

    The error in a frame whose RMS is below `quietest` is judged as though the frame had that RMS.
    """
    wanted, got = (_frames(side.astype(np.float64), time_axis, frame) for side in (reference, actual))
    if not np.isfinite(got).all():
        return -1.0
    loudness = np.linalg.norm(wanted, axis=1)
    heard = loudness > QUIET_FRAME * np.sqrt(np.mean(loudness**2))
    if not heard.any():
        return 1.0 if np.array_equal(wanted, got) else -1.0
    wanted, got, loudness = wanted[heard], got[heard], loudness[heard]
    least = quietest * wanted.shape[1] ** 0.5
    if (loudness < least).any():
        more = wanted * np.maximum(least / loudness - 1, 0)[:, None]
        wanted, got, loudness = wanted + more, got + more, np.maximum(loudness, least)
    product = np.sum(wanted * got, axis=1)
    return float(np.min(product / np.maximum(loudness * np.linalg.norm(got, axis=1), 1e-30)))


def level_ratio(reference: Array, actual: Array) -> float:
    """RMS of the actual over RMS of the reference; 1 for two silences."""
    wanted, got = _rms(reference), _rms(actual)
    if wanted == 0:
        return 1.0 if got == 0 else np.inf
    return got / wanted


def frame_errors_db(reference: Array, actual: Array, time_axis: int = -1, frame: int = 1, steady: bool = False) -> NDArray[np.float64]:
    """(frames,) dB: 10 log10 of the signal energy of a mean frame over the error energy of each, for plots of where an error is.

    The signal is that of snr_db (mean removed), so that the mean of the error energies behind these gives back snr_db. inf
    for a frame without error, -inf for one that is not finite. Raises ValueError where the shapes differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {actual.shape}")
    errors = np.sum(_frames(reference.astype(np.float64) - actual, time_axis, frame) ** 2, axis=1)
    signal = float(np.mean(np.sum(_frames(_centred(reference, time_axis, steady), time_axis, frame) ** 2, axis=1)))
    return np.array([_decibels(signal, float(error)) for error in errors])


def _centred(reference: Array, time_axis: int, steady: bool) -> NDArray[np.float64]:
    """The reference without its mean over time; a steady one and a single frame without the mean of all values."""
    wanted = reference.astype(np.float64)
    return wanted - (wanted.mean() if steady or wanted.shape[time_axis] == 1 else wanted.mean(axis=time_axis, keepdims=True))


def _decibels(signal: float, error: float) -> float:
    if not np.isfinite(error):
        return -np.inf
    if error == 0:
        return np.inf
    return 10 * float(np.log10(signal / error)) if signal > 0 else -np.inf


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def _frames(values: Array, time_axis: int, frame: int) -> Array:
    """(frames, values of a frame); a remainder shorter than a frame is left out unless it is all there is."""
    flat = np.moveaxis(values, time_axis, 0)
    if frame > 1 and flat.shape[0] >= frame:
        flat = flat[: flat.shape[0] // frame * frame].reshape(flat.shape[0] // frame, frame, *flat.shape[1:])
    elif frame > 1:
        flat = flat[None]
    return flat.reshape(flat.shape[0], -1)
