"""`rvc-coreml golden` as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rvc_coreml.runtime.goldens import CASES, golden_folder
from rvc_coreml.runtime.library import Library
from support.cli import one_sentence, rvc, unchanged
from support.goldens import change_golden
from support.torch_libraries import narrow_library


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Library:
    library = narrow_library(tmp_path_factory.mktemp("golden"), goldens=True)
    assert rvc("golden", "record", library.path).exit_code == 0
    return library


@pytest.fixture
def library(made: Library, tmp_path: Path) -> Library:
    return Library.open(shutil.copytree(made.path, tmp_path / "library"))


def test_show_lists_sets_cases_size_and_tools(made: Library) -> None:
    result = rvc("golden", "show", made.path)
    assert result.exit_code == 0, result.stderr
    for text in ("voice 'v2'", "pipeline", ", ".join(CASES), "MB, recorded with rvc-coreml", "torch 2."):
        assert text in result.stdout
    shown = json.loads(rvc("golden", "show", made.path, "--voice", "nof0", "--json").stdout)
    (entry,) = shown["components"]
    assert list(entry["sets"]) == ["text_encoder", "flow", "decoder", "pipeline"]
    assert entry["sets"]["flow"] == [case for case in CASES if case != "unvoiced"]
    assert (entry["producer"], entry["threshold_changes"]) == ("rvc-coreml", [])
    assert entry["bytes"] == sum(file.stat().st_size for file in Path(entry["folder"]).iterdir())


def test_check_passes_what_was_recorded(made: Library) -> None:
    result = rvc("golden", "check", made.path, "--json")
    assert result.exit_code == 0, result.stdout
    found = json.loads(result.stdout)
    assert found["passed"] is True
    assert {item["stage"] for item in found["checks"]} == {"content_encoder", "pitch", "text_encoder", "flow", "decoder", "pipeline"}
    assert all(item["snr_db"] is None or item["snr_db"] > 80 for item in found["checks"])
    assert "all as recorded" in rvc("golden", "check", made.path, "--voice", "v1").stdout


def test_check_finds_numbers_that_pytorch_does_not_give(library: Library) -> None:
    change_golden(library.voice("v2"), "decoder", "short", lambda audio: 1.001 * audio)
    result = rvc("golden", "check", library.path, "--voice", "v2", "--json")
    assert result.exit_code == 1
    failed = [item for item in json.loads(result.stdout)["checks"] if not item["passed"]]
    assert [(item["stage"], item["case"]) for item in failed] == [("decoder", "short")]
    assert failed[0]["snr_db"] == pytest.approx(60, abs=0.1)
    assert "1 failed" in rvc("golden", "check", library.path, "--voice", "v2").stdout


def test_check_finds_a_file_that_is_not_the_recorded_one_and_record_repairs_it(library: Library) -> None:
    path = golden_folder(library.voice("v2")) / "flow.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = rvc("golden", "check", library.path, "--voice", "v2")
    assert result.exit_code == 1
    assert "SHA-256 differs: record them again with 'rvc-coreml golden record'" in result.stdout
    assert rvc("golden", "record", library.path, "--voice", "v2").exit_code == 0
    assert rvc("golden", "check", library.path, "--voice", "v2").exit_code == 0


def test_check_says_that_a_pipeline_is_of_another_content_encoder(library: Library) -> None:
    manifest = library.path / "content_encoder" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(library.content_encoder().manifest.source["sha256"], "1" * 64))
    result = rvc("golden", "check", library.path, "--voice", "v2")
    assert result.exit_code == 1
    assert "the pipeline of the voice 'v2' was recorded with another content encoder: record them again" in result.stdout
    assert "1 failed" in result.stdout


def test_check_finds_limits_that_were_loosened(library: Library) -> None:
    path = golden_folder(library.voice("v2")) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["thresholds"]["flow"]["fp16"]["snr_db"]["good"] = 70.0
    path.write_text(json.dumps(manifest))
    result = rvc("golden", "check", library.path, "--voice", "v2")
    assert result.exit_code == 1
    assert "flow/fp16/snr_db/good" in result.stdout
    with unchanged(library.path):
        assert "--reason" in one_sentence(rvc("golden", "record", library.path, "--voice", "v2"))
    assert rvc("golden", "record", library.path, "--voice", "v2", "--reason", "a test").exit_code == 0
    assert "went from 70.0 to" in rvc("golden", "show", library.path, "--voice", "v2").stdout
    assert rvc("golden", "check", library.path, "--voice", "v2").exit_code == 0


def test_features_have_to_fit_a_voice(library: Library, tmp_path: Path) -> None:
    np.save(tmp_path / "v1.npy", np.random.default_rng(0).standard_normal((40, 256)).astype(np.float32))
    result = rvc("golden", "record", library.path, "--voice", "v1", "--features", tmp_path / "v1.npy", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["components"][0]["sets"]["flow"][-1] == "features"
    with unchanged(library.path):
        refused = rvc("golden", "record", library.path, "--voice", "v2", "--features", tmp_path / "v1.npy")
        assert "width 256, which no voice here reads" in one_sentence(refused)


def test_speech_can_be_ones_own(library: Library, speech_file: Path) -> None:
    assert rvc("golden", "record", library.path, "--voice", "nof0", "--audio", speech_file).exit_code == 0
    manifest = json.loads((golden_folder(library.voice("nof0")) / "manifest.json").read_text())
    assert manifest["sets"]["pipeline"]["cases"]["speech"]["facts"]["origin"].startswith("speech.wav, SHA-256 ")


@pytest.mark.parametrize("command", ["record", "show", "check"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["nowhere"], "nowhere is not a model library"), (["LIB", "--voice", "nobody"], "no voice 'nobody'")],
)
def test_what_cannot_be_done_is_one_sentence(made: Library, command: str, arguments: list[str], expected: str) -> None:
    with unchanged(made.path):
        result = rvc("golden", command, *(str(made.path) if argument == "LIB" else argument for argument in arguments))
        assert expected in one_sentence(result, (2,))


@pytest.mark.parametrize("option", ["--features", "--audio"])
def test_a_file_that_is_missing_is_named(made: Library, option: str) -> None:
    with unchanged(made.path):
        assert "missing.x" in one_sentence(rvc("golden", "record", made.path, option, "missing.x"), (2,))
