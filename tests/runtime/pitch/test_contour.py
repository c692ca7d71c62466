from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.pitch import apply_contour_options, autotune, coarse_pitch, fill_unvoiced, median_filter, shift_semitones
from rvc_coreml.runtime.pitch.contour import NOTES
from rvc_coreml.runtime.pitch.f0_file import PitchTrack
from scipy.signal import medfilt

contours = arrays(np.float64, st.integers(0, 60), elements=st.one_of(st.just(0.0), st.floats(40, 1200)))


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


@pytest.mark.parametrize(
    ("hertz", "bin_"), [(0, 1), (1e-9, 1), (30, 1), (50, 1), (51.2, 1), (51.5, 2), (1100, 255), (1099.9, 255), (5000, 255), (1e9, 255)]
)
def test_coarse_pitch_at_the_edges(hertz: float, bin_: int) -> None:
    assert coarse_pitch(np.array([hertz])).tolist() == [bin_]


def test_coarse_pitch_is_monotonic_keeps_shape_and_uses_every_bin() -> None:
    coarse = coarse_pitch(np.linspace(0, 1200, 30000).reshape(3, 10000))
    assert coarse.shape == (3, 10000)
    assert (np.diff(coarse.ravel()) >= 0).all()
    assert set(coarse.ravel()) == set(range(1, 256))


@pytest.mark.parametrize(
    ("semitones", "octaves", "factor"), [(12, 0, 2), (0, -1, 0.5), (7, 1, 2 ** (19 / 12)), (-0.5, 0, 2 ** (-0.5 / 12))]
)
def test_a_shift_multiplies_voiced_frames(semitones: float, octaves: float, factor: float) -> None:
    pitch = np.array([0.0, 100.0, 440.0])
    np.testing.assert_allclose(shift_semitones(pitch, semitones, octaves), pitch * factor, rtol=1e-15)


@given(contours)
def test_the_median_is_scipys_above_a_radius_of_two(pitch: np.ndarray) -> None:
    if len(pitch) >= 3:
        np.testing.assert_array_equal(median_filter(pitch, 3), medfilt(pitch, 3))
    assert len(median_filter(pitch, 3)) == len(pitch)
    np.testing.assert_array_equal(median_filter(pitch, 7), median_filter(pitch, 3))
    np.testing.assert_array_equal(median_filter(pitch, 2), pitch)


def test_the_notes_are_those_of_the_piano() -> None:
    assert NOTES[0] == 49.0
    assert NOTES[-1] == 1046.5
    assert len(NOTES) == 54
    assert {55.0, 110.0, 220.0, 440.0, 880.0, 261.63, 466.16} <= set(NOTES.tolist())
    np.testing.assert_allclose(NOTES[1:] / NOTES[:-1], 2 ** (1 / 12), rtol=2e-4)


@given(contours, st.floats(0, 1))
def test_autotune_moves_voiced_frames_towards_the_nearest_note(pitch: np.ndarray, strength: float) -> None:
    wanted = [value and value + (min(NOTES, key=lambda note: abs(note - value)) - value) * strength for value in pitch]
    np.testing.assert_allclose(autotune(pitch, strength), wanted, rtol=1e-12)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_another_strength_is_refused(strength: float) -> None:
    with pytest.raises(UsageError, match="give 0 to 1"):
        autotune(np.zeros(3), strength)


def test_unvoiced_frames_are_kept_or_drawn_through() -> None:
    pitch = np.array([0, 0, 100, 0, 0, 0, 200, 0], float)
    np.testing.assert_array_equal(fill_unvoiced(pitch, "keep"), pitch)
    np.testing.assert_allclose(fill_unvoiced(pitch, "interpolate"), [100, 100, 100, 125, 150, 175, 200, 200])
    assert not fill_unvoiced(np.zeros(5), "interpolate").any()
    with pytest.raises(UsageError, match="'drop' is unknown; choose keep or interpolate"):
        fill_unvoiced(pitch, "drop")


@given(contours)
def test_drawing_through_leaves_no_frame_unvoiced_and_voiced_ones_alone(pitch: np.ndarray) -> None:
    drawn = fill_unvoiced(pitch, "interpolate")
    voiced = pitch > 0
    np.testing.assert_array_equal(drawn[voiced], pitch[voiced])
    assert (drawn > 0).all() or not voiced.any()


def test_options_apply_in_upstreams_order() -> None:
    """Each step is visible: a spike goes, notes are hit before the shift, gaps are drawn before it, the file is final."""
    pitch = np.array([0, 103, 500, 103, 103, 0, 0, 107, 107, 107, 0], float)
    track = PitchTrack(np.array([0.0, 0.01]), np.array([300.0, 310.0]))
    found = apply_contour_options(
        pitch, method="harvest", filter_radius=3, autotune_strength=1, unvoiced="interpolate", semitones=12, track=track, pad_frames=8
    )
    a, b = 103.83 * 2, 110.0 * 2  # both go to G#2, 103.83, and A2, 110, an octave up
    expected = np.array([a, a, a, a, a, a + (b - a) / 3, a + 2 * (b - a) / 3, b, b, b, b])
    expected[[7, 8, 9]] = [b, 300, 310]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("method", ["dio", "rmvpe", None])
def test_only_harvest_is_median_filtered(method: str | None) -> None:
    pitch = np.array([100, 100, 300, 100, 100], float)
    np.testing.assert_array_equal(apply_contour_options(pitch, method=method), pitch)
    assert apply_contour_options(pitch, method="harvest")[2] == 100
    assert apply_contour_options(pitch, method="harvest", filter_radius=2)[2] == 300


def test_the_given_contour_is_not_changed() -> None:
    pitch = np.full(5, 100.0)
    found = apply_contour_options(pitch, track=PitchTrack(np.array([0.0]), np.array([50.0])))
    assert found[0] == 50
    assert (pitch == 100).all()
