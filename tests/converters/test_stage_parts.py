"""A library's stage of which something stays in PyTorch: what is stored, proved, audited, recorded, loaded and refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rvc_coreml.converters.audit import audit_component
from rvc_coreml.converters.conversion import convert_content_encoder
from rvc_coreml.converters.fallback_options import Fallback, in_pytorch_text
from rvc_coreml.errors import FallbackError, LibraryError
from rvc_coreml.golden_outputs.golden import GoldenSet
from rvc_coreml.golden_outputs.thresholds import usable
from rvc_coreml.runtime.backends.base import predict_arrays
from rvc_coreml.runtime.backends.reference_backend import ReferenceBackend
from rvc_coreml.runtime.goldens import CASES, golden_folder, stage_goldens
from rvc_coreml.runtime.library import Component, Library
from rvc_coreml.runtime.placement import Placement
from rvc_coreml.runtime.recording import check
from support.checkpoints import write_small_hubert
from support.damage import largest_weight

STAGE = "content_encoder"
PATTERN = "hubert.encoder.layers.1.fc1"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_hubert(tmp_path_factory.mktemp("source") / "hubert")


@pytest.fixture(scope="module")
def library(source: Path) -> Library:
    convert_content_encoder(source, source.parent / "library", keep_in_pytorch=(PATTERN,), layout="plain", windows="300")
    return Library.open(source.parent / "library")


@pytest.fixture
def copied(library: Library, tmp_path: Path) -> Component:
    return Library.open(shutil.copytree(library.path, tmp_path / "library")).content_encoder()


def test_the_manifest_says_what_stays_where_and_why(library: Library) -> None:
    entry = library.content_encoder().manifest.stages[STAGE]
    assert entry.plan is not None
    [finding] = [item for item in entry.plan["findings"] if item["rule"] != "island"]
    assert (finding["operation"], finding["module"], finding["rule"]) == ("aten.linear.default", PATTERN, "unwanted")
    assert entry.package == f"{STAGE}.graph.json"
    assert len(entry.packages()) == 2
    assert entry.reference_snr_db is not None
    assert entry.reference_snr_db > 40
    [line] = in_pytorch_text(library.content_encoder().manifest)
    assert re.match(rf"{STAGE}: [12] of \d+ operations \(", line)  # and the mask's transposition, which is not worth a crossing
    assert f"aten.linear at {PATTERN} (unwanted)" in line


def test_the_build_holds_the_graph_the_packages_and_no_second_copy_of_weights(library: Library) -> None:
    component = library.content_encoder()
    entry = component.manifest.stages[STAGE]
    wanted = {entry.package, entry.operations, *entry.packages(), "weights.safetensors", "golden"}
    assert {item.name for item in component.build.iterdir()} == wanted
    operations = json.loads((component.build / entry.operations).read_text())
    assert sum(len(part) for part in operations.values()) == sum(entry.operation_counts.values())


def test_every_case_on_the_reference_backend_is_what_pytorch_gives(library: Library) -> None:
    component = library.content_encoder()
    runner = ReferenceBackend().load(component, STAGE)
    for golden in stage_goldens(component, STAGE, ("full", "short")).values():
        compared = golden.compare(predict_arrays(runner, golden.inputs), audio=False)
        assert all(usable(comparison) and comparison.snr_db > 40 for comparison in compared.values())


def test_parts_have_goldens_for_every_case_and_they_are_what_pytorch_gives_today(library: Library) -> None:
    component = library.content_encoder()
    parts = {f"{STAGE}.{Path(name).name.split('.')[1]}" for name in component.manifest.stages[STAGE].packages()}
    sets = GoldenSet.load(golden_folder(component)).sets
    assert set(sets) == {STAGE, *parts}
    for name in parts:
        assert set(sets[name]) == set(CASES)
    drifts = check(library, component)
    assert {drift.stage for drift in drifts} == {STAGE, *parts}
    assert all(drift.passed for drift in drifts), drifts


def test_placement_serves_it_and_says_by_what(library: Library) -> None:
    notes: list[str] = []
    component = library.content_encoder()
    placed = Placement(ReferenceBackend(), notes.append).stage(component, STAGE)
    golden = stage_goldens(component, STAGE, ("full",))["full"]
    compared = golden.compare(predict_arrays(placed, golden.inputs), audio=False)
    assert all(usable(comparison) for comparison in compared.values())
    assert placed.executed_by.startswith("reference")
    assert notes == []


def test_the_audit_covers_every_part_and_finds_one_wrong_weight(copied: Component) -> None:
    assert audit_component(copied) == []
    for package in copied.packages(STAGE):
        weights = largest_weight(package)
        index = int(np.argmax(np.abs(weights)))
        right = weights[index].copy()
        weights[index] *= weights.dtype.type(1.01)
        weights.flush()
        assert {problem.stage for problem in audit_component(copied)} == {STAGE}
        weights[index] = right
        weights.flush()
    assert audit_component(copied) == []


def test_a_part_that_is_missing_is_found_when_the_library_is_read(copied: Component) -> None:
    shutil.rmtree(copied.packages(STAGE)[1])
    with pytest.raises(LibraryError, match="incomplete"):
        Library.open(copied.folder.parent).content_encoder()


def test_a_stage_in_one_package_is_stored_as_ever(small_library: Path) -> None:
    """Not a word of plans in the manifest, and the files that were there before there were any."""
    component = Library.open(small_library).content_encoder()
    stored = json.loads((component.folder / "manifest.json").read_text())
    assert all("plan" not in entry for entry in stored["stages"].values())
    assert "fallback" not in stored["details"]
    files = {item.name for item in component.build.iterdir()}
    assert files == {f"{STAGE}.mlpackage", f"{STAGE}.operations.json", f"{STAGE}.modules.json", "golden", "weights.safetensors"}


def test_a_stage_of_the_engines_layout_in_parts_takes_and_gives_its_own_tensors(source: Path, tmp_path: Path) -> None:
    component = convert_content_encoder(source, tmp_path / "library", keep_in_pytorch=(PATTERN,), windows="130")
    entry = component.manifest.stages[STAGE]
    assert (entry.layout, len(entry.packages())) == ("ane", 2)
    assert entry.plan is not None
    assert PATTERN in {finding["module"] for finding in entry.plan["findings"]}
    read = Library.open(tmp_path / "library").content_encoder()
    runner = ReferenceBackend().load(read, STAGE)
    golden = stage_goldens(read, STAGE, ("full",))["full"]
    assert set(golden.inputs) == set(entry.inputs)
    assert entry.package_inputs != entry.inputs
    for comparison in golden.compare(predict_arrays(runner, golden.inputs), audio=False).values():
        assert usable(comparison)
        assert comparison.snr_db > 40
    assert audit_component(read) == []
    assert all(drift.passed for drift in check(Library.open(tmp_path / "library"), read))


def test_strict_names_operation_place_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FallbackError, match=r"aten\.linear\.default at hubert\.encoder\.layers\.1\.fc1 .*\[unwanted") as raised:
        convert_content_encoder(source, tmp_path / "library", keep_in_pytorch=(PATTERN,), strict=True, layout="plain", windows="300")
    assert [finding.module for preflight in raised.value.preflights for finding in preflight.findings] == [PATTERN]
    assert not (tmp_path / "library").exists()


def test_what_was_made_with_other_options_is_not_taken_for_the_same(library: Library, small_library: Path) -> None:
    kept, plain = library.content_encoder().manifest, Library.open(small_library).content_encoder().manifest
    assert Fallback((PATTERN,)).made(kept)
    assert not Fallback().made(kept)
    assert not Fallback((PATTERN,), strict=True).made(kept)
    assert Fallback(strict=True).made(plain)
    assert not Fallback(rewrites=("remainder",)).made(plain)
