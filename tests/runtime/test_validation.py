"""`validate` finds what is wrong with a library, and passes what is not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from rvc_coreml.runtime.backends import choose_backend
from rvc_coreml.runtime.goldens import CASES, load_golden, save_golden
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.validation import validate_library
from support.damage import largest_weight


@pytest.fixture
def library(small_library, tmp_path):
    folder = shutil.copytree(small_library, tmp_path / "library")
    for name in ("v1", "nof0", "v2_fp32"):
        shutil.rmtree(folder / "voices" / name)
    return Library.open(folder)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_an_untouched_library_passes_in_every_case(small_library, backend):
    checks = validate_library(Library.open(small_library), choose_backend(backend))
    assert [check for check in checks if not check.passed] == []
    assert {check.stage for check in checks} == {"content_encoder", "text_encoder", "flow", "decoder"}
    assert {check.case for check in checks} == {*CASES, "recorded"}
    assert {check.component for check in checks} == {"content encoder", *(f"voice '{name}'" for name in ("v2", "v1", "nof0", "v2_fp32"))}


@pytest.mark.parametrize("stage", ["text_encoder", "flow", "decoder"])
def test_a_weight_array_that_is_ten_times_too_large_fails_its_own_stage_alone(library, stage):
    weights = largest_weight(library.voice("v2").package(stage))
    weights[:] = weights * np.float16(10)
    weights.flush()
    failed = {check.stage for check in validate_library(library, choose_backend("reference")) if not check.passed}
    assert failed == {stage}


def test_a_package_that_cannot_be_read_is_a_failed_check_with_its_reason(library):
    (library.voice("v2").package("flow") / "Manifest.json").write_text("{")
    failed = [check for check in validate_library(library, choose_backend("reference")) if not check.passed]
    assert {check.stage for check in failed} == {"flow"}
    assert all("Manifest.json" in check.problem for check in failed)


def test_a_changed_golden_file_fails_the_recorded_case_alone(library):
    path = library.voice("v2").golden("decoder")
    golden = load_golden(path)
    golden.outputs["audio"][..., 1000:2000] *= 1.5
    save_golden(golden, path)
    failed = [check for check in validate_library(library, choose_backend("reference")) if not check.passed]
    assert [(check.stage, check.case) for check in failed] == [("decoder", "recorded")]


def test_checks_are_plain_json(library):
    import json

    for check in validate_library(library, choose_backend("torch")):
        text = json.dumps(check.as_dict(), allow_nan=False)
        assert json.loads(text)["stage"] == check.stage
