"""The content encoder in the Neural Engine's layout: the plain stage's numbers, from the same weights, in operations that fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.audit import audit_package
from rvc_coreml.converters.mlprogram import ConvertedStage, convert_stage
from rvc_coreml.errors import ConversionError
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.models import ContentHost, Hubert, HubertConfig
from rvc_coreml.models.ane.attention import STRATEGIES
from rvc_coreml.models.ane.content_encoder import WINDOW, AneContentEncoderStage, most_frames, window_for
from rvc_coreml.models.ane.layers import MAX_AXIS, MAX_WIDTH
from rvc_coreml.models.checkpoint.state import fold_weight_norm
from rvc_coreml.models.hubert import SAMPLE_RATE
from rvc_coreml.models.stages import VALID_INPUT, ContentEncoderStage
from rvc_coreml.runtime.reference import ReferenceModel
from seeded_checkpoints import write_hubert
from support.arranged import group_problems, packaged_outputs
from support.checkpoints import SMALL_HUBERT, hubert_state
from support.small_networks import exact_hubert, hubert, normal
from torch import Tensor

TOLERANCE = 1e-4
FRAMES = 40
CONFIGS = {
    "small": SMALL_HUBERT,
    "without projection": replace(SMALL_HUBERT, projection=None, heads=4),
    "128 taps": replace(SMALL_HUBERT, position_kernel=128, position_groups=8, layers=1),
    "few odd taps": replace(SMALL_HUBERT, position_kernel=9, layers=1, heads=1),
    "many odd taps": replace(SMALL_HUBERT, position_kernel=15, layers=1),
    "kernel no multiple of the stride": replace(
        SMALL_HUBERT, conv_channels=(8, 12, 16), conv_kernels=(7, 3, 2), conv_strides=(3, 2, 1), layers=1
    ),
    "kernel shorter than the stride": replace(
        SMALL_HUBERT, conv_channels=(8, 16), conv_kernels=(2, 15), conv_strides=(4, 1), layers=1, projection=None
    ),
    "no stride": replace(SMALL_HUBERT, conv_channels=(8, 16), conv_kernels=(5, 2), conv_strides=(1, 2), layers=1),
}


@cache
@torch.inference_mode(False)
def network(name: str) -> Hubert:
    config = CONFIGS[name]
    made = Hubert(config)
    state = fold_weight_norm(Path("seeded"), hubert_state(config))
    made.load_state_dict({key: state[key] for key in made.state_dict()})
    return made.eval()


@cache
@torch.inference_mode(False)
def pair(name: str, window: int = FRAMES) -> tuple[ContentEncoderStage, AneContentEncoderStage]:
    return ContentEncoderStage(network(name), window).eval(), AneContentEncoderStage(network(name), window)


def speech(samples: int, seed: int = 0) -> Tensor:
    """Something with pitch and noise, of level 0.1."""
    time = torch.arange(samples) / SAMPLE_RATE
    tone = sum((torch.sin(2 * torch.pi * 170 * harmonic * time) / harmonic for harmonic in range(1, 8)), torch.zeros(samples))
    return 0.07 * tone + 0.03 * normal(seed, samples)


def clip_inputs(plain: ContentEncoderStage, valid: int, gain: float = 1.0, garbage: float = 0.0, offset: float = 0.0) -> dict[str, Tensor]:
    """A clip of so many frames in the window, garbage after it, the norm's statistics from the host."""
    samples = plain.hubert.config.samples(valid)
    clip = gain * speech(samples) + offset
    norm = ContentHost.of(plain.hubert).norm(clip)
    waveform = torch.cat([norm.apply(clip), garbage * normal(9, plain.samples - samples)])
    return {"waveform": waveform[None], "norm_scale": norm.scale, "norm_shift": norm.shift, VALID_INPUT: plain.mask(valid)}


@torch.inference_mode()
def both(name: str, valid: int, gain: float, garbage: float) -> list[tuple[Tensor, Tensor]]:
    plain, ane = pair(name)
    inputs = clip_inputs(plain, valid, gain, garbage, offset=0.05)
    found = ane.at_window(inputs)
    assert list(found) == [spec.name for spec in plain.outputs]
    return list(zip(found.values(), plain(*(inputs[spec.name] for spec in plain.inputs)), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    valid=st.integers(1, FRAMES),
    gain=st.sampled_from([1.0, 0.1, 0.01]),
    garbage=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_it_equals_the_plain_stage_in_every_configuration(name: str, valid: int, gain: float, garbage: float) -> None:
    for ours, theirs in both(name, valid, gain, garbage):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) < TOLERANCE
        assert not ours[:, valid:].any()
        assert theirs[:, :valid].std() > 0.05


@pytest.mark.parametrize("name", ["small", "128 taps"])
def test_it_equals_the_plain_stage_at_every_valid_length(name: str) -> None:
    for valid in range(1, FRAMES + 1):
        for ours, theirs in both(name, valid, 1.0, 3.0):
            assert float((ours - theirs).abs().max()) < TOLERANCE, valid


@settings(max_examples=20, deadline=None)
@given(valid=st.integers(1, FRAMES), gain=st.sampled_from([1.0, 0.1, 0.01]), garbage=st.sampled_from([0.0, 10.0]))
@torch.inference_mode()
def test_it_equals_the_network_on_the_clip_alone(valid: int, gain: float, garbage: float) -> None:
    found = AneContentEncoderStage(hubert(), FRAMES).at_window(clip_inputs(pair("small")[0], valid, gain, garbage))
    clip = gain * speech(SMALL_HUBERT.samples(valid))
    for version in ("v1", "v2"):
        exact = exact_hubert().features(clip.double()[None], version)
        assert float((found[f"features_{version}"][:, :valid] - exact).abs().max()) < TOLERANCE


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@torch.inference_mode()
def test_every_attention_strategy_gives_the_same_features(strategy: str) -> None:
    plain, ane = pair("small")
    inputs = clip_inputs(plain, 23)
    other = AneContentEncoderStage(network("small"), FRAMES, strategy).at_window(inputs)
    for name, value in ane.at_window(inputs).items():
        assert float((other[name] - value).abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_its_parameters_are_the_networks_and_nothing_is_left_out(name: str) -> None:
    plain, ane = pair(name)
    assert group_problems(ane, plain) == []
    shared = {value.untyped_storage().data_ptr() for value in plain.parameters()}
    copied = [key for key, value in ane.named_parameters() if value.untyped_storage().data_ptr() not in shared]
    assert all(key in ("conv_layers.0.weight", "encoder.pos_conv.weight") or "conv_layers" in key for key in copied)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_its_tensors_have_four_axes_that_fit(name: str) -> None:
    plain, ane = pair(name)
    assert (ane.name, ane.inputs, ane.outputs, ane.host_entries) == (plain.name, plain.inputs, plain.outputs, plain.host_entries)
    assert ane.arrangement is not None
    ane.arrangement.check({spec.name: spec.shape for spec in plain.inputs}, {spec.name: spec.shape for spec in plain.outputs})
    assert type(ane.arrangement).from_dict(ane.arrangement.as_dict()) == ane.arrangement
    for shape in ane.package_inputs.values():
        assert len(shape) == 4
        assert max(shape[2:]) <= MAX_AXIS


def test_the_default_window_is_the_largest_whose_axis_fits() -> None:
    base = HubertConfig()
    assert window_for(base) == WINDOW == most_frames(base) == 255
    assert base.samples(255) == 5 * 16336
    assert -(-base.samples(256) // 5) > MAX_AXIS - 40
    for config in (base, *CONFIGS.values()):
        frames = most_frames(config)
        rows = [(config.samples(count) - config.conv_kernels[0]) // config.conv_strides[0] for count in (frames, frames + 1)]
        taps = -(-config.conv_kernels[0] // config.conv_strides[0])
        assert rows[0] + taps <= MAX_AXIS < rows[1] + taps
        assert 1 <= window_for(config) <= WINDOW


@pytest.mark.parametrize(
    ("changes", "window", "reason"),
    [
        ({"conv_kernels": (80, 3, 3, 3, 3, 2, 2)}, 10, "the first convolution has 16 taps in each phase, the ane layout holds 13"),
        ({"conv_kernels": (10, 3, 8, 3, 3, 2, 2)}, 10, "convolution 2 has 8 taps at stride 2, the ane layout holds 7 strided ones"),
        ({}, 256, "a window of 256 frames is not within 1 to 255, which an axis of 16384 holds"),
        ({"position_kernel": 500}, 10, "the positional convolution has 500 taps, the ane layout holds 377"),
    ],
)
def test_what_the_layout_does_not_hold_is_refused(changes: dict[str, object], window: int, reason: str) -> None:
    with torch.device("meta"):
        made = Hubert(replace(SMALL_HUBERT, **changes))
    with pytest.raises(ConversionError, match=reason) as found:
        AneContentEncoderStage(made, window)
    assert str(found.value).endswith("convert it with --layout plain")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvertedStage, Path]:
    converted = convert_stage(pair("128 taps")[1], "fp16")
    path = tmp_path_factory.mktemp("ane") / "content_encoder.mlpackage"
    converted.model.save(str(path))
    return converted, path


@pytest.mark.parametrize(("numerics", "least"), [("declared", 45), ("ane", 30)])
@pytest.mark.parametrize("gain", [1.0, 0.1, 0.01])
@torch.inference_mode()
def test_a_half_precision_package_holds_its_features_at_every_gain(
    package: tuple[ConvertedStage, Path], gain: float, numerics: str, least: float
) -> None:
    plain, ane = pair("128 taps")
    model = ReferenceModel(package[1], numerics=numerics)
    for valid in (FRAMES, 11):
        inputs = clip_inputs(plain, valid, gain, garbage=1.0, offset=0.02)
        expected = plain.at_window(inputs)
        for name, found in packaged_outputs(ane, model, inputs).items():
            assert not found[:, valid:].any()
            assert snr_db(expected[name][0, :valid].numpy(), found[0, :valid], 0) >= least


def check_operations(converted: ConvertedStage, layers: int, groups: int) -> None:
    """No transpose, no gather, four reshapes in each attention layer and two around the positional convolution, and axes that fit."""
    counts = converted.operation_counts
    unwanted = {"transpose", "gather", "layer_norm", "instance_norm", "linear", "conv_transpose", "tile", "squeeze", "expand_dims"}
    assert not unwanted & set(counts)
    assert counts["matmul"] == 2 * layers * groups
    places: dict[str, Counter[str]] = {kind: Counter() for kind in ("reshape", "split", "concat", "slice_by_index", "pad")}
    for operation in converted.model._mil_program.functions["main"].operations:
        if operation.op_type == "const":
            continue
        for result in operation.outputs:
            assert len(result.shape) <= 4
            assert max(result.shape[2:]) <= MAX_AXIS
        if operation.op_type in places:
            places[operation.op_type][converted.modules[operation.name]] += 1
        if operation.op_type == "conv":
            assert operation.weight.shape[3] <= MAX_WIDTH
        if operation.op_type == "slice_by_index":
            assert operation.begin.val[-1] == 0
        if operation.op_type == "split":
            assert operation.axis.val == 1
    attention = [f"encoder.layers.{layer}.self_attn" for layer in range(layers)]
    assert places["reshape"] == {"encoder.pos_conv": 2, **dict.fromkeys(attention, 4)}
    assert places["split"] == (dict.fromkeys(attention, 3) if groups > 1 else {})
    assert places["concat"] == {"encoder.pos_conv": 1, **(dict.fromkeys(attention, 1) if groups > 1 else {})}
    assert places["slice_by_index"].keys() == places["pad"].keys() == {"encoder.pos_conv"}


def test_the_package_holds_the_operations_that_were_meant(package: tuple[ConvertedStage, Path]) -> None:
    check_operations(package[0], layers=1, groups=1)


def test_the_packages_constants_are_the_checkpoints(package: tuple[ConvertedStage, Path]) -> None:
    plain, ane = pair("128 taps")
    report = audit_package(package[1], ane, package[0].modules, plain)
    hosted = sum(value.numel() for value in plain.hubert.feature_extractor.first.norm.parameters())
    assert report.values == sum(value.numel() for value in plain.parameters()) - hosted


@pytest.mark.slow
def test_at_full_size_the_package_holds_its_features_at_every_gain(tmp_path: Path) -> None:
    from rvc_coreml.models import load_hubert

    made = load_hubert(write_hubert(tmp_path / "hubert_base.pt"))
    plain, ane = ContentEncoderStage(made, WINDOW).eval(), AneContentEncoderStage(made, WINDOW)
    assert group_problems(ane, plain) == []
    converted = convert_stage(ane, "fp16")
    check_operations(converted, layers=12, groups=2)
    converted.model.save(str(tmp_path / "full.mlpackage"))
    for numerics, least in (("declared", 45), ("ane", 30)):
        model = ReferenceModel(tmp_path / "full.mlpackage", numerics=numerics)
        for gain in (1.0, 0.01):
            inputs = clip_inputs(plain, 200, gain, garbage=1.0)
            with torch.inference_mode():
                expected, arranged = plain.at_window(inputs), ane.at_window(inputs)
            for name, found in packaged_outputs(ane, model, inputs).items():
                assert float((expected[name] - arranged[name]).abs().max()) < TOLERANCE
                assert snr_db(expected[name][0, :200].numpy(), np.asarray(found[0, :200]), 0) >= least
