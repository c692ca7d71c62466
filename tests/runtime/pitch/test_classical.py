from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import pyworld
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.pitch import ESTIMATORS, classical, estimate_pitch

RATE = 16000
needs_praat = pytest.mark.skipif(importlib.util.find_spec("parselmouth") is None, reason="praat-parselmouth (GPL) is not installed")
WORLD = ["harvest", "dio"]
METHODS = [*WORLD, pytest.param("pm", marks=needs_praat)]


def harmonic(hertz: np.ndarray | float, seconds: float) -> np.ndarray:
    """A voiced sound: five harmonics falling off, below the Nyquist rate."""
    samples = int(seconds * RATE)
    contour = np.broadcast_to(hertz, samples)
    phase = 2 * np.pi * np.cumsum(contour) / RATE
    return 0.2 * sum(np.where(order * contour < 7000, np.sin(order * phase) / order, 0) for order in range(1, 6))


def long_clip(seconds: int) -> np.ndarray:
    time = np.arange(seconds * RATE) / RATE
    audio = harmonic(200 * 2 ** (0.8 * np.sin(2 * np.pi * time / 7)), seconds)
    audio[20 * RATE : 23 * RATE] = 0
    return audio


@pytest.mark.parametrize("hertz", [60.0, 220.0, 441.3, 1050.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_tone_is_found_within_a_tenth_of_a_percent(method: str, hertz: float) -> None:
    found = estimate_pitch(harmonic(hertz, 0.8), method)[25:-25]
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


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 959, 960, 961, RATE, RATE + 159])
@pytest.mark.parametrize("method", METHODS)
def test_there_is_a_frame_for_every_10_ms_and_one_more(method: str, samples: int) -> None:
    assert estimate_pitch(np.zeros(samples), method).shape == (samples // 160 + 1,)


def test_float32_audio_gives_the_same_pitch() -> None:
    audio = harmonic(300.0, 1)
    np.testing.assert_allclose(estimate_pitch(audio.astype(np.float32), "dio")[20:-20], estimate_pitch(audio, "dio")[20:-20], rtol=1e-5)


@pytest.mark.parametrize("method", WORLD)
def test_world_is_called_as_upstream_calls_it(method: str, speech: np.ndarray) -> None:
    audio = speech[30000:42000].astype(np.float64)
    found, times = getattr(pyworld, method)(audio, 16000, f0_floor=50, f0_ceil=1100, frame_period=10)
    np.testing.assert_array_equal(estimate_pitch(audio, method), pyworld.stonemask(audio, found, times, 16000))


@needs_praat
@pytest.mark.parametrize("samples", [16000, 16037, 20001, 6400])
def test_praat_is_called_and_centred_as_upstream_does(samples: int, speech: np.ndarray) -> None:
    import parselmouth

    audio = speech[8000 : 8000 + samples]
    sound = parselmouth.Sound(audio.astype(np.float64), 16000)
    found = sound.to_pitch_ac(time_step=0.01, voicing_threshold=0.6, pitch_floor=50, pitch_ceiling=1100).selected_array["frequency"]
    frames = samples // 160
    left = (frames - len(found) + 1) // 2
    wanted = np.pad(found, [[left, frames - len(found) - left]])
    assert wanted.any()
    np.testing.assert_array_equal(estimate_pitch(audio, "pm"), np.append(wanted, 0))


def test_praat_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(UsageError, match=r"'pm' needs praat-parselmouth \(GPL\): install it with"):
        estimate_pitch(np.zeros(RATE), "pm")


def test_five_minutes_are_seen_in_one_piece_and_more_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = classical.in_blocks(lambda audio: seen.append(len(audio)) or np.zeros(len(audio) // 160 + 1))
    run(np.zeros(300 * RATE, np.float32))
    assert seen == [300 * RATE]
    seen.clear()
    run(np.zeros(300 * RATE + 160, np.float32))
    assert len(seen) == 5
    assert max(seen) <= 64 * RATE


@given(seconds=st.integers(5 * RATE + 160, 30 * RATE))
@settings(max_examples=40, deadline=None)
def test_blocks_keep_every_frame_once_with_their_context(seconds: int) -> None:
    """An estimator that returns where each frame stands in the clip shows the seams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classical, "WHOLE_SECONDS", 5)
        patch.setattr(classical, "BLOCK_SECONDS", 5)
        audio = np.arange(seconds, dtype=np.float64)
        run = classical.in_blocks(lambda block: np.append(block, [0.0] * 160)[::160][: len(block) // 160 + 1])
        found = run(audio)
    assert len(found) == seconds // 160 + 1
    np.testing.assert_array_equal(found[:-1], 160.0 * np.arange(len(found) - 1))


@pytest.mark.parametrize("seconds", [6, 7, 12])
def test_blocks_join_to_the_whole(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    audio = long_clip(40)[15 * RATE : (15 + seconds) * RATE]
    whole = estimate_pitch(audio, "dio")
    monkeypatch.setattr(classical, "WHOLE_SECONDS", 5)
    monkeypatch.setattr(classical, "BLOCK_SECONDS", 5)
    found = estimate_pitch(audio, "dio")
    np.testing.assert_array_equal(found > 0, whole > 0)
    np.testing.assert_allclose(found, whole, atol=1e-3)


@needs_praat
def test_praats_blocks_join_to_the_whole(monkeypatch: pytest.MonkeyPatch, speech: np.ndarray) -> None:
    """Its silence threshold is relative to the loudest sample, so blocks may differ where it is nearly silent."""
    whole = estimate_pitch(speech, "pm")
    monkeypatch.setattr(classical, "WHOLE_SECONDS", 3)
    monkeypatch.setattr(classical, "BLOCK_SECONDS", 3)
    found = estimate_pitch(speech, "pm")
    both = (found > 0) & (whole > 0)
    assert ((found > 0) != (whole > 0)).mean() < 0.02
    assert np.quantile(np.abs(12 * np.log2(found[both] / whole[both])), 0.95) < 0.1


def test_progress_rises_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classical, "WHOLE_SECONDS", 2)
    monkeypatch.setattr(classical, "BLOCK_SECONDS", 2)
    shares: list[float] = []
    estimate_pitch(np.zeros(10 * RATE), "dio", progress=shares.append)
    assert len(shares) > 2
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_no_classical_method_needs_a_model() -> None:
    for name in ("harvest", "dio", "pm"):
        assert ESTIMATORS[name].needs in (None, "parselmouth")
