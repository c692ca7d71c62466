"""Spectra of a clip: mel spectrograms and the magnitudes of a short-time Fourier transform, with numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MEL_BINS, MEL_FLOOR = 80, 1e-5  # of log_mel; the floor is what vocoders are trained with
MEL_WINDOW_SECONDS = 0.04  # at least: the window is the next power of two
_MEL_STEP, _MEL_BREAK, _MEL_LOG = 200.0 / 3, 1000.0, np.log(6.4) / 27  # Slaney: linear up to 1 kHz, then 27 steps to 6.4 kHz
_PIECE_FRAMES = 1000  # transformed at once, so that memory stays bounded
Array = NDArray[np.floating]


def log_mel(audio: Array, rate: int, noise: float = 0.0) -> NDArray[np.float64]:
    """(N,) at `rate` Hz -> (frames, MEL_BINS), a frame for every 10 ms: natural log of mel magnitudes of at least MEL_FLOOR.

    What white noise of the RMS `noise` puts into a bin is the least too.
    """
    size = power_of_two(MEL_WINDOW_SECONDS * rate)
    filters = _mel_filters(rate, size).T
    least = np.maximum(MEL_FLOOR, noise_magnitude(noise, size) * filters.sum(axis=0))
    return np.log(np.maximum(magnitudes(audio, size, rate // 100, size, filters), least))


def noise_magnitude(rms: float, window: int) -> float:
    """RMS magnitude of white noise of that RMS under a periodic Hann window, whose squares sum to 3/8 of its samples."""
    return rms * (3 / 8 * window) ** 0.5


def magnitudes(audio: Array, size: int, hop: int, window: int, filters: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """(N,) -> (N // hop + 1, size // 2 + 1) magnitudes under a periodic Hann window, zeros beyond the clip.

    `size` samples are transformed, `window` of them in the middle count. `filters` (size // 2 + 1, bins) sums them into bins.
    """
    hann = np.zeros(size)
    start = (size - window) // 2
    hann[start : start + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(audio.astype(np.float64), size // 2)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    found = []
    for part in np.array_split(pieces, -(-len(pieces) // _PIECE_FRAMES)):
        magnitude = np.abs(np.fft.rfft(part * hann))
        found.append(magnitude if filters is None else magnitude @ filters)
    return np.concatenate(found)


def power_of_two(samples: float) -> int:
    """The smallest that is at least `samples`."""
    return 1 << int(np.ceil(np.log2(samples)))


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
