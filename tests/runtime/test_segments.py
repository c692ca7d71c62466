"""Cuts and segments against upstream's rule written out naively."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.runtime.segments import EXTRA, HOP, PAD, SAMPLE_RATE, Segment, plan_segments, quiet_cuts

SECOND = SAMPLE_RATE


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(seconds * SECOND)).astype(np.float32)


def naive_cuts(audio: np.ndarray, split: str) -> list[int]:
    """rvc_inference.md, section 4.3, over the whole clip and by a library's convolution."""
    padded = np.pad(audio.astype(np.float64), HOP // 2, mode="reflect")
    if len(padded) <= 41 * SECOND:
        return []
    values = np.abs(padded) if split == "abs" else padded
    sums = np.convolve(values, np.ones(HOP), "valid")[: len(audio)]
    sums = sums if split == "abs" else np.abs(sums)
    cuts = []
    for center in range(38 * SECOND, len(audio), 38 * SECOND):
        around = sums[center - 6 * SECOND : center + 6 * SECOND]
        cuts.append((center - 6 * SECOND + int(np.argmin(around))) // HOP * HOP)
    return cuts


@pytest.mark.parametrize("split", ["abs", "sum"])
@pytest.mark.parametrize("seconds", [40.9, 41.1, 43.0, 76.5, 100.0])
def test_cuts_are_those_of_the_rule(seconds: float, split: str) -> None:
    audio = noise(seconds, seed=int(seconds))
    found = quiet_cuts(audio, split)
    assert found == naive_cuts(audio, split)
    assert len(found) == (0 if seconds < 41 else int(seconds // 38))


def test_the_two_rules_differ_where_a_loud_tone_sums_to_nothing() -> None:
    audio = noise(45) + 1
    tone = slice(36 * SECOND, 36 * SECOND + 1600)
    audio[tone] = 5 * np.sin(np.arange(1600) * 2 * np.pi / HOP)
    quiet = slice(40 * SECOND, 40 * SECOND + 1600)
    audio[quiet] *= 0.01
    assert 36 * SECOND <= quiet_cuts(audio, "sum")[0] < 36 * SECOND + 1600
    assert 40 * SECOND <= quiet_cuts(audio, "abs")[0] < 40 * SECOND + 1600


def test_silence_is_cut_where_its_window_begins() -> None:
    assert quiet_cuts(np.zeros(80 * SECOND, np.float32)) == [32 * SECOND, 70 * SECOND]


def test_a_clip_up_to_41_seconds_is_one_segment() -> None:
    audio = noise(41)[: 41 * SECOND - HOP]
    assert plan_segments(audio) == [Segment(0, len(audio) + 2 * PAD)]


@given(st.integers(1, 130 * SECOND), st.booleans())
@settings(max_examples=12, deadline=None)
def test_segments_overlap_by_their_pads_and_end_with_the_clip(samples: int, keep_length: bool) -> None:
    audio = np.resize(noise(3), samples)
    segments = plan_segments(audio, keep_length=keep_length)
    cuts = quiet_cuts(audio)
    assert [segment.start for segment in segments] == [0, *cuts]
    extra = EXTRA if keep_length else 0
    assert segments[-1].stop == samples + 2 * PAD + extra
    for segment, cut in zip(segments, cuts, strict=False):
        assert segment.stop == cut + 2 * PAD + HOP + extra
        assert segment.start % HOP == 0
        assert segment.stop - segment.start <= 53 * SECOND
    if keep_length:
        assert sum(segment.frames or 0 for segment in segments) == -(-samples // HOP)
