"""export-onnx and the way back, as a user walks it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from rvc_coreml.models import load_voice
from rvc_coreml.runtime.library import Library
from support.checkpoints import write_voice
from support.cli import one_sentence, rvc, unchanged, usage_error


@pytest.mark.slow  # a whole conversion
def test_a_voice_goes_out_and_comes_back_into_a_library(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "singer.pth", half=False)
    folder = tmp_path / "downloads"
    folder.mkdir()
    result = rvc("export-onnx", voice, "-o", folder / "singer.onnx", "--layout", "webui", "--license", "CC0", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["inputs"]["phone"] == [1, "frames", 768]
    assert (report["sample_rate"], report["bytes"]) == (40000, (folder / "singer.onnx").stat().st_size)
    library = tmp_path / "library"
    result = rvc("convert", "voice", folder, "-o", library)
    assert result.exit_code == 0, result.output
    component = Library.open(library).voice("singer")
    assert component.manifest.source["file"] == "singer.onnx"
    assert component.manifest.details["sample_rate"] == 40000
    kept, wanted = load_voice(component.weights), load_voice(voice)
    for name, tensor in wanted.synthesizer.state_dict().items():
        assert torch.equal(kept.source_state[name], tensor), name
    again = rvc("export-onnx", library, "-o", tmp_path / "again.onnx", "--layout", "w-okada", "--half")
    assert "v2 voice, 40000 Hz, layout w-okada, opset 17" in again.stdout
    onnx.checker.check_model(str(tmp_path / "again.onnx"))


def test_complaints_are_one_sentence(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "nof0.pth", f0=False)
    target = tmp_path / "a.onnx"
    assert "choose --layout w-okada" in one_sentence(rvc("export-onnx", voice, "-o", target, "--layout", "webui"))
    assert "choose webui or w-okada" in one_sentence(rvc("export-onnx", voice, "-o", target, "--layout", "moevs"))
    assert "does not exist" in one_sentence(rvc("export-onnx", tmp_path / "no.pth", "-o", target, "--layout", "w-okada"))
    assert "not a model library" in one_sentence(rvc("export-onnx", tmp_path, "-o", target, "--layout", "w-okada"))
    assert "could not be written" in one_sentence(rvc("export-onnx", voice, "-o", tmp_path / "no" / "a.onnx", "--layout", "w-okada"))
    with unchanged(tmp_path):
        assert "is the voice itself" in one_sentence(rvc("export-onnx", voice, "-o", voice, "--layout", "w-okada"), (2,))
    assert "--layout" in usage_error(rvc("export-onnx", voice, "-o", target))
    assert not target.exists()


@pytest.mark.parametrize("content", [b"\x08\x08\x12\x07pytorch", b"not an onnx file at all"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    assert "no ONNX file" in one_sentence(rvc("convert", "voice", path, "-o", tmp_path / "library"))
    assert not (tmp_path / "library").exists()
