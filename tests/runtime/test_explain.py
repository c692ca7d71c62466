"""What explains a wrong package: sketches, the search for a package's values in the network, and half precision."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import LibraryError, PackageError
from rvc_coreml.golden_outputs.golden import Golden, Layout
from rvc_coreml.models.stages import Stage, TensorSpec, content_encoder_stage, voice_stage
from rvc_coreml.runtime.explain import explain_package
from rvc_coreml.runtime.goldens import make_cases, padded
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.source_trace import BUCKETS, SourceTrace, sketch
from support import small_networks
from support.damage import converted, operation_of, stored_weight
from torch import Tensor, nn

WINDOW = 40


@dataclass(frozen=True)
class Case:
    stage: Stage
    package: Path
    modules: dict[str, str]
    golden: Golden
    precision: str

    def explained(self, package: Path | None = None):
        return explain_package(package or self.package, self.stage, self.modules, self.golden, self.precision)


def case_of(stage: Stage, network: nn.Module, folder: Path, precision: str) -> Case:
    package = folder / f"{stage.name}.{precision}.mlpackage"
    modules = converted(stage, package, precision)
    (golden,) = make_cases(network, {stage.name: stage}, cases=("full",))
    shapes = [{spec.name: list(spec.shape) for spec in specs} for specs in (stage.inputs, stage.outputs)]
    return Case(stage, package, modules, padded(golden, *shapes), precision)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("explain")
    hubert, voice = small_networks.hubert(), small_networks.voice("v2", 40000, True)
    return {
        "content_encoder": case_of(content_encoder_stage(hubert, WINDOW), hubert, folder, "fp16"),
        "text_encoder": case_of(voice_stage("text_encoder", voice, WINDOW), voice, folder, "fp16"),
        "flow": case_of(voice_stage("flow", voice, WINDOW), voice, folder, "fp32"),
    }


@pytest.mark.parametrize("name", ["content_encoder", "text_encoder", "flow"])
def test_a_right_package_needs_no_explanation_and_all_its_values_are_found(cases, name):
    case = cases[name]
    assert case.explained() is None
    trace = SourceTrace(case.stage, case.golden.inputs)
    run = ReferenceModel(case.package, numerics="float32").trace(case.golden.inputs, constants=False)
    for executed in run:
        for result in executed.results.values():
            if result.is_floating_point():
                agreement, value = trace.find(result, case.modules.get(executed.step.operation.name))
                assert agreement > 50, executed.step.operation.name
                assert value is not None
    assert min(trace.agreements) > 50  # and the other way round: the network computes nothing that the package lacks


def test_a_weight_that_is_not_a_number_is_named(cases, tmp_path):
    case = cases["flow"]
    package = shutil.copytree(case.package, tmp_path / "flow.mlpackage")
    operation = operation_of(package, case.modules, "flow.flows.2.enc.in_layers.1")
    weight = stored_weight(package, operation)
    weight[0, 0, 0] = np.nan
    weight.flush()
    found = case.explained(package)
    assert found is not None
    assert (found.operation, found.module, found.snr_db) == (operation, "flow.flows.2.enc.in_layers.1", -np.inf)
    assert "not the source's in 1 of" in found.text


def test_damage_is_named_where_it_begins_and_not_where_it_has_grown(cases, tmp_path):
    case = cases["content_encoder"]
    package = shutil.copytree(case.package, tmp_path / "encoder.mlpackage")
    operation = operation_of(package, case.modules, "hubert.encoder.layers.0.fc1")
    weight = stored_weight(package, operation)
    weight[:] = weight * weight.dtype.type(1.5)
    weight.flush()
    found = case.explained(package)
    assert found is not None
    assert (found.operation, found.operation_type, found.module) == (operation, "linear", "hubert.encoder.layers.0.fc1")


def test_a_golden_that_neither_gives_is_said(cases):
    case = cases["text_encoder"]
    other = {name: -array for name, array in case.golden.outputs.items()}
    golden = Golden("full", "text_encoder", case.golden.inputs, other, case.golden.layouts, {})
    with pytest.raises(LibraryError, match="the text_encoder in PyTorch agrees with its golden outputs to"):
        explain_package(case.package, case.stage, case.modules, golden, "fp16")


def test_a_package_that_cannot_be_run_says_so(cases, tmp_path):
    with pytest.raises(PackageError):
        cases["flow"].explained(tmp_path / "none.mlpackage")


class _Offset(Stage):
    """Right in float32; half precision loses what is added and taken away."""

    name = "flow"
    description = "a test"
    inputs = (TensorSpec("m_p", (1, 4, WINDOW), "anything"),)
    outputs = (TensorSpec("z", (1, 4, WINDOW), "the same"),)

    def __init__(self) -> None:
        super().__init__(WINDOW, 0)
        self.lifted = _Lifted()

    def forward(self, m_p: Tensor) -> tuple[Tensor, ...]:
        return (self.lifted(m_p * 2) - 3000.0,)


class _Lifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) + 3000.0


def test_the_operation_that_half_precision_spoils_is_named(tmp_path):
    stage = _Offset().eval()
    inputs = {"m_p": small_networks.normal(1, 1, 4, WINDOW).numpy()}
    with torch.inference_mode():
        outputs = {"z": stage(torch.from_numpy(inputs["m_p"]))[0].numpy()}
    layout = {"z": Layout(-1, 1, WINDOW)}
    modules = converted(stage, tmp_path / "offset.mlpackage")
    found = explain_package(tmp_path / "offset.mlpackage", stage, modules, Golden("full", "flow", inputs, outputs, layout), "fp16")
    assert found is not None
    assert (found.operation_type, found.module) == ("add", "lifted")
    assert "loses most to half precision" in found.text


@given(
    size=st.integers(1, 3 * BUCKETS),
    wrong=st.integers(0, 3 * BUCKETS - 1),
    error=st.floats(1e-3, 10),
)
@settings(max_examples=25, deadline=None)
def test_one_wrong_value_shows_in_a_sketch_as_it_is(size, wrong, error):
    values = small_networks.normal(size, size).double()
    other = values.clone()
    other[wrong % size] += error
    assert np.sum((sketch(values) - sketch(other)) ** 2) == pytest.approx(error**2, rel=1e-2, abs=1e-8)


@given(size=st.integers(2, 40 * BUCKETS), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_distance_of_sketches_is_that_of_the_tensors(size, seed):
    """Within 0.6 dB, six deviations of the estimate."""
    left, right = small_networks.normal(seed, size), small_networks.normal(seed + 100, size)
    estimate = float(np.sum((sketch(left) - sketch(right)) ** 2))
    assert 10 * np.log10(estimate / float(((left - right) ** 2).sum())) == pytest.approx(0.0, abs=0.6)
