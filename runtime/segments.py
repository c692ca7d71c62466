"""Where a long clip is cut: at its quietest points, as RVC-WebUI does, so that every piece fits the content encoder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
HOP = 160  # samples of a frame: 10 ms
# RVC-WebUI's x_pad, x_query, x_center and x_max where memory is not scarce, in samples; a Mac gets these too.
PAD = 1 * SAMPLE_RATE
QUERY = 6 * SAMPLE_RATE
CENTER = 38 * SAMPLE_RATE
LONGEST = 41 * SAMPLE_RATE
PAD_FRAMES = PAD // HOP
CLOSE = 1e-9  # of the loudest: far more than running sums in float64 are off by
CANDIDATES = 10000  # added up at a time
EXTRA = 3 * HOP  # what a segment needs beyond its end for the content encoder to reach its last frame


@dataclass(frozen=True)
class Segment:
    """A stretch of the padded clip that is converted by itself: samples from `start` to `stop`, pads included.

    `frames` are those that are kept where the output shall be as long as the input; None keeps what upstream keeps.
    """

    start: int
    stop: int
    frames: int | None = None

    @property
    def first_frame(self) -> int:
        return self.start // HOP


def quiet_cuts(audio: NDArray[np.floating], split: str = "abs") -> list[int]:
    """Samples of a 16 kHz clip (N,) at which it is cut, multiples of 160; none up to 41 s.

    Around every 38 s, within 6 s, the 10 ms with the least sum of |x| (`abs`), or the least |sum of x| (`sum`).
    """
    half = HOP // 2
    if len(audio) + 2 * half <= LONGEST:
        return []
    cuts = []
    for center in range(CENTER, len(audio), CENTER):
        first, last = center - QUERY, min(center + QUERY, len(audio))
        cuts.append((first + _quietest(_reflected(audio, first - half, last - half + HOP - 1), split)) // HOP * HOP)
    return cuts


def _reflected(audio: NDArray[np.floating], first: int, last: int) -> NDArray[np.float64]:
    """Samples from `first` to `last`, which may reach beyond the end by less than the clip, reflected there."""
    inside = np.asarray(audio[max(0, first) : min(last, len(audio))], np.float64)
    return np.pad(inside, (max(0, -first), max(0, last - len(audio))), mode="reflect")


def _quietest(audio: NDArray[np.float64], split: str) -> int:
    """Where the sum over the next 160 samples is least; of equals the first.

    Running sums find the candidates; only these are added up in upstream's order, which decides between near equals.
    """
    values = np.abs(audio) if split == "abs" else audio
    running = np.concatenate([[0.0], np.cumsum(values)])
    sums = np.abs(running[HOP:] - running[:-HOP])
    candidates = np.flatnonzero(sums <= sums.min() + CLOSE * np.abs(audio).max() * HOP)
    windows = np.lib.stride_tricks.sliding_window_view(values, HOP)
    exact = np.concatenate(
        [np.cumsum(windows[part], axis=1)[:, -1] for part in np.array_split(candidates, -(-len(candidates) // CANDIDATES))]
    )
    return int(candidates[np.argmin(np.abs(exact))])


def plan_segments(audio: NDArray[np.floating], split: str = "abs", keep_length: bool = False) -> list[Segment]:
    """Segments of a clip (N,) that has PAD samples reflected on either side (and EXTRA more at its end for `keep_length`)."""
    bounds = [0, *quiet_cuts(audio, split)]
    padded = len(audio) + 2 * PAD
    segments = []
    for start, cut in pairwise(bounds):
        segments.append(Segment(start, cut + 2 * PAD + HOP + (EXTRA if keep_length else 0), (cut - start) // HOP if keep_length else None))
    last = bounds[-1]
    if keep_length:
        segments.append(Segment(last, padded + EXTRA, -(-(len(audio) - last) // HOP)))
    else:
        segments.append(Segment(last, padded))
    return segments
