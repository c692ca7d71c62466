"""How two clips sound beside each other: spectra, cepstra and pitch. Definitions and sources are in docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pitch_track import pitch_track
from .spectra import MEL_BINS, Array, log_mel, magnitudes, noise_magnitude, power_of_two

QUIET_FRAME = 0.01  # frames below this share of the reference's RMS (-40 dB) have no direction worth comparing
STFT_SECONDS = ((0.025, 0.005), (0.05, 0.01), (0.01, 0.002))  # windows and hops; Parallel WaveGAN (2020), table 1, at 24 kHz
STFT_FLOOR = 1e-7**0.5  # of a magnitude, before its logarithm
CEPSTRA = 24  # orders 1 to 24, usual for speech above 16 kHz; order 0 is the level, which has its own metric
DECIBELS = 10 / np.log(10)
PITCH_CENTS = 50.0  # a quarter tone: beyond it singers are out of tune
PITCH_CLEAR, PITCH_HEARD = 0.7, 0.5  # strengths: a frame counts from the first, and its counterpart is voiced from the second
_EPSILON = 1e-30


@dataclass(frozen=True)
class AudioComparison:
    """Agreement of one clip with its reference. The worst values stand where anything is not finite."""

    log_mel_cosine: float
    stft_distance: float
    mcd_db: float
    pitch_agreement: float


def compare_sound(reference: Array, actual: Array, rate: int, noise: float = 0.0) -> AudioComparison:
    """Two clips (N,) at `rate` Hz; in their spectra what is below white noise of the RMS `noise` counts as that noise.

    Raises ValueError where they differ in length or have another number of axes.
    """
    return AudioComparison(
        log_mel_cosine(reference, actual, rate, mean_removed=True, noise=noise),
        stft_distance(reference, actual, rate, noise),
        mel_cepstral_distortion(reference, actual, rate, noise),
        pitch_agreement(reference, actual, rate),
    )


def log_mel_cosine(reference: Array, actual: Array, rate: int, mean_removed: bool = False, noise: float = 0.0) -> float:
    """Mean over frames of the cosine between the log-mel spectra of two clips (N,); -1 where anything is not finite.

    Logarithms are mostly negative, so plain spectra share a constant that lifts every cosine; `mean_removed` subtracts the
    reference's mean over time from both sides first, per bin. `noise` as in log_mel. Raises ValueError where the lengths differ.
    """
    if not _comparable(reference, actual):
        return -1.0
    wanted, got = (log_mel(side, rate, noise) for side in (reference, actual))
    if mean_removed and len(wanted) > 1:
        mean = wanted.mean(axis=0)
        wanted, got = wanted - mean, got - mean
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    cosines = np.where(lengths > 0, np.sum(wanted * got, axis=1) / np.maximum(lengths, _EPSILON), np.all(wanted == got, axis=1))
    return float(cosines.mean())


def stft_distance(reference: Array, actual: Array, rate: int, noise: float = 0.0) -> float:
    """Mean over three resolutions of spectral convergence + mean |difference of log magnitudes|; inf for what is not finite.

    Spectral convergence is the Frobenius norm of the difference of magnitudes over that of the reference's. 0 for equal clips.
    Magnitudes are at least STFT_FLOOR, and what white noise of the RMS `noise` has. Raises ValueError where the lengths differ.
    """
    if not _comparable(reference, actual):
        return np.inf
    if np.array_equal(reference, actual):
        return 0.0
    found = []
    for seconds, step in STFT_SECONDS:
        window = round(seconds * rate)
        size, hop = power_of_two(window), round(step * rate)
        least = max(STFT_FLOOR, noise_magnitude(noise, window))
        wanted, got = (np.maximum(magnitudes(side, size, hop, window), least) for side in (reference, actual))
        convergence = np.linalg.norm(wanted - got) / np.linalg.norm(wanted)
        found.append(convergence + np.mean(np.abs(np.log(wanted / got))))
    return float(np.mean(found))


def mel_cepstral_distortion(reference: Array, actual: Array, rate: int, noise: float = 0.0) -> float:
    """dB, mean over the frames that are not quiet on both sides; inf where anything is not finite, 0 where nothing is heard.

    `noise` as in log_mel. Raises ValueError where the lengths differ.
    """
    if not _comparable(reference, actual):
        return np.inf
    wanted, got = (log_mel(side, rate, noise) for side in (reference, actual))
    loudness = [np.linalg.norm(np.exp(side), axis=1) for side in (wanted, got)]
    heard = np.maximum(*loudness) > QUIET_FRAME * np.sqrt(np.mean(loudness[0] ** 2))
    return float(cepstral_distances(wanted[heard], got[heard]).mean()) if heard.any() else 0.0


def cepstral_distances(reference: Array, actual: Array) -> NDArray[np.float64]:
    """(frames, MEL_BINS) log magnitudes -> (frames,) dB: 10 / ln 10 * sqrt(2 * sum of squared differences of orders 1 to CEPSTRA).

    A one-sided cepstrum, so that this is the RMS difference in dB of the log spectra with everything finer smoothed away.
    """
    bins = (np.arange(MEL_BINS) + 0.5) / MEL_BINS
    basis = 2 / MEL_BINS * np.cos(np.pi * np.outer(np.arange(1, CEPSTRA + 1), bins))
    return DECIBELS * np.sqrt(2 * np.sum(((reference - actual) @ basis.T) ** 2, axis=1))


def pitch_agreement(reference: Array, actual: Array, rate: int) -> float:
    """Of the 10 ms frames that are clearly periodic on either side, the share periodic on both and within PITCH_CENTS.

    1 where no frame is, 0 where anything is not finite. Raises ValueError where the lengths differ.
    """
    if not _comparable(reference, actual):
        return 0.0
    (wanted, strong), (got, other) = (pitch_track(side, rate) for side in (reference, actual))
    clear = np.maximum(strong, other) >= PITCH_CLEAR
    if not clear.any():
        return 1.0
    voiced = clear & (np.minimum(strong, other) >= PITCH_HEARD)
    cents = 1200 * np.abs(np.log2(got[voiced] / wanted[voiced]))
    return float(np.count_nonzero(cents <= PITCH_CENTS) / np.count_nonzero(clear))


def _comparable(reference: Array, actual: Array) -> bool:
    """Whether the actual clip is finite. Raises ValueError where the clips are not two of (N,)."""
    if reference.shape != actual.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {actual.shape}")
    if reference.ndim != 1:
        raise ValueError(f"a clip is (samples,) and this is {reference.shape}")
    return bool(np.isfinite(actual).all())
