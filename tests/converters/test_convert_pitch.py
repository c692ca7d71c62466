"""Pitch models into a library: packages proved, audited and run, and errors in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rvc_coreml.cli.main import main
from rvc_coreml.converters.audit import audit_package
from rvc_coreml.converters.conversion import convert_pitch
from rvc_coreml.errors import AuditError, CheckpointError, LibraryError
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.embedded import PITCH, embedded_path
from rvc_coreml.models.layouts import stage_of
from rvc_coreml.runtime.backends import choose_backend
from rvc_coreml.runtime.goldens import CASES
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.pitch import estimate_pitch
from rvc_coreml.runtime.pitch.models import LibraryPitchModels
from rvc_coreml.runtime.placement import Placement
from rvc_coreml.runtime.validation import validate_library
from support.damage import largest_weight
from support.independent_placement import opinion
from support.pitch_packages import crepe_file, fcpe_file
from support.rmvpe_checkpoints import NARROW, rmvpe_state, write_rmvpe

LEAST_SNR = 40.0  # dB, what is asked of RMVPE's and FCPE's packages


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rmvpe(tmp_path_factory.mktemp("source") / "rmvpe.pt")


@pytest.fixture(scope="module")
def library(source: Path) -> Library:
    convert_pitch(source, source.parent / "library")
    return Library.open(source.parent / "library")


def test_the_package_is_proved_and_audited(library: Library) -> None:
    component = library.pitch_model("rmvpe")
    entry = component.manifest.stages["pitch"]
    network = load_pitch(component.weights).network
    on_host = sum(value.numel() for name, value in network.named_parameters() if name.startswith(network.host_entries))
    assert component.title == "pitch model 'rmvpe'"
    assert entry.reference_snr_db is not None
    assert entry.reference_snr_db >= LEAST_SNR
    assert entry.audited_values == sum(value.numel() for value in network.parameters()) - on_host
    assert entry.window % NARROW.granularity == 0
    assert "gru" not in entry.operation_counts
    assert "while_loop" not in entry.operation_counts
    assert library.components()[0].manifest == component.manifest


def test_validate_covers_pitch_models(library: Library) -> None:
    checks = validate_library(library, choose_backend("reference")).checks
    assert {(check.stage, check.case) for check in checks} == {("pitch", case) for case in CASES}
    assert {check.ran for check in checks} == {"reference", "torch (cpu)"}
    assert all(check.passed for check in checks), [check.as_dict() for check in checks if not check.passed]


def test_package_and_pytorch_agree_on_a_clip(library: Library, speech: np.ndarray) -> None:
    found = {}
    for backend in ("reference", "torch"):
        notes: list[str] = []
        models = LibraryPitchModels(library, Placement(choose_backend(backend), notes.append))
        assert models.available() == ["rmvpe"]
        found[backend] = estimate_pitch(speech[16000:48000], "auto", models=models)
        assert notes == []
        assert models.loaded["rmvpe"].executed_by.startswith(backend)
    voiced = (found["torch"] > 0) & (found["reference"] > 0)
    assert voiced.mean() > 0.5
    cents = 1200 * np.abs(np.log2(found["reference"][voiced] / found["torch"][voiced]))
    assert np.median(cents) < 5


def test_a_damaged_weight_of_the_package_is_found(library: Library, source: Path, tmp_path: Path) -> None:
    component = library.pitch_model("rmvpe")
    copy = shutil.copytree(component.package("pitch"), tmp_path / "pitch.mlpackage")
    weights = largest_weight(copy)
    weights[3] *= weights.dtype.type(1.01)
    weights.flush()
    network, entry = load_pitch(source).network, component.manifest.stages["pitch"]
    stage, plain = (stage_of(network, "pitch", layout, entry.window) for layout in (entry.layout, "plain"))
    with pytest.raises(AuditError, match=r"1 of \d+ values"):
        audit_package(copy, stage, component.modules("pitch"), plain)


def test_another_file_needs_replace(library: Library, source: Path, tmp_path: Path) -> None:
    other = write_rmvpe(tmp_path / "other.pt", seed=2)
    with pytest.raises(LibraryError, match="pass --replace"):
        convert_pitch(other, library.path)
    assert library.pitch_model("rmvpe").manifest.source["file"] == source.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a checkpoint at all", "neither a torch checkpoint nor safetensors"),
        ({"weight": {}, "config": []}, "no pitch model known here"),
        ({name: value for name, value in rmvpe_state().items() if "cnn" not in name}, "missing: cnn"),
    ],
)
def test_a_bad_file_leaves_nothing_behind(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        convert_pitch(path, tmp_path / "library")
    assert not (tmp_path / "library").exists()


def test_a_library_without_the_model_says_what_to_do(library: Library) -> None:
    with pytest.raises(LibraryError, match="convert pitch FILE"):
        library.pitch_model("fcpe")


def test_the_command_reports_the_package(source: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["convert", "pitch", str(source), "-o", str(tmp_path / "library"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["kind"], report["name"]) == ("pitch", "rmvpe")
    assert report["stages"]["pitch"]["reference_snr_db"] >= LEAST_SNR


def test_the_embedded_model_converts_whole_for_the_engine_and_agrees_on_a_clip(speech: np.ndarray, tmp_path: Path) -> None:
    component = convert_pitch(embedded_path(PITCH), tmp_path / "library")
    entry = component.manifest.stages["pitch"]
    assert (component.manifest.name, entry.layout, entry.precision, entry.audited_values) == ("swiftf0", "ane", "fp16", 18558)
    assert (entry.reference_snr_db or 0) >= LEAST_SNR
    assert opinion(component.package("pitch")).share_of_flops == 1.0
    library = Library.open(tmp_path / "library")
    checks = validate_library(library, choose_backend("reference")).checks
    assert checks
    assert all(check.passed for check in checks), [check.as_dict() for check in checks if not check.passed]
    notes: list[str] = []
    models = LibraryPitchModels(library, Placement(choose_backend("reference"), notes.append))
    found = estimate_pitch(speech, "auto", models=models)
    assert models.loaded["swiftf0"].executed_by.startswith("reference")
    assert notes == []
    wanted = estimate_pitch(speech, "swiftf0")  # the same in PyTorch
    both = (found > 0) & (wanted > 0)
    assert both.sum() > 0.95 * ((found > 0) | (wanted > 0)).sum() > 100
    assert np.median(1200 * np.abs(np.log2(found[both] / wanted[both]))) < 2


def test_a_library_without_a_pitch_model_says_what_runs_instead(small_library: Path, speech: np.ndarray) -> None:
    notes: list[str] = []
    models = LibraryPitchModels(Library.open(small_library), Placement(choose_backend("torch"), notes.append))
    assert (estimate_pitch(speech[:32000], "auto", models=models) > 0).any()
    assert notes == []  # nothing was asked for that is not there
    for _again in range(2):
        assert (estimate_pitch(speech[:32000], "swiftf0", models=models) > 0).any()
    assert notes == ["the library holds no model for pitch method 'swiftf0': the one that comes with rvc-coreml runs in PyTorch (cpu)"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", [lambda: fcpe_file(), lambda: crepe_file("tiny"), lambda: crepe_file("full")], ids=["fcpe", "tiny", "full"]
)
def test_published_weights_convert(file, tmp_path: Path) -> None:
    component = convert_pitch(file(), tmp_path / "library")
    checks = validate_library(Library.open(tmp_path / "library"), choose_backend("reference")).checks
    assert (component.manifest.stages["pitch"].reference_snr_db or 0) >= LEAST_SNR
    assert all(check.passed for check in checks), [check.as_dict() for check in checks if not check.passed]
