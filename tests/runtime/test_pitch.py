from __future__ import annotations

import math

import numpy as np
import pytest
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime import pitch
from rvc_coreml.runtime.pitch import coarse_pitch, estimate_pitch, shift_semitones

RATE = 16000
METHODS = ["harvest", "dio"]


def harmonic(hertz: np.ndarray | float, seconds: float) -> np.ndarray:
    """A voiced sound: five harmonics falling off, below the Nyquist rate."""
    samples = int(seconds * RATE)
    contour = np.broadcast_to(hertz, samples)
    phase = 2 * np.pi * np.cumsum(contour) / RATE
    return 0.2 * sum(np.where(order * contour < 7000, np.sin(order * phase) / order, 0) for order in range(1, 6))


@pytest.mark.parametrize("hertz", [60.0, 110.0, 220.0, 441.3, 880.0, 1050.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_tone_is_found_within_a_tenth_of_a_percent(method: str, hertz: float) -> None:
    found = estimate_pitch(harmonic(hertz, 1.5), method)[30:-30]
    assert (found > 0).all()
    np.testing.assert_allclose(found, hertz, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_glide_is_followed_frame_by_frame(method: str) -> None:
    time = np.arange(3 * RATE) / RATE
    contour = 120 * 2 ** (time / 3 * 1.5)
    found = estimate_pitch(harmonic(contour, 3), method)
    wanted = np.append(contour[::160], contour[-1])
    np.testing.assert_allclose(found[20:-20], wanted[20:-20], rtol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_silence_is_unvoiced(method: str) -> None:
    assert not estimate_pitch(np.zeros(RATE), method).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_gap_is_unvoiced_between_voiced_sound(method: str) -> None:
    audio = harmonic(200.0, 3)
    audio[RATE : 2 * RATE] = 0
    found = estimate_pitch(audio, method)
    assert not found[110:190].any()
    assert (found[20:90] > 0).all()
    assert (found[215:280] > 0).all()


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 999, RATE, RATE + 159])
@pytest.mark.parametrize("method", METHODS)
def test_there_is_a_frame_for_every_10_ms_and_one_more(method: str, samples: int) -> None:
    assert estimate_pitch(np.zeros(samples), method).shape == (samples // 160 + 1,)


def test_float32_audio_gives_the_same_pitch() -> None:
    audio = harmonic(300.0, 1)
    np.testing.assert_allclose(estimate_pitch(audio.astype(np.float32), "dio")[20:-20], estimate_pitch(audio, "dio")[20:-20], rtol=1e-5)


def long_clip(seconds: int) -> np.ndarray:
    time = np.arange(seconds * RATE) / RATE
    audio = harmonic(200 * 2 ** (0.8 * np.sin(2 * np.pi * time / 7)), seconds)
    audio[20 * RATE : 23 * RATE] = 0
    return audio


def test_a_clip_beyond_a_minute_is_estimated_as_if_at_once() -> None:
    audio = long_clip(75)
    whole = pitch.ESTIMATORS["dio"](audio)
    found = estimate_pitch(audio, "dio")
    assert found.shape == whole.shape
    np.testing.assert_array_equal(found > 0, whole > 0)
    np.testing.assert_allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize(("seconds", "blocks"), [(6, 1), (7, 2), (11, 2), (12, 3)])
def test_blocks_join_to_the_whole_for_every_remainder(monkeypatch: pytest.MonkeyPatch, seconds: int, blocks: int) -> None:
    monkeypatch.setattr(pitch, "BLOCK_SECONDS", 5)
    seen: list[int] = []
    estimate = pitch.ESTIMATORS["dio"]
    monkeypatch.setitem(pitch.ESTIMATORS, "dio", lambda audio: seen.append(len(audio)) or estimate(audio))
    audio = long_clip(40)[15 * RATE : (15 + seconds) * RATE]
    found = estimate_pitch(audio, "dio")
    np.testing.assert_allclose(found, estimate(audio), atol=1e-3)
    assert max(seen) <= 9 * RATE
    assert len(seen) == blocks


def test_progress_rises_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pitch, "BLOCK_SECONDS", 2)
    shares: list[float] = []
    estimate_pitch(np.zeros(10 * RATE), "dio", shares.append)
    assert len(shares) > 2
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_estimators_bad_values_become_unvoiced(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    monkeypatch.setitem(pitch.ESTIMATORS, "broken", lambda audio: np.full(len(audio) // 160 + 1, bad))
    assert not estimate_pitch(np.zeros(RATE), "broken").any()


@pytest.mark.parametrize("length", [0, 50])
def test_frames_that_an_estimator_does_not_give_are_unvoiced(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setitem(pitch.ESTIMATORS, "short", lambda _audio: np.full(length, 100.0))
    np.testing.assert_array_equal(estimate_pitch(np.zeros(RATE), "short"), [100.0] * length + [0.0] * (101 - length))


@pytest.mark.parametrize("method", ["", "Harvest", "rmvpe2"])
def test_an_unknown_method_is_refused_with_those_known(method: str) -> None:
    with pytest.raises(UsageError, match=f"'{method}' is unknown; choose one of .*harvest.*dio"):
        estimate_pitch(np.zeros(RATE), method)


def test_an_estimator_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="'dio' is registered twice"):
        pitch.estimator("dio")(lambda audio: audio)


def coarse_by_hand(hertz: float) -> int:
    """RVC-WebUI's formula for one value, with Python's numbers."""
    low, high = (1127 * math.log(1 + edge / 700) for edge in (50, 1100))
    mel = 1127 * math.log(1 + hertz / 700)
    if mel > 0:
        mel = (mel - low) * 254 / (high - low) + 1
    return round(min(255, max(1, mel)))


def test_coarse_pitch_matches_the_formula_over_the_whole_range() -> None:
    hertz = np.concatenate([np.arange(0, 1300, 0.37), [50, 1100]])
    coarse = coarse_pitch(hertz)
    assert coarse.dtype == np.int64
    np.testing.assert_array_equal(coarse, [coarse_by_hand(value) for value in hertz])
    assert set(coarse) == set(range(1, 256))


@pytest.mark.parametrize(
    ("hertz", "bin_"), [(0, 1), (1e-9, 1), (30, 1), (50, 1), (51.2, 1), (51.5, 2), (1100, 255), (1099.9, 255), (5000, 255), (1e9, 255)]
)
def test_coarse_pitch_at_the_edges(hertz: float, bin_: int) -> None:
    assert coarse_pitch(np.array([hertz])).tolist() == [bin_]


def test_coarse_pitch_is_monotonic_and_keeps_shape() -> None:
    hertz = np.linspace(0, 1200, 3000).reshape(3, 1000)
    coarse = coarse_pitch(hertz)
    assert coarse.shape == (3, 1000)
    assert (np.diff(coarse.ravel()) >= 0).all()


@pytest.mark.parametrize(
    ("semitones", "factor"), [(12, 2.0), (-12, 0.5), (0, 1.0), (7, 1.4983070768766815), (0.5, 1.029302236643492), (48, 16.0)]
)
def test_shift_multiplies_by_semitones_and_keeps_unvoiced_frames(semitones: float, factor: float) -> None:
    np.testing.assert_allclose(shift_semitones(np.array([0.0, 110.0, 440.0]), semitones), [0, 110 * factor, 440 * factor], rtol=1e-12)


def test_shift_leaves_its_input_alone() -> None:
    contour = np.array([100.0, 0.0])
    shift_semitones(contour, 3)
    np.testing.assert_array_equal(contour, [100.0, 0.0])
