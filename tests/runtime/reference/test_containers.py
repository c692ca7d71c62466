"""What else Core ML can load: each either runs or is refused by a sentence that says what it is and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder
from coremltools.proto import Model_pb2
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.networks import convert_torch
from support.programs import MODEL_FILE, edited_specification, main_block, normal, save_package
from torch import Tensor

X = normal(2, 3)


def refused(path: Path, *parts: str) -> None:
    """One sentence of one line, which names the file."""
    with pytest.raises(PackageError) as error:
        ReferenceModel(path)
    message = str(error.value)
    for part in (str(path), *parts):
        assert part in message, message
    assert "\n" not in message
    assert len(message) < 400


def doubled(folder: Path, name: str = "y") -> Path:
    return save_package(folder, lambda x: mb.mul(x=x, y=2.0, name=name), X)


def write_model(specification: Any, path: Path) -> Path:
    path.write_bytes(specification.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["voice.mlpackage", "voice.mlmodelc"])
def test_a_folder_that_is_no_package_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    refused(tmp_path / name, "is not an .mlpackage")


@pytest.mark.parametrize("name", ["voice.mlpackage", "voice.mlpackage.zip", "voice.onnx"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4" + b"\0" * 100)
    refused(tmp_path / name, "is not an .mlpackage")


def network_specification() -> Any:
    builder = NeuralNetworkBuilder([("x", datatypes.Array(3))], [("y", datatypes.Array(3))], disable_rank5_shape_mapping=True)
    builder.add_activation("relu", "RELU", "x", "y")
    return builder.spec


def test_a_neural_network_is_refused_as_a_file_and_in_a_package(tmp_path: Path) -> None:
    path = write_model(network_specification(), tmp_path / "old.mlmodel")
    parts = "holds a neural network, Core ML's older format (kind 'neuralNetwork')", "convert_to='mlprogram'"
    refused(path, *parts)
    package = doubled(tmp_path)
    shutil.copy(path, package / MODEL_FILE)
    refused(package, *parts)


def test_a_network_with_a_custom_layer_is_refused(tmp_path: Path) -> None:
    specification = network_specification()
    layer = specification.neuralNetwork.layers.add()
    layer.name, layer.custom.className = "odd", "Odd"
    refused(write_model(specification, tmp_path / "custom.mlmodel"), "neural network")


def test_a_program_with_a_custom_operation_names_it(tmp_path: Path) -> None:
    path = doubled(tmp_path)
    with edited_specification(path) as specification:
        main_block(specification).operations[-1].type = "my_custom_op"
    refused(path, "uses operations that the reference executor does not know: my_custom_op (y)")


KINDS = ["treeEnsembleRegressor", "glmClassifier", "supportVectorRegressor", "scaler", "wordTagger", "visionFeaturePrint", "identity"]


@pytest.mark.parametrize("kind", [*KINDS, "customModel"])
def test_models_of_other_kinds_are_refused_by_their_kind(tmp_path: Path, kind: str) -> None:
    specification = Model_pb2.Model()
    known = [field.name for field in specification.DESCRIPTOR.oneofs_by_name["Type"].fields]
    if kind == "visionFeaturePrint":
        specification.visionFeaturePrint.scene.version = 1
    getattr(specification, kind if kind in known else known[0]).SetInParent()
    refused(write_model(specification, tmp_path / "other.mlmodel"), "holds a model (kind '", "only ML Programs can be run here")


def test_every_kind_of_model_but_programs_is_refused(tmp_path: Path) -> None:
    for field in Model_pb2.Model.DESCRIPTOR.oneofs_by_name["Type"].fields:
        specification = Model_pb2.Model()
        getattr(specification, field.name).SetInParent()
        path = write_model(specification, tmp_path / "other.mlmodel")
        refused(path, "has no function 'main'; it has none" if field.name == "mlProgram" else f"(kind '{field.name}')")


@pytest.mark.parametrize("kind", ["pipeline", "pipelineClassifier", "pipelineRegressor"])
def test_a_pipeline_is_refused(tmp_path: Path, kind: str) -> None:
    specification = Model_pb2.Model()
    getattr(specification, kind).SetInParent()
    refused(write_model(specification, tmp_path / "several.mlmodel"), "holds a pipeline of models", "open its parts one by one")


def test_a_pipeline_of_programs_is_refused(tmp_path: Path) -> None:
    for name, output in (("first", "middle"), ("second", "y")):
        (tmp_path / name).mkdir()
        doubled(tmp_path / name, output)
    with edited_specification(tmp_path / "second" / "model.mlpackage") as specification:
        specification.description.input[0].name = "middle"
        specification.mlProgram.functions["main"].inputs[0].name = "middle"
        for operation in main_block(specification).operations:
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    binding.name = "middle" if binding.name == "x" else binding.name
    parts = [ct.models.MLModel(str(tmp_path / name / "model.mlpackage"), skip_model_load=True) for name in ("first", "second")]
    path = tmp_path / "pipeline.mlpackage"
    ct.utils.make_pipeline(*parts).save(str(path))
    refused(path, "holds a pipeline of models (kind 'pipeline')", "open its parts one by one")


def test_a_bare_model_file_with_a_program_runs(tmp_path: Path) -> None:
    path = tmp_path / "bare.mlmodel"
    shutil.copy(doubled(tmp_path) / MODEL_FILE, path)
    np.testing.assert_array_equal(ReferenceModel(path).predict({"x": X})["y"], X * 2)


def test_a_bare_model_file_that_wants_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.mlmodel"
    package = save_package(tmp_path, lambda x: mb.linear(x=x, weight=normal(50, 3)), X)
    shutil.copy(package / MODEL_FILE, path)
    refused(path, "without its weights", "open the .mlpackage it belongs to")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "weight.bin").write_bytes(b"\0" * 1000)
    refused(path, "without its weights")


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"text"])
def test_a_damaged_model_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bare.mlmodel"
    path.write_bytes(content)
    refused(path)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.conv(x)).transpose(1, 2).softmax(dim=-1)


def test_a_program_for_ios_26_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Network().eval(), normal(1, 3, 7)
    model = ReferenceModel(convert_torch(tmp_path, network, [torch.zeros(1, 3, 7)], "iOS26"))
    assert model.program.opset == "CoreML9"
    (got,) = model.predict({"in0": x}).values()
    with torch.no_grad():
        np.testing.assert_allclose(got, network(torch.from_numpy(x)).numpy(), atol=1e-6)


@pytest.mark.parametrize("opset", ["CoreML4", "CoreML99", "", "linear"])
def test_a_program_for_an_unknown_opset_is_refused(tmp_path: Path, opset: str) -> None:
    path = doubled(tmp_path)
    with edited_specification(path) as specification:
        function = specification.mlProgram.functions["main"]
        (old,) = function.block_specializations
        function.block_specializations[opset].CopyFrom(function.block_specializations[old])
        del function.block_specializations[old]
        function.opset = opset
    refused(path, f"is written for {opset!r}; known are CoreML5, CoreML6, CoreML7, CoreML8, CoreML9")


@pytest.mark.parametrize("opset", ["CoreML5", "CoreML7", "CoreML9"])
def test_a_program_may_leave_its_opset_to_its_only_block(tmp_path: Path, opset: str) -> None:
    path = doubled(tmp_path)
    with edited_specification(path) as specification:
        function = specification.mlProgram.functions["main"]
        (old,) = function.block_specializations
        function.block_specializations[opset].CopyFrom(function.block_specializations[old])
        if old != opset:
            del function.block_specializations[old]
        function.opset = ""
    np.testing.assert_array_equal(ReferenceModel(path).predict({"x": X})["y"], X * 2)


def test_the_manifest_of_other_tools_is_read(tmp_path: Path) -> None:
    """Xcode names entries by UUID and lists weights beside the model; only the root entry matters."""
    path = doubled(tmp_path)
    (path / "Manifest.json").write_text(
        '{"fileFormatVersion": "1.0.0", "itemInfoEntries": {'
        '"1A": {"author": "com.apple.CoreML", "description": "Weights", "name": "weights", "path": "com.apple.CoreML/weights"},'
        '"2B": {"author": "com.apple.CoreML", "description": "Model", "name": "model.mlmodel", "path": "com.apple.CoreML/model.mlmodel"}},'
        '"rootModelIdentifier": "2B"}'
    )
    np.testing.assert_array_equal(ReferenceModel(path).predict({"x": X})["y"], X * 2)


def test_a_model_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = doubled(tmp_path), Path.read_bytes

    def failing(self: Path) -> bytes:
        if self.suffix == ".mlmodel":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    refused(path, "cannot be read: Permission denied")
