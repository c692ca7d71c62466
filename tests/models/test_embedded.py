"""The voice that comes with rvc-coreml: complete, unchanged, small enough, and of the shapes that it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from rvc_coreml.errors import UnreadableCheckpoint
from rvc_coreml.golden_outputs import __file__ as goldens
from rvc_coreml.models import load_hubert, load_voice
from rvc_coreml.models.embedded import (
    CARD,
    CONTENT_ENCODER,
    CONTENT_ENCODER_FILES,
    FOLDER,
    INDEX,
    MANIFEST,
    PITCH,
    PITCH_LICENCE,
    VOICE,
    embedded_path,
    read_embedded,
)
from rvc_coreml.runtime.retrieval import read_index

PARTS = (CONTENT_ENCODER, VOICE, INDEX, PITCH, PITCH_LICENCE, CARD)
MOST_BYTES = 20_000_000
MOST_VECTORS = 5000


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "embedded"))


def test_every_file_is_listed_and_is_what_was_listed() -> None:
    embedded = read_embedded()
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there == {MANIFEST, *embedded.files}
    assert set(embedded.files) == {*CONTENT_ENCODER_FILES, *PARTS} - {CONTENT_ENCODER}
    for part in PARTS:
        assert embedded.path(part) == FOLDER / part
    assert all(one.licence == "MIT" and one.made_by for one in embedded.files.values())
    assert 50 < embedded.median_pitch < 400
    assert 0 <= embedded.index_rate <= 1


@pytest.mark.parametrize("name", [CONTENT_ENCODER_FILES[1], VOICE])
def test_weights_are_small_enough_to_ship(name: str) -> None:
    assert read_embedded().files[name].bytes <= MOST_BYTES


def test_the_content_encoder_gives_what_a_v1_voice_reads() -> None:
    encoder = load_hubert(embedded_path(CONTENT_ENCODER))
    assert encoder.config.v1_layer == encoder.config.layers == 9
    samples, rate = soundfile.read(Path(goldens).parent / "speech.wav", dtype="float32")
    assert rate == 16000
    features = encoder.features(torch.from_numpy(samples)[None], "v1")
    assert features.shape == (1, encoder.config.frames(len(samples)), 256)
    assert torch.isfinite(features).all()
    assert features.std(dim=1).mean() > 1e-3


def test_the_voice_is_v1_with_f0_at_32_khz() -> None:
    voice = load_voice(embedded_path(VOICE))
    assert (voice.version, voice.has_f0, voice.sample_rate, voice.speakers) == ("v1", True, 32000, 1)
    assert {tensor.dtype for tensor in voice.source_state.values()} == {torch.float16}


def test_the_index_holds_features_of_the_encoders_width() -> None:
    index = read_index(embedded_path(INDEX), 256)
    assert 0 < index.count <= MOST_VECTORS
    assert torch.isfinite(index.vectors).all()


def test_random_weights_say_that_they_are() -> None:
    """In the card, which is what people read; the manifest says it to programs."""
    assert ("Seeded random weights" in embedded_path(CARD).read_text(encoding="utf-8")) == read_embedded().seeded


@pytest.mark.parametrize("name", [CONTENT_ENCODER_FILES[0], VOICE, CARD])
def test_a_missing_file_is_one_sentence_with_a_remedy(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UnreadableCheckpoint, match=rf"{Path(name).name} is missing: install rvc-coreml again$"):
        read_embedded(copy).path(name)


def test_one_changed_byte_is_noticed_in_any_file_of_a_part(copy: Path) -> None:
    path = copy / CONTENT_ENCODER_FILES[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    embedded = read_embedded(copy)
    with pytest.raises(UnreadableCheckpoint, match=r"model\.safetensors is not what rvc-coreml came with"):
        embedded.path(CONTENT_ENCODER)
    assert embedded.path(VOICE) == copy / VOICE


def test_an_unknown_part_and_a_damaged_manifest_are_one_sentence(copy: Path) -> None:
    with pytest.raises(UnreadableCheckpoint, match="has no drums"):
        read_embedded(copy).path("drums")
    values = json.loads((copy / MANIFEST).read_text())
    del values["files"][VOICE]["sha256"]
    (copy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UnreadableCheckpoint, match=r"manifest\.json is damaged .*install rvc-coreml again"):
        read_embedded(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(UnreadableCheckpoint, match="does not exist"):
        read_embedded(copy)
