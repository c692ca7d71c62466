"""Log-mel spectra against scipy and transformers, and what their cosine sees."""

from __future__ import annotations

import numpy as np
import pytest
from rvc_coreml.golden_outputs.audio_metrics import log_mel_cosine
from rvc_coreml.golden_outputs.spectra import MEL_BINS, MEL_FLOOR, log_mel
from scipy import signal as scipy_signal

RATES = [16000, 32000, 40000, 48000]


def noise(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(samples)


def other_log_mel(audio: np.ndarray, rate: int) -> np.ndarray:
    """scipy's Fourier transform, transformers' filters."""
    from transformers.audio_utils import mel_filter_bank

    size = {16000: 1024, 32000: 2048, 40000: 2048, 48000: 2048}[rate]
    window = scipy_signal.get_window("hann", size)
    _f, _t, spectra = scipy_signal.stft(audio, rate, window, size, size - rate // 100, padded=False)
    filters = mel_filter_bank(size // 2 + 1, MEL_BINS, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    return np.log(np.maximum((np.abs(spectra) * window.sum()).T @ filters, MEL_FLOOR))


@pytest.mark.parametrize("samples", [1, 399, 8000, 8001])
@pytest.mark.parametrize("rate", RATES)
def test_a_log_mel_spectrum_is_that_of_scipy_and_transformers(rate: int, samples: int) -> None:
    audio = noise(samples)
    audio[samples // 2 :] *= 1e-7  # below the floor
    if samples < 2048:
        assert log_mel(audio, rate).shape == (samples // (rate // 100) + 1, MEL_BINS)
        return
    wanted = other_log_mel(audio, rate)
    np.testing.assert_allclose(log_mel(audio, rate)[: len(wanted)], wanted, atol=1e-9)
    assert (wanted == np.log(MEL_FLOOR)).any()


def test_equal_clips_have_a_cosine_of_1_and_silence_agrees_with_silence() -> None:
    audio = noise(16000)
    for mean_removed in (False, True):
        assert log_mel_cosine(audio, audio.copy(), 16000, mean_removed) == pytest.approx(1)
        assert log_mel_cosine(0 * audio, 0 * audio, 16000, mean_removed) == pytest.approx(1)


def test_the_mean_removed_cosine_sees_what_the_plain_one_does_not() -> None:
    one, other = noise(32000), noise(32000, 1)
    assert log_mel_cosine(one, other, 16000) > 0.9
    assert abs(log_mel_cosine(one, other, 16000, mean_removed=True)) < 0.1


def test_a_cosine_is_the_mean_over_frames_and_not_of_the_whole() -> None:
    audio = noise(32000)
    half = audio.copy()
    half[16000:] = 0
    wanted, got = log_mel(audio, 16000), log_mel(half, 16000)
    each = [float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(wanted, got, strict=True)]
    assert log_mel_cosine(audio, half, 16000) == pytest.approx(np.mean(each), abs=1e-12)


def test_more_noise_means_a_smaller_cosine() -> None:
    audio = noise(32000) * np.linspace(0.01, 1, 32000)
    found = [log_mel_cosine(audio, audio + noise(32000, 1, level), 16000, mean_removed=True) for level in (1e-4, 1e-3, 1e-2)]
    assert 1 > found[0] > found[1] > found[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_the_worst_possible(bad: float) -> None:
    audio = noise(1000)
    broken = audio.copy()
    broken[500] = bad
    assert log_mel_cosine(audio, broken, 16000) == -1.0


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        log_mel_cosine(np.zeros(100), np.zeros(101), 16000)
