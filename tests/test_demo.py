"""The demo's own arithmetic and words; the whole of it is what `make demo` and CI run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import demo
import numpy as np
import pytest
import soundfile
from rvc_coreml.cli.main import COMMANDS
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.models.embedded import read_embedded
from rvc_coreml.runtime.pitch import ESTIMATORS

ROOT = Path(__file__).parent.parent
CHECK: dict[str, Any] = {
    "component": "voice 'joe'",
    "stage": "decoder",
    "precision": "fp16",
    "case": "speech",
    "output": "audio",
    "ran": "reference",
    "exact": False,
    "snr_db": 51.23,
    "worst_cosine": 0.9999,
    "level": 1.0,
    "verdict": "good",
    "decided_by": [],
    "passed": True,
}


@pytest.fixture
def result() -> demo.Result:
    sound = np.random.default_rng(0).standard_normal(3200).astype(np.float32)
    run = {"executed_by": {"flow": "reference"}, "real_time_factor": 0.5, "peak_memory_bytes": 2e9, "fallbacks": []}
    sounds = [("source", sound, 16000), ("conversion", sound, 32000)]
    found = compare(sound, sound * 1.001, frame=320)
    return demo.Result(read_embedded(), "reference", -3, {"reference": run}, found, [CHECK], 12.0, sounds)


@pytest.mark.parametrize(("hertz", "semitones"), [(100.0, 0), (200.0, -12), (50.0, 12), (80.0, 4), (92.0, 0), (0.0, 0)])
def test_a_reader_is_moved_to_the_voices_median_pitch(hertz: float, semitones: int) -> None:
    contour = np.array([0.0, hertz * 0.9, hertz, hertz * 1.2, 0.0, 0.0])
    assert demo.transposition(contour, 100.0) == semitones


def test_one_line_says_what_is_heard(result: demo.Result) -> None:
    trained = replace(result, embedded=replace(result.embedded, seeded=False)).heard
    seeded = replace(result, embedded=replace(result.embedded, seeded=True)).heard
    assert "'joe'" in trained
    assert "-3 semitones" in trained
    assert "noise" not in trained
    assert "at the reader's own pitch" in replace(result, pitch=0, embedded=replace(result.embedded, seeded=False)).heard
    assert "seeded random numbers" in seeded
    assert "\n" not in trained + seeded + demo.YOUR_OWN


def test_the_line_for_a_voice_of_ones_own_names_commands_that_exist() -> None:
    commands = re.findall(r"rvc-coreml (\S+) (\w+)", demo.YOUR_OWN)
    assert commands == [("download", "hubert"), ("convert", "hubert"), ("convert", "voice")]
    assert {command for command, _what in commands} <= set(COMMANDS)


def test_the_report_has_figures_checks_and_both_lines(result: demo.Result) -> None:
    report = demo.make_report(result, demo.CLIP)
    assert result.heard in report
    assert demo.YOUR_OWN in report
    assert "**60.0 dB**" in report
    assert "level 1.0010" in report
    assert "| voice 'joe' | decoder (fp16) | speech | audio | reference | 51.2 | 0.999900 | 1.0000 | good |" in report
    assert "![spectrograms of source and conversion](spectrograms.png)" in report


def test_a_check_with_a_problem_names_it() -> None:
    row = demo.check_row({**CHECK, "verdict": "broken", "problem": "it raised"})
    assert row.endswith("|  |  |  | broken: it raised |")


def test_the_clip_fits_the_windows_that_are_converted() -> None:
    """With a second of context on either side; 20 ms a frame of the content encoder, 10 ms of the text encoder."""
    seconds = soundfile.info(demo.CLIP).duration + 2
    assert seconds <= int(demo.CONTENT_WINDOWS) * 0.02
    assert seconds <= int(demo.TEXT_ENCODER_WINDOWS.partition("=")[2]) * 0.01


def test_the_estimators_exist_and_the_workflow_bundles_the_demos_voice() -> None:
    assert {demo.METHOD, demo.MEDIAN_METHOD} <= set(ESTIMATORS)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert f"--voice {read_embedded().name} -o demo/bundle" in workflow
