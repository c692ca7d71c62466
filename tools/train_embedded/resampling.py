"""Band-limited resampling with numpy alone: the training machine has neither soxr nor scipy."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

_ZEROS = 48  # zero crossings of the sinc on each side
_BETA = 10.056  # Kaiser: 100 dB of stop band
_ROLLOFF = 0.935  # of the lower Nyquist frequency, where the transition band of these two has ended


@lru_cache(maxsize=8)
def _kernel(source: int, target: int) -> tuple[NDArray[np.float32], int]:
    """(taps, target): one column for each output sample of a period, and how far the taps reach before its start."""
    cutoff = _ROLLOFF * min(source, target) / source  # of the source's Nyquist frequency
    reach = int(np.ceil(_ZEROS / cutoff))
    places = np.arange(-reach, reach + source)[:, None] - np.arange(target)[None] * source / target
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (places / reach) ** 2, 0, None))) / np.i0(_BETA)
    return (cutoff * np.sinc(cutoff * places) * np.where(np.abs(places) <= reach, window, 0)).astype(np.float32), reach


def resample(audio: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
    """`audio` (samples,) at `source` Hz as (ceil(samples x target / source),) at `target` Hz, in place in time."""
    common = gcd(source, target)
    source, target = source // common, target // common
    if source == target:
        return audio
    taps, reach = _kernel(source, target)
    periods = -(-len(audio) // source)
    padded = np.pad(audio.astype(np.float32), (reach, reach + periods * source - len(audio)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps))[::source]
    return (windows @ taps).reshape(-1)[: -(-len(audio) * target // source)]
