"""What a page draws of a comparison, reduced as soon as the arrays are there, so that memory holds no array for long.

Audio keeps 16-bit samples of both sides and of their difference, made as loud as the reference; features keep two maps
and a map of the error, one byte a point.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import frame_errors_db

AUDIO_SECONDS = 12.0  # of a clip that a page holds at most
CURVE_POINTS = 480  # of a per-frame error
MAP_ROWS, MAP_COLUMNS = 64, 256  # of a map of features
ERROR_FLOOR = -100.0  # dB below the reference's RMS: where a map of the error begins
CURVE_LIMIT = 200.0  # dB, what a page says of an infinite SNR
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Evidence:
    """`values` goes into the page as JSON; `size` is about its bytes there."""

    values: dict[str, Any]

    @property
    def size(self) -> int:
        return sum(
            len(value) if isinstance(value, str) else 12 * len(value) if isinstance(value, list) else 24 for value in self.values.values()
        )


def evidence_of(
    reference: Array, actual: Array, time_axis: int = -1, samples: int = 1, rate: int | None = None, steady: bool = False
) -> Evidence | None:
    """Of two arrays of one shape whose `time_axis` has frames of `samples`; with a rate they are audio. None where they are empty.

    `steady` is for what has no course over time, as in `metrics.compare`.
    """
    if reference.shape != actual.shape or reference.size == 0:
        return None
    values: dict[str, Any] = {"curve": _curve(frame_errors_db(reference, actual, time_axis, samples, steady))}
    wanted, got = (np.moveaxis(side.astype(np.float64), time_axis, -1) for side in (reference, actual))
    got = np.nan_to_num(got, nan=0.0, posinf=0.0, neginf=0.0)
    values["frames"] = wanted.shape[-1] // samples or 1
    if rate is None:
        return Evidence(values | _maps(wanted.reshape(-1, wanted.shape[-1]), got.reshape(-1, got.shape[-1])))
    return Evidence(values | _audio(wanted.reshape(-1), got.reshape(-1), rate))


def _curve(errors: Array) -> list[float]:
    """At most CURVE_POINTS of a per-frame SNR in dB: the worst of each group."""
    limited = np.clip(np.nan_to_num(errors.astype(np.float64), nan=-CURVE_LIMIT), -CURVE_LIMIT, CURVE_LIMIT)
    return [round(float(value), 1) for value in _grouped(np.minimum, limited, min(len(limited), CURVE_POINTS), 0)]


def _audio(reference: NDArray[np.float64], actual: NDArray[np.float64], rate: int) -> dict[str, Any]:
    kept = int(AUDIO_SECONDS * rate)
    difference = (actual - reference)[:kept]
    peak, of_reference = float(np.abs(difference).max(initial=0.0)), float(np.abs(reference[:kept]).max(initial=0.0))
    gain = of_reference / peak if peak > 0 and of_reference > 0 else 1.0
    return {
        "rate": rate,
        "seconds": round(len(reference) / rate, 3),
        "shown": round(min(len(reference), kept) / rate, 3),
        "reference": _pcm(reference[:kept]),
        "actual": _pcm(actual[:kept]),
        "difference": _pcm(difference * gain),
        "gain_db": round(20 * float(np.log10(gain)), 1),
        "clipped": bool(np.abs(actual[:kept]).max(initial=0.0) > 1),
    }


def _maps(reference: NDArray[np.float64], actual: NDArray[np.float64]) -> dict[str, Any]:
    """(channels, frames) -> one byte a point: evenly chosen channels and frames, and the largest error around each."""
    channels, frames = reference.shape
    rows = np.unique(np.linspace(0, channels - 1, min(channels, MAP_ROWS)).round().astype(int))
    columns = np.unique(np.linspace(0, frames - 1, min(frames, MAP_COLUMNS)).round().astype(int))
    low, high = (float(value) for value in np.percentile(reference, (1, 99)))
    level = float(np.sqrt(np.mean(reference**2))) or 1.0
    error = np.abs(actual - reference)
    worst = _grouped(np.maximum, _grouped(np.maximum, error, len(columns), 1), len(rows), 0)
    decibels = 20 * np.log10(np.maximum(worst / level, 10 ** (ERROR_FLOOR / 20)))
    grid = np.ix_(rows, columns)
    return {
        "rows": len(rows),
        "columns": len(columns),
        "channels": channels,
        "low": low,
        "high": high,
        "reference": _bytes(reference[grid], low, high),
        "actual": _bytes(actual[grid], low, high),
        "error": _bytes(decibels, ERROR_FLOOR, 0.0),
    }


def _grouped(reduce: np.ufunc, values: NDArray[np.float64], count: int, axis: int) -> NDArray[np.float64]:
    """An axis reduced to `count` groups of equal lengths, as near as whole numbers allow."""
    return reduce.reduceat(values, np.arange(count) * values.shape[axis] // count, axis=axis)


def _bytes(values: NDArray[np.float64], low: float, high: float) -> str:
    scaled = (values - low) / (high - low if high > low else 1.0)
    return base64.b64encode(np.clip(np.round(scaled * 255), 0, 255).astype(np.uint8).tobytes()).decode()


def _pcm(samples: NDArray[np.float64]) -> str:
    """Little-endian 16-bit samples, cut at full scale."""
    return base64.b64encode(np.clip(np.round(samples * 32767), -32768, 32767).astype("<i2").tobytes()).decode()
