"""Metrics of audio against scipy, torch and WORLD, and against errors of known size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import pyworld
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.golden_outputs.audio_metrics import (
    CEPSTRA,
    STFT_FLOOR,
    STFT_SECONDS,
    AudioComparison,
    cepstral_distances,
    compare_sound,
    mel_cepstral_distortion,
    pitch_agreement,
    stft_distance,
)
from rvc_coreml.golden_outputs.pitch_track import pitch_track
from rvc_coreml.golden_outputs.spectra import MEL_BINS, log_mel, magnitudes
from scipy.fft import dct

CLIPS = sorted((Path(__file__).parents[2] / "golden_outputs" / "audio").glob("*.wav"))
RATES = [16000, 32000, 40000, 48000]
METRICS = {
    "log_mel_cosine": (1.0, -1.0),
    "stft_distance": (0.0, np.inf),
    "mcd_db": (0.0, np.inf),
    "pitch_agreement": (1.0, 0.0),
}


def noise(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(samples)


def voice(hertz: float | np.ndarray, rate: int, seconds: float = 1.0) -> np.ndarray:
    """Ten harmonics, as far as the rate has room, of a pitch that may glide."""
    pitch = np.broadcast_to(hertz, round(seconds * rate))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    return 0.1 * sum(np.sin(k * phase) / k for k in range(1, 11) if k * np.max(hertz) < rate / 2)


def speech(clip: Path) -> tuple[np.ndarray, int]:
    return soundfile.read(clip)


def below(reference: np.ndarray, db: float) -> np.ndarray:
    """White noise of an energy `db` below that of the reference."""
    drawn = noise(len(reference), 7)
    return drawn * np.sqrt((reference**2).sum() / (drawn**2).sum()) / 10 ** (db / 20)


@pytest.mark.parametrize("rate", RATES)
def test_the_stft_distance_is_that_of_torch(rate: int) -> None:
    one, other = noise(rate // 2), noise(rate // 2, 1)
    wanted = []
    for seconds, step in STFT_SECONDS:
        window, hop = round(seconds * rate), round(step * rate)
        size = 2 ** int(np.ceil(np.log2(window)))
        sides = []
        for audio in (one, other):
            spectrum = torch.stft(
                torch.from_numpy(audio),
                size,
                hop,
                window,
                torch.hann_window(window, dtype=torch.float64),
                pad_mode="constant",
                return_complex=True,
            )
            sides.append(spectrum.abs().clamp(min=STFT_FLOOR))
        a, b = sides
        wanted.append(torch.linalg.norm(a - b) / torch.linalg.norm(a) + (a.log() - b.log()).abs().mean())
    assert stft_distance(one, other, rate) == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([64, 100, 256]), st.integers(1, 90), st.integers(2, 64))
def test_magnitudes_are_torchs_for_every_length(samples: int, size: int, hop: int, window: int) -> None:
    audio = noise(samples)
    found = magnitudes(audio, size, hop, window)
    hann = torch.hann_window(window, dtype=torch.float64)
    wanted = torch.stft(torch.from_numpy(audio), size, hop, window, hann, pad_mode="constant", return_complex=True).abs().T
    assert found.shape == (samples // hop + 1, size // 2 + 1)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.1, 4.25])
def test_the_stft_distance_of_a_gain_is_known(gain: float) -> None:
    """The difference of the magnitudes is |gain - 1| of the reference's, and that of the logarithms |ln gain|."""
    audio = noise(16000, level=1)
    assert stft_distance(audio, gain * audio, 16000) == pytest.approx(abs(gain - 1) + abs(np.log(gain)), rel=1e-6)


def test_the_cepstral_distance_is_that_of_scipys_cosine_transform() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 30, MEL_BINS))
    cepstra = dct(one - other, type=2, axis=1)[:, 1 : CEPSTRA + 1] / MEL_BINS
    wanted = 10 / np.log(10) * np.sqrt(2 * (cepstra**2).sum(axis=1))
    np.testing.assert_allclose(cepstral_distances(one, other), wanted, rtol=1e-12)


@pytest.mark.parametrize(("order", "counts"), [(0, False), (1, True), (5, True), (CEPSTRA, True), (CEPSTRA + 1, False), (60, False)])
@pytest.mark.parametrize("db", [0.5, 6.0])
def test_the_cepstral_distance_of_a_ripple_is_its_rms_in_db(order: int, counts: bool, db: float) -> None:
    ripple = np.cos(np.pi * order * (np.arange(MEL_BINS) + 0.5) / MEL_BINS) * np.sqrt(2)
    flat = np.zeros((3, MEL_BINS))
    found = cepstral_distances(flat, flat + ripple * db * np.log(10) / 20)
    np.testing.assert_allclose(found, db if counts else 0, atol=1e-12)


@pytest.mark.parametrize("rate", RATES)
def test_the_cepstral_distortion_is_the_mean_over_the_frames_and_does_not_see_a_gain(rate: int) -> None:
    one, other = noise(rate), noise(rate, 1)
    wanted = cepstral_distances(log_mel(one, rate), log_mel(other, rate)).mean()
    assert mel_cepstral_distortion(one, other, rate) == pytest.approx(wanted, rel=1e-12)
    assert mel_cepstral_distortion(one, 4.25 * one, rate) == pytest.approx(0, abs=1e-9)


def test_frames_that_are_quiet_on_both_sides_have_no_cepstral_distortion() -> None:
    audio = noise(32000)
    audio[16000:] *= 1e-4
    other = audio.copy()
    other[18000:] = noise(14000, 3, 2e-5)
    assert mel_cepstral_distortion(audio, other, 16000) == pytest.approx(0, abs=0.1)
    other[18000:] = noise(14000, 3, 0.1)
    assert mel_cepstral_distortion(audio, other, 16000) > 0.5  # both are flat, so the shape alone differs


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hertz", [55.0, 247.3, 1040.0])
def test_the_pitch_of_a_voice_is_found_to_6_cents(rate: int, hertz: float) -> None:
    pitch, strength = pitch_track(voice(hertz, rate), rate)
    inside = slice(5, -5)
    assert pitch.shape == strength.shape == (101,)
    assert np.abs(1200 * np.log2(pitch[inside] / hertz)).max() < 6
    assert strength[inside].min() > 0.95


def test_a_voice_that_fades_is_as_periodic_as_one_that_does_not() -> None:
    fading = voice(220, 16000, 0.2) * np.exp(-20 * np.arange(3200) / 16000)
    assert pitch_track(fading, 16000)[1][4:-6].min() > 0.97


@pytest.mark.parametrize("rate", [16000, 40000])
def test_a_glide_is_followed_as_world_follows_it(rate: int) -> None:
    audio = voice(np.geomspace(100, 400, 2 * rate), rate, 2)
    pitch, strength = pitch_track(audio, rate)
    found, times = pyworld.dio(audio, rate, frame_period=10.0)
    found = pyworld.stonemask(audio, found, times, rate)[: len(pitch)]
    inside = slice(5, -5)
    assert (found[inside] > 0).all()
    assert strength[inside].min() > 0.7
    assert np.abs(1200 * np.log2(pitch[inside] / found[inside])).max() < 12


def test_in_speech_most_frames_have_the_pitch_that_world_finds() -> None:
    audio, rate = speech(CLIPS[0])
    audio = audio[: 3 * rate]
    pitch, strength = pitch_track(audio, rate)
    found, times = pyworld.dio(audio, rate, f0_floor=50.0, f0_ceil=1100.0, frame_period=10.0)
    found = pyworld.stonemask(audio, found, times, rate)[: len(pitch)]
    both = (found > 0) & (strength > 0.7)
    assert both.sum() > 100
    assert np.mean(np.abs(1200 * np.log2(pitch[both] / found[both])) < 50) > 0.8


@pytest.mark.parametrize("rate", RATES)
def test_noise_and_silence_have_no_strength(rate: int) -> None:
    assert pitch_track(noise(rate), rate)[1].max() < 0.3
    assert not pitch_track(np.zeros(rate), rate)[1].any()
    loud_and_quiet = np.concatenate([noise(rate), 1e-4 * voice(200, rate)])
    assert not pitch_track(loud_and_quiet, rate)[1][110:].any()


@pytest.mark.parametrize(("cents", "wanted"), [(0, 1.0), (25, 1.0), (45, 1.0), (-45, 1.0), (55, 0.0), (-55, 0.0), (100, 0.0), (1200, 0.0)])
@pytest.mark.parametrize("rate", [16000, 40000])
def test_a_detuned_voice_agrees_up_to_50_cents(rate: int, cents: float, wanted: float) -> None:
    assert pitch_agreement(voice(220, rate), voice(220 * 2 ** (cents / 1200), rate), rate) == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_share_of_a_clip_that_is_out_of_tune_or_unvoiced_is_found(share: float) -> None:
    rate, samples = 16000, 32000
    start = round(samples * (1 - share))
    audio = voice(220, rate, 2)
    detuned = voice(np.where(np.arange(samples) < start, 220, 247), rate, 2)
    unvoiced = np.where(np.arange(samples) < start, audio, noise(samples))
    assert pitch_agreement(audio, detuned, rate) == pytest.approx(1 - share, abs=0.03)
    assert pitch_agreement(audio, unvoiced, rate) == pytest.approx(1 - share, abs=0.03)
    assert pitch_agreement(unvoiced, audio, rate) == pytest.approx(1 - share, abs=0.03)


def test_clips_without_a_voice_agree() -> None:
    assert pitch_agreement(noise(16000), noise(16000, 1), 16000) == 1.0


def test_more_noise_under_speech_is_worse_by_every_metric() -> None:
    audio, rate = speech(CLIPS[0])
    audio = audio[: 2 * rate]
    found = [dataclasses.asdict(compare_sound(audio, audio + below(audio, db), rate)) for db in (60.0, 30.0, 0.0)]
    for metric, (best, worst) in METRICS.items():
        distances = [abs(best - values[metric]) for values in found]
        assert 0 <= distances[0] < distances[1] < distances[2] <= abs(best - worst), metric


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_the_worst_possible(bad: float) -> None:
    audio = voice(220, 16000)
    broken = audio.copy()
    broken[500] = bad
    found = dataclasses.asdict(compare_sound(audio, broken, 16000))
    assert found == {name: worst for name, (_best, worst) in METRICS.items()}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2500), st.sampled_from([16000, 40000]), st.sampled_from(["noise", "voice", "silence"]))
def test_equal_clips_of_any_length_are_perfect(samples: int, rate: int, kind: str) -> None:
    audio = {"noise": noise(samples), "voice": voice(150, rate, 1)[:samples], "silence": np.zeros(samples)}[kind]
    found = compare_sound(audio, audio.copy(), rate)
    assert dataclasses.asdict(found) == pytest.approx({name: best for name, (best, _worst) in METRICS.items()}, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2500), st.sampled_from([16000, 40000]))
def test_clips_of_any_length_have_finite_metrics(samples: int, rate: int) -> None:
    one, other = noise(samples).astype(np.float32), np.zeros(samples, np.float32)
    for found in (compare_sound(one, other, rate), compare_sound(other, one, rate)):
        assert all(np.isfinite(value) for value in dataclasses.astuple(found))


def test_clips_longer_than_a_piece_are_the_same_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = noise(8000)
    audio[2000:6000] += voice(200, 16000, 0.25)
    in_pieces = (log_mel(audio, 16000), *pitch_track(audio, 16000))
    monkeypatch.setattr("rvc_coreml.golden_outputs.spectra._PIECE_FRAMES", 7)
    monkeypatch.setattr("rvc_coreml.golden_outputs.pitch_track._PIECE_FRAMES", 7)
    for one, other in zip(in_pieces, (log_mel(audio, 16000), *pitch_track(audio, 16000)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("shape", [(100,), (102,), (1, 101)], ids=str)
@pytest.mark.parametrize("metric", [stft_distance, mel_cepstral_distortion, pitch_agreement, compare_sound])
def test_other_shapes_are_refused(metric: object, shape: tuple[int, ...]) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="shapes differ"):
        metric(np.zeros(101), np.zeros(shape), 16000)


def test_every_metric_of_audio_is_checked_here() -> None:
    assert list(METRICS) == [field.name for field in dataclasses.fields(AudioComparison)]
