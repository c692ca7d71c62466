"""`validate` finds what is wrong with a library, and passes what is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rvc_coreml.converters.audit import audit_component
from rvc_coreml.converters.conversion import convert_pitch
from rvc_coreml.errors import BackendError, LibraryError, UsageError
from rvc_coreml.golden_outputs.golden import MANIFEST, GoldenSet
from rvc_coreml.golden_outputs.reports import Check, Report
from rvc_coreml.golden_outputs.thresholds import Verdict
from rvc_coreml.runtime import explain as explaining
from rvc_coreml.runtime.backends import choose_backend
from rvc_coreml.runtime.goldens import CASES, GATE, golden_folder
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.validation import STAGES, validate_library
from support.damage import largest_weight
from support.goldens import change_golden
from support.remembered import remembered
from support.rmvpe_checkpoints import write_rmvpe

ALL = {"content_encoder", "text_encoder", "flow", "decoder", "pipeline"}


@pytest.fixture(scope="module")
def whole(small_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Every configuration: v2, v1, no f0, single precision, and a pitch model."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(small_library, folder / "library")
    with remembered():
        convert_pitch(write_rmvpe(folder / "rmvpe.pt"), folder / "library")
    return Library.open(folder / "library")


@pytest.fixture(scope="module")
def report(whole: Library) -> Report:
    return validate_library(whole, choose_backend("reference"), evidence=True, audit=audit_component)


@pytest.fixture
def library(small_library: Path, tmp_path: Path) -> Library:
    folder = shutil.copytree(small_library, tmp_path / "library")
    for name in ("v1", "nof0", "v2_fp32"):
        shutil.rmtree(folder / "voices" / name)
    return Library.open(folder)


def validated(library: Library, *stages: str, backend: str = "reference", **options: Any) -> Report:
    return validate_library(library, choose_backend(backend), stages=stages or None, **options)


def failing(report: Report) -> set[tuple[str, str]]:
    return {(check.stage, check.case) for check in report.failed}


def test_every_configuration_passes_on_the_reference_executor(report: Report) -> None:
    assert [check for check in report.checks if not check.passed] == []
    assert report.widened == ()
    assert report.passed
    assert {check.component for check in report.checks} == {
        "content encoder",
        "pitch model 'rmvpe'",
        *(f"voice '{name}'" for name in ("v2", "v1", "nof0", "v2_fp32")),
    }
    cases = {(check.component, check.stage): set() for check in report.checks}
    for check in report.checks:
        if check.ran == "reference":
            cases[check.component, check.stage].add(check.case)
    for (component, stage), found in cases.items():
        if stage == "pipeline":
            assert found == {"speech"}
        else:
            assert found == set(CASES) - ({"unvoiced"} if "nof0" in component else set())


def test_precision_decides_whose_limits_apply(report: Report) -> None:
    for check in report.checks:
        single = check.ran == "torch (cpu)" or (check.component == "voice 'v2_fp32'" and check.stage != "pipeline")
        assert check.precision == ("fp32" if single else "fp16"), check  # the pipeline's content encoder is in half precision
        if single and check.comparison is not None:
            assert check.comparison.snr_db >= 90


def test_the_recording_is_compared_with_pytorch_today_and_the_weights_are_audited(report: Report) -> None:
    stages = {(check.component, check.stage) for check in report.checks if check.stage != "pipeline"}
    assert {(check.component, check.stage) for check in report.checks if check.ran == "torch (cpu)"} == stages
    assert {(check.component, check.stage) for check in report.checks if check.case == "weights"} == stages


def test_audio_has_the_metrics_of_sound_and_evidence_of_both_kinds_is_kept(report: Report) -> None:
    heard = [check for check in report.checks if check.stage == "pipeline"]
    assert len(heard) == 4
    for check in heard:
        assert check.comparison is not None
        assert check.comparison.audio is not None
    for check in report.checks:
        if check.comparison is not None:
            assert check.evidence is not None
            assert ("rate" in check.evidence.values) == (check.output == "audio")


def test_a_report_is_plain_json(report: Report) -> None:
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (values["schema"], values["version"], values["verdict"]) == ("rvc-coreml validation report", 1, report.verdict.value)
    assert len(values["checks"]) == len(report.checks) == sum(values["counts"].values())
    assert all(entry["stage"] == check.stage for entry, check in zip(values["checks"], report.checks, strict=True))


def test_pytorch_reproduces_every_case_of_every_configuration(whole: Library) -> None:
    found = validated(whole, backend="torch")
    assert found.failed == []
    assert {check.stage for check in found.checks} == ALL | {"pitch"}
    assert {check.ran for check in found.checks} == {"torch (cpu)"}


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_against_float64_every_stage_passes_and_no_number_is_the_recorded_one(library: Library, backend: str) -> None:
    found = validated(library, "text_encoder", "flow", "decoder", backend=backend, against="float64")
    assert found.failed == []
    assert {check.against for check in found.checks} == {"float64"}
    assert all(check.comparison is not None and np.isfinite(check.comparison.snr_db) for check in found.checks)


@pytest.mark.parametrize("stage", ["text_encoder", "flow", "decoder"])
def test_a_weight_array_that_is_ten_times_too_large_fails_its_own_stage_alone(library: Library, stage: str) -> None:
    weights = largest_weight(library.voice("v2").package(stage))
    weights[:] = weights * np.float16(10)
    weights.flush()
    found = validated(library, "text_encoder", "flow", "decoder")
    assert {name for name, _case in failing(found)} == {stage}
    assert (stage, GATE) in failing(found)


def test_the_pipeline_says_which_stage_it_could_not_use(library: Library) -> None:
    weights = largest_weight(library.voice("v2").package("decoder"))
    weights[:] = weights * np.float16(10)
    weights.flush()
    (check,) = validated(library, "pipeline").checks
    assert check.verdict is Verdict.BROKEN
    assert "decoder" in check.problem


def test_a_voice_without_a_recorded_pipeline_is_said(library: Library) -> None:
    folder = golden_folder(library.voice("v2"))
    found = GoldenSet.load(folder)
    del found.sets["pipeline"]
    shutil.rmtree(folder)
    found.save(folder)
    report = validated(library, "pipeline")
    assert (report.checks, report.passed) == ((), False)
    assert "voice 'v2': no pipeline was recorded" in report.notes[0]


def test_a_package_that_cannot_be_read_is_broken_with_its_reason(library: Library) -> None:
    (library.voice("v2").package("flow") / "Manifest.json").write_text("{")
    found = validated(library, "text_encoder", "flow")
    assert {check.stage for check in found.failed} == {"flow"}
    assert all("Manifest.json" in check.problem for check in found.failed)
    assert {check.ran for check in found.failed} == {"reference"}


def test_a_stage_whose_backend_fails_in_any_way_is_broken_and_the_next_one_runs(library: Library) -> None:
    @dataclass
    class Failing:
        name: str = "coreml"
        detail: str = "ALL"

        def load(self, component: Any, stage: str) -> Any:
            if stage == "text_encoder":
                raise BackendError("Core ML could not load text_encoder.mlpackage: no")
            unloaded.append(stage)

            def predict(_inputs: Any) -> Any:
                raise RuntimeError("out of order\nmore")

            return SimpleNamespace(predict=predict, model=SimpleNamespace(unload=lambda: unloaded.remove(stage)))

    unloaded: list[str] = []
    found = validate_library(library, Failing(), stages=["text_encoder", "flow"], voices=["v2"])
    problems = {(check.stage, check.problem) for check in found.failed}
    assert ("text_encoder", "Core ML could not load text_encoder.mlpackage: no") in problems
    assert ("flow", "it failed (RuntimeError: out of order)") in problems
    assert unloaded == []


def louder(audio: np.ndarray) -> np.ndarray:
    changed = audio.copy()
    changed[..., 1000:2000] *= 1.5
    return changed


def test_a_changed_recording_fails_the_package_and_pytorch_today(library: Library) -> None:
    change_golden(library.voice("v2"), "decoder", GATE, louder)
    found = validated(library, "decoder")
    assert {(check.case, check.ran) for check in found.failed} == {(GATE, "reference"), (GATE, "torch (cpu)")}
    assert validated(library, "decoder", against="float64").failed == []


def test_a_recording_that_is_not_the_one_its_manifest_names_is_broken_at_every_stage(library: Library) -> None:
    path = library.voice("v2").golden("flow")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = validated(library, "text_encoder", "flow")
    assert {check.stage for check in found.failed} == {"flow"}
    assert "SHA-256" in found.failed[0].problem


def test_thresholds_that_were_looser_when_recorded_pass_and_stricter_ones_fail(library: Library) -> None:
    path = golden_folder(library.voice("v2")) / MANIFEST
    manifest = json.loads(path.read_text())
    limit = manifest["thresholds"]["decoder"]["fp16"]["snr_db"]
    for recorded, good in ((limit["good"] - 1, True), (limit["good"] + 1, False)):
        rows = {"decoder": {"fp16": {"snr_db": {**limit, "good": recorded}}}, "hearing": manifest["thresholds"]["hearing"]}
        path.write_text(json.dumps({**manifest, "thresholds": rows}))
        found = validated(library, "decoder")
        assert found.passed is good
        assert len(found.widened) == (not good)
        assert found.failed == []


def test_strict_fails_where_an_output_is_only_degraded(library: Library) -> None:
    rng = np.random.default_rng(1)

    def noisy(values: np.ndarray) -> np.ndarray:
        error = rng.standard_normal(values.shape)
        return values + error * 10 ** (-38 / 20) * (values - values.mean(-1, keepdims=True)).std()

    change_golden(library.voice("v2"), "flow", "short", noisy)
    found = validated(library, "flow")
    assert {check.case for check in found.checks if check.verdict is Verdict.DEGRADED} == {"short"}
    assert (found.passed, found.verdict) == (True, Verdict.DEGRADED)
    assert not validated(library, "flow", strict=True).passed


def test_only_what_was_asked_for_is_checked(whole: Library) -> None:
    found = validated(whole, "flow", "pipeline", voices=["nof0"])
    assert {(check.component, check.stage) for check in found.checks} == {("voice 'nof0'", "flow"), ("voice 'nof0'", "pipeline")}
    shared = validated(whole, "content_encoder", "decoder", voices=["v1"], backend="torch")
    assert {check.component for check in shared.checks} == {"content encoder", "voice 'v1'"}


def test_what_the_library_lacks_is_one_sentence(library: Library) -> None:
    with pytest.raises(LibraryError, match="no voice 'singer'; its voices are: v2"):
        validated(library, voices=["singer"])
    with pytest.raises(UsageError, match="there is no stage 'vocoder'; the stages are content_encoder"):
        validated(library, "vocoder")
    with pytest.raises(UsageError, match="none of the stages asked for"):
        validated(library, "pitch")
    with pytest.raises(UsageError, match="pipeline has host steps in float32"):
        validated(library, "pipeline", against="float64")
    with pytest.raises(LibraryError, match="seeded weights, and no component asked for has them"):
        validated(library, against="upstream")
    assert set(STAGES) == ALL | {"pitch"}


def test_a_stage_that_fails_is_explained_once_and_a_stage_that_passes_is_not(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    @dataclass
    class Found:
        operation: str = "conv_3"
        operation_type: str = "conv"
        module: str | None = "flow.flows.0"
        snr_db: float = -np.inf
        text: str = "conv_3 departs"

    def explain(_component: Any, stage: str, golden: Any, package: Any = None) -> Found | None:
        del package
        asked.append((stage, golden.case))
        return Found() if stage == "flow" else None

    monkeypatch.setattr(explaining, "explain", explain)
    for stage in ("flow", "decoder"):
        weights = largest_weight(library.voice("v2").package(stage))
        weights[:] = weights * np.float16(10)
        weights.flush()
    found = validated(library, "text_encoder", "flow", "decoder", explain=True)
    assert asked == [("flow", GATE), ("decoder", GATE)]
    assert [(check.stage, check.explanation_text) for check in found.explained] == [("flow", "conv_3 departs")]
    assert all((check.explanation is not None) == (check.stage == "flow") for check in found.failed)
    assert any("decoder: its package computes what its weights do" in note for note in found.notes)
    json.dumps(found.as_dict(), allow_nan=False)


def test_checks_of_an_audit_name_the_constant(library: Library) -> None:
    weights = largest_weight(library.voice("v2").package("flow"))
    weights[7] *= np.float16(1.25)
    weights.flush()
    found = validated(library, "flow", audit=audit_component)
    (check,) = [check for check in found.failed if check.case == "weights"]
    assert isinstance(check, Check)
    assert check.reason
    assert check.ran == "audit"
