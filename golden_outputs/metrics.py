"""How two arrays compare. Metrics take arrays and know no backend.

SNR always means mean-removed SNR: the reference's mean over time is subtracted from both sides first (per channel for
features), because a constant that both share says nothing about the signal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

QUIET_FRAME = 0.01  # frames below this share of the reference's RMS (-40 dB) have no direction worth comparing
MEL_BINS, MEL_FLOOR = 80, 1e-5  # of log_mel; the floor is what vocoders are trained with
MEL_WINDOW_SECONDS = 0.04  # at least: the window is the next power of two
_MEL_STEP, _MEL_BREAK, _MEL_LOG = 200.0 / 3, 1000.0, np.log(6.4) / 27  # Slaney: linear up to 1 kHz, then 27 steps to 6.4 kHz
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Comparison:
    """Agreement of one array with its reference."""

    snr_db: float
    worst_cosine: float
    level: float
    max_error: float
    finite: bool

    def as_dict(self) -> dict[str, float | bool | None]:
        """For JSON, which has no infinity and no NaN; `exact` says that an SNR of null is an infinite one."""
        values = {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}
        return {**values, "exact": self.snr_db == np.inf}


def compare(reference: Array, actual: Array, time_axis: int = -1, frame: int = 1) -> Comparison:
    """All metrics at once. `time_axis` is the axis of frames; `frame` samples make one frame (audio: one per 10 ms).

    Raises ValueError where the shapes differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {actual.shape}")
    return Comparison(
        snr_db(reference, actual, time_axis),
        worst_frame_cosine(reference, actual, time_axis, frame),
        level_ratio(reference, actual),
        float(np.max(np.abs(reference.astype(np.float64) - actual), initial=0.0)),
        bool(np.isfinite(actual).all()),
    )


def snr_db(reference: Array, actual: Array, time_axis: int = -1) -> float:
    """10 log10 of signal over error energy after mean removal; inf where equal, -inf for NaN or a dead reference."""
    wanted, got = reference.astype(np.float64), actual.astype(np.float64)
    mean = wanted.mean(axis=time_axis, keepdims=True)
    signal = float(np.sum((wanted - mean) ** 2))
    error = float(np.sum((wanted - got) ** 2))
    if not np.isfinite(error):
        return -np.inf
    if error == 0:
        return np.inf
    return 10 * float(np.log10(signal / error)) if signal > 0 else -np.inf


def worst_frame_cosine(reference: Array, actual: Array, time_axis: int = -1, frame: int = 1) -> float:
    """Smallest cosine between corresponding frames, quiet frames left out; -1 where anything is not finite."""
    wanted, got = (_frames(side.astype(np.float64), time_axis, frame) for side in (reference, actual))
    if not np.isfinite(got).all():
        return -1.0
    loudness = np.linalg.norm(wanted, axis=1)
    heard = loudness > QUIET_FRAME * np.sqrt(np.mean(loudness**2))
    if not heard.any():
        return 1.0 if np.array_equal(wanted, got) else -1.0
    product = np.sum(wanted[heard] * got[heard], axis=1)
    return float(np.min(product / np.maximum(loudness[heard] * np.linalg.norm(got[heard], axis=1), 1e-30)))


def level_ratio(reference: Array, actual: Array) -> float:
    """RMS of the actual over RMS of the reference; 1 for two silences."""
    wanted = float(np.sqrt(np.mean(reference.astype(np.float64) ** 2)))
    got = float(np.sqrt(np.mean(actual.astype(np.float64) ** 2)))
    if wanted == 0:
        return 1.0 if got == 0 else np.inf
    return got / wanted


def log_mel_cosine(reference: Array, actual: Array, rate: int, mean_removed: bool = False) -> float:
    """Mean over frames of the cosine between the log-mel spectra of two clips (N,); -1 where anything is not finite.

    Logarithms are mostly negative, so plain spectra share a constant that lifts every cosine; `mean_removed` subtracts the
    reference's mean over time from both sides first, per bin. Raises ValueError where the lengths differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {actual.shape}")
    if not np.isfinite(actual).all():
        return -1.0
    wanted, got = (log_mel(side, rate) for side in (reference, actual))
    if mean_removed:
        mean = wanted.mean(axis=0)
        wanted, got = wanted - mean, got - mean
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    cosines = np.where(lengths > 0, np.sum(wanted * got, axis=1) / np.maximum(lengths, 1e-30), np.all(wanted == got, axis=1))
    return float(cosines.mean())


def log_mel(audio: Array, rate: int) -> NDArray[np.float64]:
    """(N,) at `rate` Hz -> (frames, MEL_BINS), a frame for every 10 ms: natural log of mel magnitudes of at least MEL_FLOOR."""
    size = 1 << int(np.ceil(np.log2(MEL_WINDOW_SECONDS * rate)))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    padded = np.pad(audio.astype(np.float64), size // 2)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, size)[:: rate // 100]
    filters = _mel_filters(rate, size).T
    parts = [np.abs(np.fft.rfft(part * hann)) @ filters for part in np.array_split(pieces, -(-len(pieces) // 1000))]
    return np.log(np.maximum(np.concatenate(parts), MEL_FLOOR))


def _mel_filters(rate: int, size: int) -> NDArray[np.float64]:
    """(MEL_BINS, size // 2 + 1): triangles of unit area between 0 Hz and half the rate."""
    top = _MEL_BREAK / _MEL_STEP + np.log(rate / 2 / _MEL_BREAK) / _MEL_LOG
    mels = np.linspace(0, top, MEL_BINS + 2)
    above = _MEL_BREAK * np.exp(_MEL_LOG * (mels - _MEL_BREAK / _MEL_STEP))
    edges = np.where(mels < _MEL_BREAK / _MEL_STEP, _MEL_STEP * mels, above)[:, None]
    hertz = np.arange(size // 2 + 1) * rate / size
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    slopes = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle))
    return np.maximum(slopes, 0) * 2 / (high - low)


def _frames(values: Array, time_axis: int, frame: int) -> Array:
    """(frames, values of a frame); a remainder shorter than a frame is left out unless it is all there is."""
    flat = np.moveaxis(values, time_axis, 0)
    if frame > 1 and flat.shape[0] >= frame:
        flat = flat[: flat.shape[0] // frame * frame].reshape(flat.shape[0] // frame, frame, *flat.shape[1:])
    elif frame > 1:
        flat = flat[None]
    return flat.reshape(flat.shape[0], -1)
