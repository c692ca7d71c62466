"""How two arrays compare. Metrics take arrays and know no backend.

SNR always means mean-removed SNR: the reference's mean over time is subtracted from both sides first (per channel for
features), because a constant that both share says nothing about the signal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

QUIET_FRAME = 0.01  # frames below this share of the reference's RMS (-40 dB) have no direction worth comparing
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


def _frames(values: Array, time_axis: int, frame: int) -> Array:
    """(frames, values of a frame); a remainder shorter than a frame is left out unless it is all there is."""
    flat = np.moveaxis(values, time_axis, 0)
    if frame > 1 and flat.shape[0] >= frame:
        flat = flat[: flat.shape[0] // frame * frame].reshape(flat.shape[0] // frame, frame, *flat.shape[1:])
    elif frame > 1:
        flat = flat[None]
    return flat.reshape(flat.shape[0], -1)
