"""The step `record`: what it keeps of a run, and that it keeps nothing of half a one."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread
from train_embedded import record
from train_embedded.sources import TrainingError

LINES = [{"step": 0, "seconds": 1.0, "hours": 3.1}, {"step": 10, "seconds": 60.0, "phonemes": 3.0, "mel": 1.0}]
LISTENED = (100, 200, 300, 400, 500)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    samples = folder / "voice" / "samples"
    samples.mkdir(parents=True)
    for step in record.LOGS:
        (folder / step).mkdir(exist_ok=True)
        (folder / step / "log.jsonl").write_text("\n".join(map(json.dumps, LINES)) + '\n{"ste')
    for number, name in enumerate([*(f"{step:06d}" for step in LISTENED), "original"]):
        for sentence in (0, record.EXAMPLE):
            sound = np.full(3200, 1000 * number + sentence, np.int16)
            soundfile.write(samples / f"{name}_{sentence}.wav", sound, 32000, subtype="PCM_16")
    return folder


def test_logs_losses_and_three_stages_of_a_sentence_are_kept(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "training"
    record.run(Namespace(work=work, to=folder))
    examples = {"early_step_100": 0, "middle_step_300": 2, "final_step_500": 4, "original": 5}
    assert {path.name for path in folder.iterdir()} == {
        *(f"{step}.jsonl" for step in record.LOGS),
        *(f"{name}.flac" for name in examples),
        "losses.png",
    }
    for name, number in examples.items():
        samples, rate = soundfile.read(folder / f"{name}.flac", dtype="int16")
        assert (rate, set(samples.tolist())) == (32000, {1000 * number + record.EXAMPLE})
    assert (folder / "voice.jsonl").read_bytes() == (work / "voice" / "log.jsonl").read_bytes()
    assert imread(folder / "losses.png").std() > 0


@pytest.mark.parametrize("missing", ["encoder/log.jsonl", "voice/samples/original_2.wav"])
def test_of_half_a_run_nothing_is_kept(work: Path, tmp_path: Path, missing: str) -> None:
    (work / missing).unlink()
    with pytest.raises(TrainingError, match="run the"):
        record.run(Namespace(work=work, to=tmp_path / "training"))
    assert not (tmp_path / "training").exists()


def test_every_drawn_value_is_in_the_log_that_was_kept() -> None:
    kept = record.ROOT / "docs" / "embedded" / "training"
    for step, curves in record.PANELS.values():
        known = {name for line in record.read_lines(kept / f"{step}.jsonl") for name in line}
        assert set(curves) <= known
