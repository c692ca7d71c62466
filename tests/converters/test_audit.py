"""The weight audit on packages that were damaged on purpose after saving."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from coremltools.proto import Model_pb2
from rvc_coreml.converters.audit import audit_package
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.errors import AuditError
from rvc_coreml.models import load_hubert, load_voice
from rvc_coreml.models.stages import VOICE_STAGES, Stage, content_encoder_stage, voice_stage
from support.checkpoints import write_small_hubert, write_voice
from support.damage import largest_weight

WINDOW = 40
STAGES = ("content_encoder", *VOICE_STAGES)
PRECISIONS = ("fp16", "fp32")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Stage, Path, dict[str, str]]]:
    """(stage, precision) -> the stage, its package and its operation map. Channels are wide enough for a weight file."""
    folder = tmp_path_factory.mktemp("audit")
    voice = load_voice(write_voice(folder / "voice.pth"))
    hubert = load_hubert(write_small_hubert(folder / "hubert"))
    results = {}
    for name in STAGES:
        stage = content_encoder_stage(hubert, WINDOW) if name == "content_encoder" else voice_stage(name, voice.synthesizer, WINDOW)
        for precision in PRECISIONS:
            package = folder / f"{name}.{precision}.mlpackage"
            result = convert_stage(stage, precision)
            result.model.save(str(package))
            results[name, precision] = (stage, package, result.operations)
    return results


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", STAGES)
def test_untouched_packages_pass_and_every_parameter_is_covered(converted, name, precision):
    stage, package, operations = converted[name, precision]
    report = audit_package(package, stage, operations)
    on_host = [
        entry for entry, _ in stage.named_parameters() if any(entry.removeprefix("hubert.").startswith(p) for p in stage.host_entries)
    ]
    assert report.tensors == len(list(stage.parameters())) - len(on_host)
    assert report.values == sum(p.numel() for entry, p in stage.named_parameters() if entry not in on_host)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", STAGES)
def test_a_single_element_off_by_one_percent_is_found_and_named(converted, name, precision, tmp_path):
    stage, package, operations = converted[name, precision]
    copy = shutil.copytree(package, tmp_path / "damaged.mlpackage")
    changed = _change_one_weight(copy)
    with pytest.raises(AuditError, match=r"1 of \d+ values") as caught:
        audit_package(copy, stage, operations)
    assert str(changed) in str(caught.value)


@pytest.mark.parametrize("name", STAGES)
def test_a_dropped_bias_is_found_and_named(converted, name, tmp_path):
    stage, package, operations = converted[name, "fp16"]
    copy = shutil.copytree(package, tmp_path / "damaged.mlpackage")
    _drop_a_bias(copy)
    with pytest.raises(AuditError, match=r"\.bias is missing"):
        audit_package(copy, stage, operations)


@pytest.mark.parametrize("name", STAGES)
def test_a_tensor_scaled_by_one_percent_is_found(converted, name):
    stage, package, operations = converted[name, "fp32"]
    parameter = max(stage.parameters(), key=lambda p: p.numel())
    parameter.mul_(1.01)
    try:
        with pytest.raises(AuditError, match="differs"):
            audit_package(package, stage, operations)
    finally:
        parameter.div_(1.01)


def test_an_unknown_constant_is_found(converted):
    stage, package, operations = converted["flow", "fp16"]
    broken = {operation: "" if "pre" in path else path for operation, path in operations.items()}
    with pytest.raises(AuditError, match="none of the checkpoint's entries"):
        audit_package(package, stage, broken)


def _change_one_weight(package: Path) -> float:
    """Multiply one number of the weight file by 1.01; returns the new value as stored."""
    weights = largest_weight(package)
    index = int(np.argmax(np.abs(weights)))
    weights[index] = weights[index] * weights.dtype.type(1.01)
    weights.flush()
    return weights[index]


def _drop_a_bias(package: Path) -> None:
    model = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    specification = Model_pb2.Model()
    specification.ParseFromString(model.read_bytes())
    for block in specification.mlProgram.functions["main"].block_specializations.values():
        operation = next(op for op in block.operations if op.type in ("conv", "linear") and "bias" in op.inputs)
        del operation.inputs["bias"]
    model.write_bytes(specification.SerializeToString())
