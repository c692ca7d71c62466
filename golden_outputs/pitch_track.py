"""Pitch of a clip by normalised autocorrelation: light, without weights, and with a strength that says how periodic a frame is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .spectra import Array, power_of_two

LOWEST, HIGHEST = 50.0, 1100.0  # Hz, RVC-WebUI's search range
FRAMES_A_SECOND = 100
FIRST_PEAK = 0.9  # of the highest: the shortest such lag is the period, multiples of it are as high
QUIET = 0.01  # frames below this share of the clip's RMS (-40 dB) are unvoiced
_PIECE_FRAMES = 500  # correlated at once, so that memory stays bounded
_SILENT = 1e-30


def pitch_track(audio: Array, rate: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) at `rate` Hz -> pitch in Hz and its strength of 0 to 1, both (N * 100 // rate + 1,), a frame for every 10 ms.

    The strength is the correlation of 40 ms with the same length one period later: 1 for a periodic sound, about 0.2 for white
    noise. Both are 0 in quiet frames and where a clip is too short for two periods of the lowest pitch.
    """
    longest, shortest = round(rate / LOWEST), round(rate / HIGHEST)
    window = 2 * longest
    signal = audio.astype(np.float64)
    padded = np.pad(signal, (window // 2, window // 2 + longest))
    hop = rate // FRAMES_A_SECOND
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window + longest)[::hop] if len(signal) else np.zeros((0, 1))
    pitch, strength = np.zeros(len(pieces)), np.zeros(len(pieces))
    if len(signal) < window:
        return pitch, strength
    quiet = QUIET * np.sqrt(np.mean(signal**2))
    for start in range(0, len(pieces), _PIECE_FRAMES):
        part = slice(start, start + _PIECE_FRAMES)
        centred = pieces[part] - pieces[part].mean(axis=1, keepdims=True)
        heard = np.sqrt(np.mean(centred[:, :window] ** 2, axis=1)) > max(quiet, _SILENT)
        lags, peaks = _first_peaks(_correlation(centred, window)[:, shortest - 1 :])
        pitch[part] = np.where(heard & (peaks > 0), rate / (lags + shortest - 1), 0)
        strength[part] = np.where(heard, np.clip(peaks, 0, 1), 0)
    return pitch, strength


def _correlation(pieces: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """(frames, window + longest) -> (frames, longest + 1): of the first `window` samples with as many after each lag, in -1..1."""
    frames, length = pieces.shape
    size = power_of_two(length + window)
    spectrum = np.fft.rfft(pieces, size) * np.conj(np.fft.rfft(pieces[:, :window], size))
    products = np.fft.irfft(spectrum, size)[:, : length - window + 1]
    sums = np.concatenate([np.zeros((frames, 1)), np.cumsum(pieces**2, axis=1)], axis=1)
    energies = sums[:, window:] - sums[:, : length - window + 1]
    return products / np.sqrt(np.maximum(energies[:, :1] * energies, _SILENT))


def _first_peaks(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(frames, lags) -> (frames,) lag between samples and height of the first peak that is nearly the highest; 0 and 0 without any."""
    before, middle, after = curves[:, :-2], curves[:, 1:-1], curves[:, 2:]
    peaks = np.where((middle >= before) & (middle > after), middle, 0)
    first = np.argmax((peaks >= FIRST_PEAK * peaks.max(axis=1, keepdims=True)) & (peaks > 0), axis=1)
    rows = np.arange(len(curves))
    a, b, c = before[rows, first], middle[rows, first], after[rows, first]
    bend = 2 * b - a - c
    offset = np.where(bend > 0, 0.5 * (c - a) / np.where(bend > 0, bend, 1), 0)
    found = peaks[rows, first] > 0
    return np.where(found, first + 1 + offset, 0), np.where(found, b + 0.25 * (c - a) * offset, 0)
