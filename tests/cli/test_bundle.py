"""`rvc-coreml bundle`: what it reports, and what it refuses without leaving anything behind."""

from __future__ import annotations

import json
import os

import pytest
from rvc_coreml.runtime.backends.coreml_backend import CoreMLBackend
from rvc_coreml.runtime.downloads import CACHE_VARIABLE
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.placement import Placement
from support.cli import one_sentence, rvc, unchanged
from support.coreml import coreml

__all__ = ["coreml"]


def test_it_reports_what_it_made(small_library, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))  # on a Mac: where nothing was found yet
    with unchanged(small_library):
        result = rvc("bundle", "-m", small_library, "--voice", "nof0", "-o", tmp_path / "bundle", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    contract = json.loads((tmp_path / "bundle" / "contract.json").read_text())
    assert list(report["packages"]) == list(contract["stages"]) == ["content_encoder", "text_encoder", "flow", "decoder"]
    assert report["vectors"] == len(contract["vectors"])
    assert report["bytes"] == sum(file.stat().st_size for file in (tmp_path / "bundle").rglob("*") if file.is_file())
    assert contract["minimum_deployment_target"] == report["minimum_deployment_target"] == "iOS17"
    assert contract["voice"] == {**contract["voice"], "name": "nof0", "f0": False, "speaker": 0, "sample_rate": 40000}
    assert {entry["compute_units_from"] for entry in contract["stages"].values()} == {
        "the library: none is known to be correct on the machine that made the bundle"
    }
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


def test_compute_units_are_those_that_this_machine_found_correct(coreml, small_library, tmp_path):
    coreml.fault("scale", stage="decoder", units="ALL")
    Placement(CoreMLBackend(), lambda _line: None).stage(Library.open(small_library).voice("nof0"), "decoder")
    result = rvc("bundle", "-m", small_library, "--voice", "nof0", "-o", tmp_path / "bundle", "--json")
    assert result.exit_code == 0, result.output
    contract = json.loads((tmp_path / "bundle" / "contract.json").read_text())
    decoder, flow = contract["stages"]["decoder"], contract["stages"]["flow"]
    assert (decoder["compute_units"], decoder["compute_units_from"][:11]) == ("CPU_AND_NE", "the machine")
    assert (flow["compute_units"], flow["compute_units_from"][:11]) == ("ALL", "the library")
    assert "CPU_AND_NE is .cpuAndNeuralEngine" in (tmp_path / "bundle" / "integration.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voice", "nobody"], "has no voice 'nobody'"),
        (["--voice", "v2", "--speaker", "3"], "speaker 3 does not exist: this voice has 3"),
        ([], "choose one with --voice"),
    ],
)
def test_it_refuses_what_cannot_be_bundled(small_library, tmp_path, arguments, message):
    assert message in one_sentence(rvc("bundle", "-m", small_library, "-o", tmp_path / "bundle", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_it_never_writes_into_a_folder_that_is_in_use(small_library, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with unchanged(tmp_path):
        assert "exists already" in one_sentence(rvc("bundle", "-m", small_library, "--voice", "v2", "-o", tmp_path))


def test_a_failure_on_the_way_leaves_nothing(small_library, tmp_path, monkeypatch):
    def full(*_arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("rvc_coreml.runtime.bundle.writing.write_tables", full)
    line = one_sentence(rvc("bundle", "-m", small_library, "--voice", "nof0", "-o", tmp_path / "bundle"))
    assert "could not be written: No space left on device" in line
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_there(tmp_path):
    assert "is not a model library" in one_sentence(rvc("bundle", "-m", tmp_path / "none", "--voice", "v2", "-o", tmp_path / "bundle"))
