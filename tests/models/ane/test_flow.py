"""The flow in the Neural Engine's layout against the network on the clip alone, whatever lies in the padding."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.models import Synthesizer
from rvc_coreml.models.ane.flow import GREATEST_LOG, AneFlowStage
from rvc_coreml.models.ane.flow import WINDOW as DEFAULT
from rvc_coreml.models.stages import VALID_INPUT, FlowStage
from rvc_coreml.runtime.reference.executor import ReferenceModel
from support.arranged import configured_voice, full_size_voice, group_problems, packaged_outputs
from support.small_networks import normal, voice
from torch import Tensor

TOLERANCE = 1e-4
KINDS = [("v2", 40000, True), ("v1", 32000, False)]
WINDOW = 60
FORBIDDEN = {"gather", "transpose", "reshape", "slice_by_index", "reverse", "pad", "squeeze", "expand_dims", "linear", "matmul"}


def window_inputs(plain: FlowStage, valid: int, scale: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of order 1, in the padding of order `scale`, and the mask."""
    found = {}
    for index, spec in enumerate(plain.inputs):
        found[spec.name] = plain.mask(valid) if spec.name == VALID_INPUT else normal(seed + index, *spec.shape)
        if spec.name not in (VALID_INPUT, "g"):
            found[spec.name][..., valid:] *= scale
    return found


def assert_equals_network(network: Synthesizer, window: int, valid: int, scale: float) -> None:
    plain, stage = FlowStage(network, window).eval(), AneFlowStage(network, window).eval()
    inputs = window_inputs(plain, valid, scale)
    clip = {name: value if name == "g" else value[..., :valid] for name, value in inputs.items() if name != VALID_INPUT}
    with torch.inference_mode():
        alone, found = plain.compute(clip)["z"], stage.at_window(inputs)["z"]
    assert found.shape == plain.outputs[0].shape
    assert float((found[..., :valid] - alone).abs().max()) <= TOLERANCE
    assert not found[..., valid:].any()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(valid=st.integers(1, WINDOW), scale=st.sampled_from([0.0, 1.0, 10.0]))
def test_window_equals_network_on_the_clip(kind: tuple[str, int, bool], valid: int, scale: float) -> None:
    assert_equals_network(voice(*kind), WINDOW, valid, scale)


@pytest.mark.parametrize("changes", [{"inter_channels": 12, "hidden_channels": 20}, {"inter_channels": 24, "gin_channels": 5}], ids=str)
def test_every_shape_of_configuration(changes: dict[str, int]) -> None:
    for valid in (1, 30, WINDOW):
        assert_equals_network(configured_voice(**changes), WINDOW, valid, 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_sources_name_every_parameter_and_account_for_every_value(kind: tuple[str, int, bool]) -> None:
    network = voice(*kind)
    assert not group_problems(AneFlowStage(network, WINDOW), FlowStage(network, WINDOW))


def test_tensors_of_the_package_are_images() -> None:
    stage = AneFlowStage(voice("v2", 40000, True), WINDOW)
    wide = (1, 16, 1, WINDOW)
    assert stage.package_inputs == {"m_p": wide, "logs_p": wide, "noise": wide, "g": (1, 8, 1, 1), VALID_INPUT: (1, 1, 1, WINDOW)}
    assert stage.package_outputs == ("z",)
    assert stage.arrangement is not None
    stage.arrangement.check({spec.name: spec.shape for spec in stage.inputs}, {spec.name: spec.shape for spec in stage.outputs})


@cache
def converted() -> tuple[Synthesizer, object]:
    network = voice("v2", 40000, True)
    return network, convert_stage(AneFlowStage(network, WINDOW).eval(), "fp16")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flow") / "flow.mlpackage"
    converted()[1].model.save(str(path))  # pyright: ignore[reportAttributeAccessIssue]
    return path


@pytest.mark.parametrize(("numerics", "least"), [("declared", 45.0), ("ane", 30.0)])
def test_package_keeps_its_signal(numerics: str, least: float, package: Path) -> None:
    network, _made = converted()
    plain, stage = FlowStage(network, WINDOW).eval(), AneFlowStage(network, WINDOW).eval()
    inputs = window_inputs(plain, WINDOW - 7)
    with torch.inference_mode():
        wanted = plain.at_window(inputs)["z"].numpy()
    assert snr_db(wanted, packaged_outputs(stage, ReferenceModel(package, numerics=numerics), inputs)["z"]) >= least


def test_a_log_deviation_beyond_half_precision_stays_finite(package: Path) -> None:
    network, _made = converted()
    plain, stage = FlowStage(network, WINDOW).eval(), AneFlowStage(network, WINDOW).eval()
    inputs = window_inputs(plain, WINDOW)
    inputs["logs_p"] = torch.full_like(inputs["logs_p"], 20.0)
    assert np.log(65504) > GREATEST_LOG
    for numerics in ("declared", "ane"):
        assert np.isfinite(packaged_outputs(stage, ReferenceModel(package, numerics=numerics), inputs)["z"]).all()


def test_package_holds_no_operation_that_the_layout_forbids() -> None:
    counts = converted()[1].operation_counts  # pyright: ignore[reportAttributeAccessIssue]
    assert not FORBIDDEN & set(counts)
    assert counts["concat"] == 1
    assert counts["split"] == 5  # the latent's halves, and each coupling's share of the speaker


@pytest.mark.slow
@pytest.mark.parametrize(("version", "f0"), [("v2", True), ("v1", False)])
def test_full_size(version: str, f0: bool, tmp_path: Path) -> None:
    network = full_size_voice(version, 40000, f0)
    window = DEFAULT
    plain, stage = FlowStage(network, window).eval(), AneFlowStage(network, window).eval()
    assert not group_problems(stage, plain)
    for valid in (1, window // 2, window):
        assert_equals_network(network, window, valid, 3.0)
    path = tmp_path / "flow.mlpackage"
    convert_stage(stage, "fp16").model.save(str(path))
    inputs = window_inputs(plain, window - 100)
    with torch.inference_mode():
        wanted = plain.at_window(inputs)["z"].numpy()
    for numerics, least in (("declared", 45.0), ("ane", 30.0)):
        assert snr_db(wanted, packaged_outputs(stage, ReferenceModel(path, numerics=numerics), inputs)["z"]) >= least
