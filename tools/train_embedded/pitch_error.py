"""How closely one contour follows another that was shifted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Contour = NDArray[np.floating]
GROSS = 2.0  # semitones: an error beyond this is another note and not an inaccuracy


@dataclass(frozen=True)
class PitchError:
    """`median` of the absolute error and `bias` (median with its sign) in semitones, over frames voiced in both contours.

    `gross` is the share of these frames that is off by more than GROSS, `voicing` the share of all frames in which both contours
    are voiced or both are not. The first three are None where no frame is voiced in both.
    """

    median: float | None
    bias: float | None
    gross: float | None
    voicing: float
    frames: int  # voiced in both


def semitones(hertz: Contour, reference: Contour | float) -> NDArray[np.float64]:
    """Distance of pitches above zero."""
    return 12 * np.log2(np.asarray(hertz, np.float64) / reference)


def pitch_error(source: Contour, converted: Contour, shift: float) -> PitchError:
    """Contours (T,) in Hz on one grid, 0 where unvoiced; `shift` in semitones is what the conversion was asked to add.

    Of contours whose lengths differ the frames that both have are compared. Raises ValueError where there are none.
    """
    frames = min(len(source), len(converted))
    if not frames:
        raise ValueError("an empty contour cannot be compared")
    one, other = np.asarray(source[:frames], np.float64), np.asarray(converted[:frames], np.float64)
    both = (one > 0) & (other > 0)
    voicing = float(np.mean((one > 0) == (other > 0)))
    if not both.any():
        return PitchError(None, None, None, voicing, 0)
    error = semitones(other[both], one[both]) - shift
    off = np.abs(error)
    return PitchError(float(np.median(off)), float(np.median(error)), float(np.mean(off > GROSS)), voicing, int(both.sum()))
