"""Errors that nobody hears are good in quiet audio, those that are heard are not, and audio that is not quiet is judged as ever."""

from __future__ import annotations

from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.golden_outputs.golden import Golden, Layout
from rvc_coreml.golden_outputs.hearing import INAUDIBLE_DBFS, raised
from rvc_coreml.golden_outputs.metrics import Comparison, compare_audio, worst_frame_cosine
from rvc_coreml.golden_outputs.spectra import log_mel, magnitudes, noise_magnitude
from rvc_coreml.golden_outputs.thresholds import PART, Verdict, judge, limit, quietest, usable

GOOD, DEGRADED, BROKEN = Verdict.GOOD, Verdict.DEGRADED, Verdict.BROKEN
RATE, SAMPLES = 16000, 32000
CLIPS = sorted((Path(__file__).parents[2] / "golden_outputs" / "audio").glob("*.wav"))
HEARD = ["decoder", "pipeline"]
KINDS = ["speech", "noise", "digital silence"]


@cache
def sound(kind: str) -> np.ndarray:
    """Two seconds of no particular level."""
    if kind == "speech":
        return soundfile.read(CLIPS[0], start=RATE, frames=SAMPLES)[0]
    return np.random.default_rng(1).standard_normal(SAMPLES) * (kind == "noise")


def at(dbfs: float, audio: np.ndarray) -> np.ndarray:
    """With an RMS of `dbfs` about its mean, of which there is none left."""
    level = audio.std()
    return (audio - audio.mean()) * 10 ** (dbfs / 20) / level if level else audio


def hiss(dbfs: float) -> np.ndarray:
    return at(dbfs, np.random.default_rng(2).standard_normal(SAMPLES))


def compared(what: str, reference: np.ndarray, actual: np.ndarray, **options: Any) -> Comparison:
    layout = Layout(0, RATE // 100, len(reference) * 100 // RATE)
    return Golden("c", what, {}, {"audio": reference}, {"audio": layout}, {"rate": RATE}).compare({"audio": actual}, **options)["audio"]


def verdict(what: str, reference: np.ndarray, error: np.ndarray, **options: Any) -> Verdict:
    return judge(compared(what, reference, reference + error, **options), what, "fp16").verdict


# ---------------------------------------------------------------- quiet audio


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", HEARD)
@pytest.mark.parametrize("level", [-50.0, -64.0, -75.0, -90.0])
def test_an_error_that_nobody_hears_is_good_in_whatever_is_quiet(what: str, kind: str, level: float) -> None:
    quiet = at(level, sound(kind))
    assert verdict(what, quiet, hiss(-86)) is GOOD
    assert verdict(what, quiet, hiss(-86), heard=False) is not GOOD


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("what", HEARD)
def test_the_same_ratio_20_db_louder_is_broken(what: str, kind: str) -> None:
    assert verdict(what, at(-44, sound(kind)), hiss(-66)) is BROKEN
    assert verdict(what, at(-44, sound(kind)), hiss(-66), heard=False) is BROKEN


@pytest.mark.parametrize("what", HEARD)
@pytest.mark.parametrize("kind", KINDS)
def test_in_near_silence_an_error_that_is_heard_is_caught(what: str, kind: str) -> None:
    for level in (-64.0, -90.0):
        quiet = at(level, sound(kind))
        assert not usable(compared(what, quiet, quiet + hiss(-60)))
        assert verdict(what, quiet, hiss(-60)) is BROKEN
        assert verdict(what, quiet, hiss(-80)) is DEGRADED
        click = np.zeros(SAMPLES)
        click[800:960] = 0.01 * np.hanning(160)  # 10 ms
        assert verdict(what, quiet, click) is not GOOD
        tone = at(-60, np.sin(2 * np.pi * 1000 * np.arange(SAMPLES) / RATE))
        assert verdict(what, quiet, tone) is BROKEN
    live = at(-64, sound("speech"))
    assert verdict(what, live, 3.25 * live) is BROKEN  # the known level of broken half-precision vocoders
    assert verdict(what, live, -live) is BROKEN
    assert verdict(what, live, np.full(SAMPLES, np.nan)) is BROKEN


@pytest.mark.parametrize("what", HEARD)
@pytest.mark.parametrize("level", [-46.0, -64.0, -200.0])
def test_the_border_of_snr_is_where_hearing_begins(what: str, level: float) -> None:
    quiet, entry = at(level, sound("noise")), limit(what, "fp16", "snr_db")
    for kind in (quiet, 0 * quiet):
        for error, expected in ((INAUDIBLE_DBFS - 0.05, GOOD), (INAUDIBLE_DBFS + 0.05, DEGRADED)):
            assert entry.band(compared(what, kind, kind + hiss(error), audio=False).snr_db) is expected


def test_the_levels_are_those_that_the_limits_leave() -> None:
    levels = {what: 20 * np.log10(astuple(quietest(what))) for what in HEARD}
    np.testing.assert_allclose(levels["decoder"], (-40, -58), atol=0.02)
    np.testing.assert_allclose(levels["pipeline"], (-45, -68.08), atol=0.02)
    with pytest.raises(KeyError):
        quietest("vocoder")


@given(st.floats(-220, 0), st.sampled_from(KINDS), st.sampled_from(HEARD), st.floats(-0.2, 0.2))
@settings(max_examples=25, deadline=None)
def test_equal_clips_are_perfect_at_every_level(level: float, kind: str, what: str, constant: float) -> None:
    audio = (at(level, sound(kind))[:8000] + constant).astype(np.float32)
    found = compared(what, audio, audio.copy())
    assert found.audio is not None
    assert (found.snr_db, found.level, found.max_error, found.finite) == (np.inf, 1, 0, True)
    np.testing.assert_allclose((found.worst_cosine, *astuple(found.audio)), (1, 1, 0, 0, 1), atol=1e-9)


@pytest.mark.parametrize("what", HEARD)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_clip_at_the_border_is_judged_the_same_on_either_side(what: str, kind: str) -> None:
    border = 20 * np.log10(quietest(what).clip)
    above, below = (compared(what, clip, clip + hiss(-80)) for clip in (at(border + side, sound(kind)) for side in (1e-6, -1e-6)))
    assert above.audio is not None
    assert below.audio is not None
    np.testing.assert_allclose(astuple(above)[:7], astuple(below)[:7], rtol=1e-5)
    np.testing.assert_allclose(astuple(above.audio), astuple(below.audio), rtol=1e-4)


# ---------------------------------------------------------------- audio that is not quiet


@pytest.mark.parametrize("what", HEARD)
@pytest.mark.parametrize("error", [-95.0, -70.0, -40.0, -20.0])
def test_loud_audio_has_the_same_figures_to_the_last_digit(what: str, error: float) -> None:
    """No frame and no mel band is quiet. Single bins of a noise are, and those the STFT distance sees."""
    for loud in (at(-10, sound("noise")), at(-20, sound("speech")) + at(-50, sound("noise"))):
        actual = loud + hiss(error)
        found, exactly = compared(what, loud, actual), compared(what, loud, actual, heard=False)
        assert exactly == compare_audio(loud, actual, RATE)
        assert found.audio is not None
        assert exactly.audio is not None
        assert 0.9 * exactly.audio.stft_distance < found.audio.stft_distance <= exactly.audio.stft_distance
        assert replace(found, audio=replace(found.audio, stft_distance=exactly.audio.stft_distance)) == exactly


@pytest.mark.parametrize("what", HEARD)
def test_of_a_loud_clip_with_pauses_only_what_is_below_hearing_in_them_is_let_go(what: str) -> None:
    loud = at(-20, sound("speech"))
    loud[20000:] = 0
    found, exactly = (compared(what, loud, loud + hiss(-86), heard=heard) for heard in (True, False))
    assert replace(found, audio=exactly.audio, worst_cosine=exactly.worst_cosine) == exactly
    assert judge(found, what, "fp16").verdict is GOOD
    assert judge(exactly, what, "fp16").verdict is not GOOD
    assert verdict(what, loud, hiss(-70)) is not GOOD
    assert verdict(what, loud, hiss(-60)) is not GOOD
    assert verdict(what, loud, hiss(-45)) is BROKEN


def test_a_quiet_frame_is_as_wrong_as_the_same_error_makes_a_louder_one() -> None:
    rng = np.random.default_rng(3)
    frames = rng.standard_normal((40, 100))
    frames[7] *= 0.1
    actual = frames.copy()
    across = rng.standard_normal(100)
    across -= frames[7] * (across @ frames[7]) / (frames[7] @ frames[7])
    actual[7] += 0.1 * across
    rms, error = (float(np.sqrt(np.mean(values**2))) for values in (frames[7], 0.1 * across))
    for least in (rms / 2, rms, 2 * rms, 5 * rms):
        wanted = np.cos(np.arctan(error / max(least, rms)))
        assert worst_frame_cosine(frames.reshape(-1), actual.reshape(-1), 0, 100, least) == pytest.approx(wanted, rel=1e-12)


# ---------------------------------------------------------------- what is not heard, and the pieces


@pytest.mark.parametrize(("what", "name"), [("flow", "z"), ("text_encoder", "m_p"), (PART, "audio"), ("pitch", "audio")])
def test_what_is_no_audio_has_no_threshold_of_hearing(what: str, name: str) -> None:
    quiet = at(-64, sound("noise"))[:16000].reshape(1, 10, -1)
    case = Golden("c", what, {}, {name: quiet}, {name: Layout(2, 1, 1600)})
    actual = {name: quiet + hiss(-86)[:16000].reshape(quiet.shape)}
    found = case.compare(actual)[name]
    assert found == case.compare(actual, heard=False)[name]
    assert found.snr_db == pytest.approx(22, abs=0.2)


def test_raising_keeps_the_shape_the_mean_and_the_error() -> None:
    clip = (at(-60, sound("speech")) + 0.3).astype(np.float32).reshape(1, 1, -1)
    actual = clip + hiss(-80).reshape(clip.shape)
    wanted, got = raised(clip, actual, 0.01)
    assert wanted.std() == pytest.approx(0.01)
    assert wanted.mean() == pytest.approx(clip.mean(dtype=np.float64))
    assert np.corrcoef(wanted.reshape(-1), clip.reshape(-1))[0, 1] == pytest.approx(1)
    np.testing.assert_allclose(got - wanted, actual - clip.astype(np.float64), atol=1e-15)
    assert all(one is other for one, other in zip(raised(clip, actual, 1e-4), (clip, actual), strict=True))


def test_silence_and_a_constant_are_raised_to_noise() -> None:
    for constant in (0.0, 0.1):
        silent = np.full(SAMPLES, constant, np.float32)
        wanted, got = raised(silent, silent, 0.01)
        np.testing.assert_array_equal(wanted, got)
        assert wanted.std() == pytest.approx(0.01, rel=0.02)
        assert wanted.mean() == pytest.approx(constant, abs=1e-3)


@pytest.mark.parametrize(("size", "window"), [(1024, 1024), (1024, 640)])
def test_the_floor_of_a_spectrum_is_what_white_noise_has_there(size: int, window: int) -> None:
    found = magnitudes(hiss(-40), size, 160, window)[8:-8, 8:-8]
    assert np.sqrt(np.mean(found**2)) == pytest.approx(noise_magnitude(0.01, window), rel=0.02)


def test_a_mel_band_below_the_noise_counts_as_the_noise() -> None:
    floor = log_mel(0 * hiss(0), RATE, 0.01)
    assert (floor == floor[0]).all()
    noise = log_mel(hiss(-40), RATE)[8:-8].mean()
    assert noise == pytest.approx(floor.mean(), abs=0.3)  # the mean of a logarithm, and of magnitudes, is below the RMS
    loud = hiss(0)
    np.testing.assert_array_equal(log_mel(loud, RATE, 0.001), log_mel(loud, RATE))
