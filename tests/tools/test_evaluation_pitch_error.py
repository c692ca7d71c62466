"""Errors of contours whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest
from train_embedded.pitch_error import GROSS, pitch_error
from train_embedded.settings import LEAST_SHIFT, median_pitch, transposition

CONTOUR = np.where(np.arange(200) % 10 < 6, 120 + 30 * np.sin(np.arange(200) / 15), 0.0)


@pytest.mark.parametrize("shift", [-12, -3, 0, 0.4, 7])
def test_a_contour_that_moved_as_asked_has_no_error(shift: float) -> None:
    found = pitch_error(CONTOUR, CONTOUR * 2 ** (shift / 12), shift)
    assert found.median == pytest.approx(0, abs=1e-12)
    assert found.bias == pytest.approx(0, abs=1e-12)
    assert (found.gross, found.voicing, found.frames) == (0, 1, np.count_nonzero(CONTOUR))


@pytest.mark.parametrize("shift", [3, -3])
def test_a_shift_that_nobody_asked_for_reads_as_itself(shift: int) -> None:
    found = pitch_error(CONTOUR, CONTOUR * 2 ** (shift / 12), 0)
    assert found.median == pytest.approx(3)
    assert found.bias == pytest.approx(shift)
    assert GROSS < 3
    assert found.gross == 1


def test_voicing_counts_all_frames_and_pitch_those_voiced_in_both() -> None:
    source, converted = np.array([100.0, 100, 0, 0]), np.array([200.0, 0, 100, 0])
    found = pitch_error(source, converted, 0)
    assert (found.median, found.voicing, found.frames) == (12, 0.5, 1)


def test_without_a_common_voiced_frame_there_is_no_error_to_tell() -> None:
    found = pitch_error(CONTOUR, np.zeros_like(CONTOUR), 0)
    assert (found.median, found.bias, found.gross, found.frames) == (None, None, None, 0)
    assert found.voicing == pytest.approx(np.mean(CONTOUR == 0))


def test_of_different_lengths_the_common_frames_are_compared() -> None:
    assert pitch_error(CONTOUR, CONTOUR[:50], 0).median == 0
    with pytest.raises(ValueError, match="empty"):
        pitch_error(CONTOUR, CONTOUR[:0], 0)


@pytest.mark.parametrize(("source", "target", "semitones"), [(220.0, 110.0, -12), (100.0, 119.0, 3), (118.0, 118.0, 0), (0.0, 90.0, 0)])
def test_the_transposition_is_whole_semitones(source: float, target: float, semitones: int) -> None:
    assert transposition(np.array([0, source * 0.9, source, source * 1.3, 0]), target) == semitones


@pytest.mark.parametrize("direction", [-1, 1])
def test_a_shift_that_nobody_needs_is_not_applied(direction: int) -> None:
    def asked(distance: float) -> int:
        return transposition(np.full(9, 100.0), 100 * 2 ** (direction * distance / 12))

    assert asked(LEAST_SHIFT - 0.01) == 0
    assert asked(LEAST_SHIFT + 0.01) == direction * LEAST_SHIFT
    assert asked(LEAST_SHIFT + 0.6) == direction * (LEAST_SHIFT + 1)


def test_the_median_pitch_is_of_voiced_frames() -> None:
    assert median_pitch(np.array([0.0, 0, 0, 100, 110, 120])) == 110
    assert median_pitch(np.zeros(5)) is None
