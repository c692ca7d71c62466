"""Conversion as a whole: what the library holds afterwards, and that a failure leaves it as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
from rvc_coreml.converters import conversion, making
from rvc_coreml.converters.conversion import convert_content_encoder, convert_voice
from rvc_coreml.converters.precisions import parse_precisions
from rvc_coreml.errors import AuditError, ConversionError, LibraryError, OutputError, UsageError
from rvc_coreml.models import load_voice
from rvc_coreml.runtime.files import sha256
from rvc_coreml.runtime.library import Library
from safetensors import safe_open
from support.checkpoints import write_small_hubert, write_voice
from support.remembered import remembered

pytestmark = pytest.mark.usefixtures("remembered_conversions")


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    with remembered():
        convert_voice(write_voice(folder / "first.pth"), folder / "library")
    return folder


@pytest.fixture
def library(converted, tmp_path):
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    return tmp_path / "library"


def test_packages_carry_descriptions_licence_source_and_tools(library, tmp_path):
    component = Library.open(library).voice("first")
    for stage in component.manifest.stages:
        model = ct.models.MLModel(str(component.package(stage)), skip_model_load=True)
        specification = model.get_spec()
        assert specification.WhichOneof("Type") == "mlProgram"
        assert specification.specificationVersion == ct.target.iOS17.value
        assert all(item.shortDescription for item in [*specification.description.input, *specification.description.output])
        assert "rights" in model.license
        metadata = model.user_defined_metadata
        assert metadata["rvc_coreml.source_sha256"] == sha256(tmp_path / "first.pth")
        assert metadata["rvc_coreml.stage"] == stage
        assert metadata["rvc_coreml.torch"].startswith("2.")


def test_manifest_records_units_windows_precision_and_proof(library):
    manifest = Library.open(library).voice("first").manifest
    assert set(manifest.stages) == {"text_encoder", "flow", "decoder"}
    for entry in manifest.stages.values():
        assert entry.compute_units == "ALL"
        assert entry.minimum_deployment_target == "iOS17"
        assert entry.precision == "fp16"
        assert entry.audited_values > 0
        assert entry.reference_snr_db > 30
        assert entry.inputs["mask"] == [1, 1, entry.window]


def test_the_library_keeps_weights_in_the_sources_precision_and_they_give_the_same_network(library, tmp_path):
    component = Library.open(library).voice("first")
    with safe_open(component.weights, framework="pt") as file:
        names = list(file.keys())
        assert {str(file.get_tensor(name).dtype) for name in names} == {"torch.float16"}
    kept, original = load_voice(component.weights), load_voice(tmp_path / "first.pth")
    assert kept.config == original.config
    for name, tensor in original.synthesizer.state_dict().items():
        assert tensor.equal(kept.synthesizer.state_dict()[name])


def test_precision_by_stage_is_what_the_packages_hold(tmp_path):
    component = convert_voice(write_voice(tmp_path / "v.pth"), tmp_path / "library", precision=["fp32", "flow=fp16"])
    for stage, wanted in (("text_encoder", np.float32), ("flow", np.float16), ("decoder", np.float32)):
        program = ct.models.MLModel(str(component.package(stage)), skip_model_load=True).get_spec().mlProgram
        block = next(iter(program.functions["main"].block_specializations.values()))
        kinds = {output.type.tensorType.dataType for op in block.operations if op.type == "conv" for output in op.outputs}
        assert kinds == {10 if wanted is np.float16 else 11}  # MIL's FLOAT16 and FLOAT32


@pytest.mark.parametrize("values", [["fp8"], ["encoder=fp16"], ["=fp16"], ["decoder="], ["decoder=int8"]])
def test_precisions_that_mean_nothing_are_refused(values):
    with pytest.raises(UsageError, match="not understood"):
        parse_precisions(values, ("text_encoder", "decoder"))


def test_the_same_source_is_converted_again_without_asking_and_old_builds_go(library, tmp_path):
    before = Library.open(library).voice("first").manifest.build
    convert_voice(tmp_path / "first.pth", library)
    component = Library.open(library).voice("first")
    assert component.manifest.build != before
    assert [item.name for item in component.folder.iterdir() if item.is_dir()] == [component.manifest.build]


def test_another_source_under_the_same_name_needs_replace(library, tmp_path):
    other = write_voice(tmp_path / "other.pth", seed=8)
    before = tree(library)
    with pytest.raises(LibraryError, match="--replace"):
        convert_voice(other, library, name="first")
    assert tree(library) == before
    convert_voice(other, library, name="first", replace=True)
    assert Library.open(library).voice("first").manifest.source["file"] == "other.pth"


@pytest.mark.parametrize("step", ["convert_stage", "audit_package", "save_goldens", "save_file", "tool_versions"])
@pytest.mark.parametrize(
    "error", [ConversionError("planted"), OSError(28, "No space left on device"), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_a_failure_at_any_step_leaves_the_library_as_it_was(library, tmp_path, monkeypatch, step, error):
    before = tree(library)
    calls = []

    def fail(*_args, **_kwargs):
        calls.append(step)
        raise error

    monkeypatch.setattr(making if step in ("convert_stage", "audit_package") else conversion, step, fail)
    with pytest.raises((ConversionError, OutputError, OSError, KeyboardInterrupt)):
        convert_voice(tmp_path / "first.pth", library)
    assert calls
    assert tree(library) == before
    assert not list(library.glob(".convert-*"))


def test_a_failed_audit_stops_the_conversion(library, tmp_path, monkeypatch):
    def damage(path, stage, *rest):
        next(stage.parameters()).mul_(1.01)
        return audit(path, stage, *rest)

    audit = making.audit_package
    monkeypatch.setattr(making, "audit_package", damage)
    with pytest.raises(AuditError, match="does not hold the checkpoint's weights"):
        convert_voice(tmp_path / "first.pth", library, name="second")
    assert Library.open(library).voice_names() == ["first"]


def test_a_package_that_computes_something_else_is_not_kept(library, tmp_path, monkeypatch):
    class Wrong(making.ReferenceModel):
        def predict(self, inputs):
            return {name: 4.25 * value for name, value in super().predict(inputs).items()}

    monkeypatch.setattr(making, "ReferenceModel", Wrong)
    with pytest.raises(ConversionError, match=r"level 4\.2"):
        convert_voice(tmp_path / "first.pth", library, name="second")
    assert Library.open(library).voice_names() == ["first"]


def test_an_interrupted_first_conversion_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "convert_stage", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        convert_content_encoder(write_small_hubert(tmp_path / "hubert"), tmp_path / "library")
    assert not (tmp_path / "library").exists()


def test_operation_maps_are_json_beside_the_packages(library):
    component = Library.open(library).voice("first")
    for stage, entry in component.manifest.stages.items():
        stored = json.loads((component.build / entry.operations).read_text())
        assert stored == component.operations(stage)
        assert len(stored) == sum(entry.operation_counts.values())
