"""The step `export`: a work folder becomes the embedded voice's folder, or leaves it as it was."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import BEGIN, END, fill
from rvc_coreml.errors import UsageError
from rvc_coreml.models import load_hubert, load_voice
from rvc_coreml.models.embedded import CARD, CONTENT_ENCODER, FOLDER, INDEX, PITCH, PITCH_LICENCE, VOICE, read_embedded
from rvc_coreml.runtime.retrieval import read_index
from support.checkpoints import SMALL_HUBERT, small_config, write_small_hubert, write_voice
from support.cli import tree, unchanged
from train_embedded import export
from train_embedded.card import Facts, blocks, read_log
from train_embedded.settings import INDEX_RATE, WRITER
from train_embedded.shards import Clip, write_shard
from train_embedded.sources import SOURCES, TrainingError

PITCH_HZ = 120.0
ROOT = Path(__file__).parents[2]


def config(**changes: Any) -> Any:
    return type(SMALL_HUBERT)(**{**vars(SMALL_HUBERT), "projection": 256, **changes})


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """What training leaves, with small networks."""
    folder = tmp_path / "work"
    write_small_hubert(folder / "encoder" / "hf", config=config(), half=True)
    (folder / "voice").mkdir()
    write_voice(folder / "voice" / "voice.pth", config=small_config("v1", 32000), version="v1")
    np.save(folder / "voice" / "features.npy", np.random.default_rng(0).standard_normal((200, 256)).astype(np.float32))
    time = np.arange(32000) / 16000
    tone = sum(np.sin(2 * np.pi * PITCH_HZ * harmonic * time) / harmonic for harmonic in range(1, 8))
    clip = Clip((8000 * tone / np.abs(tone).max()).astype(np.int16), np.ones(200, np.uint8), "piper:joe", 0)
    write_shard(folder / "shards", "target_0000", [clip])
    (folder / "encoder" / "log.jsonl").write_text(
        '{"step": 900, "seconds": 60, "loss": 1.25}\n{"step": 1000, "seconds": 90.0, "valid_clean": 0.8125, "rate": 0.5}\n{"st'
    )
    (folder / "run.md").write_text("Run on a made-up machine.\n")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder like models/embedded, with an older state in it."""
    folder = tmp_path / "embedded"
    folder.mkdir()
    for name in ("__init__.py", PITCH, PITCH_LICENCE):
        shutil.copyfile(FOLDER / name, folder / name)
    (folder / VOICE).write_bytes(b"old")
    return folder


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copyfile(ROOT / "docs" / "embedded_voice.md", folder / "embedded_voice.md")
    return folder


def run(work: Path, target: Path, docs: Path) -> None:
    export.run(Namespace(work=work, target=target, docs=docs, stand_in=False))


def test_the_folder_is_whole_and_its_manifest_true(work: Path, target: Path, docs: Path) -> None:
    run(work, target, docs)
    embedded = read_embedded(target)
    assert (embedded.name, embedded.seeded) == ("joe", False)
    assert embedded.median_pitch == pytest.approx(PITCH_HZ, rel=0.01)
    assert embedded.index_rate == INDEX_RATE
    assert load_hubert(embedded.path(CONTENT_ENCODER)).config == config()
    assert load_voice(embedded.path(VOICE)).version == "v1"
    assert read_index(embedded.path(INDEX), 256).count == 200
    assert {path.name for path in target.iterdir()} == {
        *("__init__.py", "manifest.json", CONTENT_ENCODER, VOICE, INDEX, PITCH, PITCH_LICENCE, CARD)
    }
    assert [item.name for item in target.parent.iterdir() if item.name.startswith(".")] == []


def test_the_card_has_the_last_figures_of_the_logs_and_every_source(work: Path, target: Path, docs: Path) -> None:
    run(work, target, docs)
    page = (docs / "embedded_voice.md").read_text(encoding="utf-8")
    for text in (read_embedded(target).path(CARD).read_text(encoding="utf-8"), page):
        assert "| encoder | 1,000 | 1.5 | phoneme right in 81% of the speech frames of held-out sentences |" in text
        assert "Run on a made-up machine." in text
        assert "Median pitch of the target's own speech: 120 Hz" in text
        assert all(source.name in text for source in SOURCES if source.training)
        assert "lessac" in text
        assert "Not measured yet." in text
        assert "Seeded" not in text


@pytest.mark.parametrize("missing", ["encoder/hf/config.json", "voice/voice.pth", "voice/features.npy", "shards/target_0000.npz"])
def test_without_a_file_of_a_step_nothing_is_written(work: Path, target: Path, docs: Path, missing: str) -> None:
    (work / missing).unlink()
    with unchanged(target, docs), pytest.raises(TrainingError, match="run the"):
        run(work, target, docs)


@pytest.mark.parametrize("wrong", ["width", "version", "size"])
def test_what_cannot_be_shipped_is_not(work: Path, target: Path, docs: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong == "width":
        write_small_hubert(work / "encoder" / "hf", config=config(projection=12))
    elif wrong == "version":
        write_voice(work / "voice" / "voice.pth", config=small_config("v2", 32000), version="v2")
    else:
        monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with unchanged(target, docs), pytest.raises(TrainingError, match=r"256 channels|more than the 1,000"):
        run(work, target, docs)
    assert list(tree(target.parent)) == [name for name in tree(target.parent) if not name.startswith(".")]


def test_a_block_is_exchanged_and_the_rest_stays() -> None:
    text = f"before\n{BEGIN.format('one', WRITER)}\n\nold\n\n{END.format('one')}\nafter"
    assert fill(text, "one", "new", WRITER) == text.replace("old", "new")
    with pytest.raises(UsageError, match="no block 'two'"):
        fill(text, "two", "new", WRITER)


def test_the_page_in_the_repository_has_every_block() -> None:
    text = (ROOT / "docs" / "embedded_voice.md").read_text(encoding="utf-8")
    for block in blocks(Facts(True, 100.0)):
        assert "what the block says now" in fill(text, block, "what the block says now", WRITER)


def test_logs_that_are_missing_or_broken_are_no_figures(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") is None
    (tmp_path / "log.jsonl").write_text("half a li")
    assert read_log(tmp_path / "log.jsonl") is None


def test_an_evaluation_that_is_no_json_is_one_sentence(work: Path, target: Path, docs: Path) -> None:
    (work / "evaluation.json").write_text(json.dumps({"clips": []})[:-3])
    with unchanged(target, docs), pytest.raises(TrainingError, match="run the evaluation again"):
        run(work, target, docs)
