"""Pitch networks in the Neural Engine's layout against the networks on the clip alone, whatever lies in the padding."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.audit import audit_package
from rvc_coreml.converters.mlprogram import ConvertedStage, convert_stage
from rvc_coreml.errors import ConversionError
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.golden_outputs.seeded_weights import seeded_tensor
from rvc_coreml.models.ane.pitch import AnePitchStage, window_for
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.crepe import CrepeTiny
from rvc_coreml.models.embedded import PITCH, embedded_path
from rvc_coreml.models.fcpe import Fcpe, FcpeConfig
from rvc_coreml.models.pitch_network import PitchNetwork
from rvc_coreml.models.rmvpe import Rmvpe
from rvc_coreml.models.stages import VALID_INPUT, PitchStage
from rvc_coreml.models.swiftf0 import SwiftF0
from rvc_coreml.runtime.reference.executor import ReferenceModel
from support.arranged import packaged_outputs, repeated_problems
from support.engine_limits import broken_limits
from support.pitch_packages import CLIPS, audio_of, fcpe_file
from support.rmvpe_checkpoints import NARROW
from support.small_networks import normal
from torch import Tensor

TOLERANCE = 1e-4
WINDOWS = {"rmvpe": 48, "fcpe": 70, "swiftf0": 40}
KINDS = list(WINDOWS)
PUBLISHED = FcpeConfig().hidden_dims
# split: FCPE's gates, along the channels; the rest is its kernel of 31 taps (layers.SplitConv), and RMVPE's padding of one;
# SwiftF0's eight folded convolutions, the bands and classes that are cut off, and the scores joined
MOVING = {
    "rmvpe": {"pad": 2, "concat": 2, "pixel_shuffle": 2},
    "fcpe": {"pad": 1, "concat": 1, "reshape": 2, "slice_by_index": 4, "split": 1},
    "swiftf0": {"pad": 8, "concat": 2, "reshape": 16, "slice_by_index": 10},
}
MOVES = {name for counts in MOVING.values() for name in counts} | {"transpose", "conv_transpose", "linear", "layer_norm", "expand_dims"}


@cache
@torch.inference_mode(False)
def network(kind: str, full: bool = False) -> PitchNetwork:
    if kind == "swiftf0":
        return load_pitch(embedded_path(PITCH)).network
    if kind == "fcpe" and full:
        return load_pitch(fcpe_file()).network
    made: PitchNetwork = (
        Fcpe(FcpeConfig(hidden_dims=16, n_layers=1)) if kind == "fcpe" else Rmvpe() if full else Rmvpe(replace(NARROW, blocks=1))
    )
    with torch.no_grad():
        for name, value in made.named_parameters():
            value.copy_(seeded_tensor(name, tuple(value.shape), 3))
    return made.eval()


@cache
def stages(kind: str, full: bool = False) -> tuple[PitchStage, AnePitchStage]:
    window = window_for(network(kind)) if full else WINDOWS[kind]
    return PitchStage(network(kind, full), window).eval(), AnePitchStage(network(kind, full), window)


def window_inputs(plain: PitchStage, valid: int, scale: float) -> dict[str, Tensor]:
    """Features with the range of log-mel, in the padding of order `scale`, the statistics of the valid part and the mask.

    They are random, but for the network with published weights, which hears no pitch in them.
    """
    features = normal(valid, *plain.inputs[0].shape) * 2 - 1
    if isinstance(plain.network, Fcpe) and plain.network.config.hidden_dims == PUBLISHED:
        features[..., :valid] = plain.network.prepare(plain.network.features(audio_of(CLIPS[0])).repeat(1, 1, 9))[..., 50 : 50 + valid]
    if isinstance(plain.network, SwiftF0):
        features = features * 3 - 5  # its logarithms have no floor of 1e-5
    statistics = plain.network.clip_statistics(features[..., :valid])
    features[..., valid:] *= scale
    names = plain.network.statistics_shapes
    return {"features": features, **dict(zip(names, statistics, strict=True)), VALID_INPUT: plain.mask(valid)}


@torch.inference_mode()
def assert_equals_network(plain: PitchStage, stage: AnePitchStage, valid: int, scale: float) -> None:
    inputs = window_inputs(plain, valid, scale)
    output = plain.outputs[0].name
    alone = plain.network.body(inputs["features"][..., :valid])
    found = stage.at_window(inputs)[output]
    assert found.shape == plain.outputs[0].shape
    assert alone.std() > 1e-3
    assert float((found[:, :valid] - alone).abs().max()) <= TOLERANCE * max(1.0, float(alone.std()))  # RMVPE's is 100 at full size
    assert not found[:, valid:].any()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(units=st.integers(1, 70), scale=st.sampled_from([0.0, 1.0, 10.0]))
def test_window_equals_network_on_the_clip(kind: str, units: int, scale: float) -> None:
    plain, stage = stages(kind)
    unit = plain.network.granularity
    assert_equals_network(plain, stage, min(units, WINDOWS[kind] // unit) * unit, scale)


@pytest.mark.parametrize("kind", KINDS)
def test_interface_is_the_plain_stages(kind: str) -> None:
    plain, stage = stages(kind)
    assert (stage.name, stage.context, stage.inputs, stage.outputs) == (plain.name, plain.context, plain.inputs, plain.outputs)
    assert all(len(shape) == 4 for shape in stage.package_inputs.values())
    assert stage.arrangement is not None
    stage.arrangement.check({spec.name: spec.shape for spec in stage.inputs}, {spec.name: spec.shape for spec in stage.outputs})


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_the_checkpoint_is_in_the_stage_and_nothing_else(kind: str) -> None:
    plain, stage = stages(kind)
    repeated = {name: 4 for name in stage.sources() if ".conv1.0.bias" in name}
    assert not repeated_problems(stage, plain, repeated)
    assert bool(repeated) == (kind == "rmvpe")


def test_crepe_stays_plain() -> None:
    with pytest.raises(ConversionError, match=r"CREPE.* has no layout for the Neural Engine: use --layout plain"):
        AnePitchStage(CrepeTiny(), 64)


@cache
def converted(kind: str) -> ConvertedStage:
    return convert_stage(stages(kind)[1], "fp16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pitch")
    for kind in KINDS:
        converted(kind).model.save(str(found / f"{kind}.mlpackage"))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_package_obeys_the_limits_and_holds_the_checkpoints_weights(kind: str, folder: Path) -> None:
    path = folder / f"{kind}.mlpackage"
    assert not broken_limits(path)
    assert {name: count for name, count in converted(kind).operation_counts.items() if name in MOVES} == MOVING[kind]
    assert audit_package(path, stages(kind)[1], converted(kind).modules).values > 0


@torch.inference_mode()
def decibels(path: Path, plain: PitchStage, stage: AnePitchStage, valid: int, numerics: str) -> float:
    inputs, output = window_inputs(plain, valid, 3.0), plain.outputs[0].name
    wanted: Any = plain.at_window(inputs)[output].numpy()
    return snr_db(wanted, packaged_outputs(stage, ReferenceModel(path, numerics=numerics), inputs)[output])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("numerics", "least"), [("declared", 45.0), ("ane", 30.0)])
def test_package_keeps_its_signal(kind: str, numerics: str, least: float, folder: Path) -> None:
    assert decibels(folder / f"{kind}.mlpackage", *stages(kind), WINDOWS[kind] - 8, numerics) >= least


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_full_size(kind: str, tmp_path: Path) -> None:
    plain, stage = stages(kind, True)
    for valid in (plain.network.granularity, plain.window):
        assert_equals_network(plain, stage, valid, 3.0)
    path = tmp_path / "pitch.mlpackage"
    made = convert_stage(stage, "fp16")
    made.model.save(str(path))
    assert not broken_limits(path)
    assert audit_package(path, stage, made.modules).values > 0
    for numerics, least in (("declared", 45.0), ("ane", 30.0)):
        assert decibels(path, plain, stage, plain.window - 64, numerics) >= least
