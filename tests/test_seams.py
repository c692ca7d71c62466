"""Windows of packages against whole segments: how seams are found and judged, and (slow) what full-size networks make of 43 s."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_seams import LEAST_COSINE, NEAR, compare_clips, draw, frame_rms, joined_speech, measure, near_mean, seams_of
from rvc_coreml.converters.conversion import convert_content_encoder, convert_voice
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.segments import plan_segments
from seeded_checkpoints import write_hubert, write_voice

RATE = 40000


def clips(seconds: float = 5.0, level: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """A reference, and the same with a little noise."""
    generator = np.random.default_rng(0)
    reference = 0.1 * generator.standard_normal(round(seconds * RATE))
    return reference, reference + level * generator.standard_normal(len(reference))


def test_a_click_at_a_seam_is_told_and_one_elsewhere_is_not() -> None:
    reference, actual = clips()
    places = [("content_encoder", 120), ("text_encoder", 300)]
    assert compare_clips(reference, actual, RATE, places).error_95 < 2e-3
    actual[300 * 400 - 40 : 300 * 400 + 40] += 0.5
    found = compare_clips(reference, actual, RATE, places)
    assert (found.worst.kind, found.worst.frame, found.worst.percentile) == ("text_encoder", 300, pytest.approx(98, abs=2))
    assert [problem for problem in found.problems if "text_encoder seam at 3.00 s" in problem]
    assert not [problem for problem in found.problems if "content_encoder" in problem]


def test_the_level_at_a_seam_is_that_of_the_frames_around_it() -> None:
    reference, _actual = clips()
    actual = reference.copy()
    actual[(200 - NEAR) * 400 : (200 + NEAR) * 400] *= 2
    seams = compare_clips(reference, actual, RATE, [("segment", 200), ("segment", 400)]).seams
    assert [seam.level_db for seam in seams] == [pytest.approx(20 * np.log10(2)), pytest.approx(0, abs=1e-9)]


def test_a_dissimilar_clip_misses_the_cosine() -> None:
    reference, _actual = clips()
    other = np.sin(2 * np.pi * 440 * np.arange(len(reference)) / RATE)
    found = compare_clips(reference, other, RATE, [])
    assert found.log_mel_cosine < LEAST_COSINE
    assert "log-mel cosine" in found.problems[0]


def test_errors_are_the_rms_of_frames_averaged_over_their_neighbours() -> None:
    values = np.zeros(4000)
    values[2000:2400] = 3.0
    frames = frame_rms(values, 400)
    assert frames.tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 0, 0]
    assert near_mean(np.ones(30)) == pytest.approx(np.ones(30))
    spike = np.zeros(30)
    spike[15] = 11.0
    assert near_mean(spike)[15 - NEAR - 1 : 15 + NEAR + 2] == pytest.approx([0.0, *[1.0] * (2 * NEAR + 1), 0.0])


def test_seams_of_43_s_lie_where_the_packages_windows_end(small_library: Path) -> None:
    converter = VoiceConverter(small_library, "v2", "torch", print)
    segments = plan_segments(joined_speech())
    seams = seams_of(segments, converter)
    joints = [frame for kind, frame in seams if kind == "segment"]
    assert joints == [segments[1].start // 160]
    content = converter.synthesizer.entries["content_encoder"]
    first = [frame for kind, frame in seams if kind == "content_encoder" and frame < joints[0]]
    step = 2 * (content.window - 2 * content.context)
    assert first[0] == 2 * (content.window - content.context) - 100  # a second of padding is not kept
    assert np.diff(first).tolist() == [step] * (len(first) - 1)
    assert {kind for kind, _frame in seams} == {"content_encoder", "text_encoder", "segment"}


def test_a_picture_of_the_error_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    reference, actual = clips(2.0)
    found = compare_clips(reference, actual, RATE, [("content_encoder", 50), ("segment", 120)])
    draw(found, {"reference": reference, "actual": actual, "rate": RATE}, tmp_path / "seams.png")
    assert (tmp_path / "seams.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_43_s_through_the_packages_sound_like_whole_segments_and_no_seam_stands_out(tmp_path: Path) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        convert_content_encoder(write_hubert(tmp_path / "hubert_base.pt"), tmp_path / "library")
        convert_voice(write_voice(tmp_path / "voice.pth"), tmp_path / "library")
        found, _clips = measure(tmp_path / "library", "voice")
    finally:
        torch.set_num_threads(1)
    print(found)
    assert len(found.seams) >= 8
    assert found.log_mel_cosine >= LEAST_COSINE
    assert found.problems == []
