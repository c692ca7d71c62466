"""The decoder in the Neural Engine's layout against the networks, whatever lies in the padding, and within the engine's limits."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.audit import audit_package
from rvc_coreml.converters.mlprogram import ConvertedStage, convert_stage
from rvc_coreml.errors import ConversionError
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.models import Synthesizer, VoiceConfig
from rvc_coreml.models.ane import decoder
from rvc_coreml.models.ane.decoder import AneDecoderStage, window_for
from rvc_coreml.models.config import PHONE_CHANNELS
from rvc_coreml.models.generator import context_frames
from rvc_coreml.models.stages import VALID_INPUT, DecoderStage, Stage
from rvc_coreml.runtime.reference.executor import ReferenceModel
from support.arranged import full_size_voice, packaged_outputs, repeated_problems, seeded_voice
from support.checkpoints import UPSAMPLING, full_config, small_config
from support.engine_limits import LONGEST, broken_limits
from support.small_networks import normal, voice
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

TOLERANCE = 1e-4
KINDS = [(*key, True, "1") for key in UPSAMPLING] + [("v1", 48000, False, "1"), ("v2", 48000, True, "2"), ("v2", 40000, False, "2")]
WINDOW, WIDEST = 16, 2048  # frames and positions with which narrow voices fold as those of full length do
MOST_FLOPS = 1.10  # of the plain decoder's at the same window
FORBIDDEN = {
    "conv_transpose",
    "gather",
    "gather_along_axis",
    "gather_nd",
    "tile",
    "squeeze",
    "expand_dims",
    "split",
    "layer_norm",
    "linear",
}
# reshape: two of the folding, one of each interleaving, whose transpositions are the only ones
MOVING = {"reshape": 6, "transpose": 8, "pad": 1, "concat": 1, "slice_by_index": 4}


def window_inputs(plain: DecoderStage, valid: int, scale: float) -> dict[str, Tensor]:
    """Random inputs, in the padding of order `scale`, and the mask."""
    found = {}
    for index, spec in enumerate(plain.inputs):
        value = normal(index, *spec.shape)
        found[spec.name] = plain.mask(valid) if spec.name == VALID_INPUT else torch.tanh(value) if spec.name == "source" else value
        if spec.name in ("z", "source"):
            found[spec.name][..., valid * (spec.shape[2] // plain.window) :] *= scale
    return found


@cache
def stages(kind: tuple[str, int, bool, str], window: int, widest: int) -> tuple[DecoderStage, AneDecoderStage]:
    network = voice(*kind)
    return DecoderStage(network, window).eval(), AneDecoderStage(network, window, widest)


@torch.inference_mode()
def assert_equals_network(plain: DecoderStage, stage: AneDecoderStage, valid: int, scale: float) -> None:
    inputs = window_inputs(plain, valid, scale)
    samples = valid * plain.outputs[0].samples
    clip = {"z": inputs["z"][..., :valid], "g": inputs["g"]} | ({"source": inputs["source"][..., :samples]} if plain.has_f0 else {})
    alone, found = plain.compute(clip)["audio"], stage.at_window(inputs)["audio"]
    assert found.shape == plain.outputs[0].shape
    assert alone.std() > 1e-3
    assert float((found[..., :samples] - alone).abs().max()) <= TOLERANCE
    assert not found[..., samples:].any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=5, deadline=None)
@given(valid=st.integers(1, WINDOW), scale=st.sampled_from([0.0, 1.0, 10.0]))
def test_window_equals_network_on_the_clip(kind: tuple[str, int, bool, str], valid: int, scale: float) -> None:
    plain, stage = stages(kind, WINDOW, WIDEST)
    assert stage.dec.plan[-1].count > 1
    assert_equals_network(plain, stage, valid, scale)


@pytest.mark.parametrize("kind", KINDS[: len(UPSAMPLING)], ids=str)
def test_default_window_brings_a_second_and_equals_the_network(kind: tuple[str, int, bool, str]) -> None:
    window = window_for(voice(*kind).config)
    plain, stage = stages(kind, window, LONGEST)
    assert window - 2 * stage.context >= 100
    assert (stage.context, stage.inputs, stage.outputs) == (plain.context, plain.inputs, plain.outputs)
    assert_equals_network(plain, stage, window - 3, 3.0)
    shapes = {name: shape[2:] for name, shape in stage.package_inputs.items()}
    assert max(max(shape) for shape in shapes.values()) <= LONGEST
    assert stage.arrangement is not None
    stage.arrangement.check({spec.name: spec.shape for spec in stage.inputs}, {spec.name: spec.shape for spec in stage.outputs})


def test_margins_are_as_wide_as_what_is_wrong_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cut at single positions: with the margin they equal the network, with one less they do not, however little that is."""
    network = copy.deepcopy(voice("v2", 48000, True)).double()
    plain = DecoderStage(network, WINDOW).eval()
    inputs = {name: value.double() for name, value in window_inputs(plain, WINDOW, 0.0).items()}
    needs = decoder.margins(network.config, network.dec)
    wanted = plain.at_window(inputs)["audio"]
    monkeypatch.setattr("rvc_coreml.models.ane.folding.BLOCKS", (1,))
    assert (AneDecoderStage(network, WINDOW, WIDEST).at_window(inputs)["audio"] - wanted).abs().max() < 5e-15
    monkeypatch.setattr(decoder, "margins", lambda _config, _dec: tuple(need - 1 for need in needs))
    assert (AneDecoderStage(network, WINDOW, WIDEST).at_window(inputs)["audio"] - wanted).abs().max() > 2e-14


@pytest.mark.parametrize(("version", "rate"), UPSAMPLING)
def test_flops_of_full_size_voices_are_few_more(version: str, rate: int) -> None:
    with torch.device("meta"):
        network = Synthesizer(VoiceConfig.from_list(full_config(version, rate)), PHONE_CHANNELS[version], True)
        window = window_for(network.config)
        stage = AneDecoderStage(network, window)
    counts = [flops(each) for each in (stage, DecoderStage(network, window))]
    assert 1.0 < counts[0] / counts[1] <= MOST_FLOPS


def flops(stage: Stage) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        stage(*(torch.zeros(shape) for shape in stage.package_inputs.values()))
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", [("v2", 48000, True, "1"), ("v1", 32000, False, "2")], ids=str)
def test_every_value_of_the_checkpoint_is_in_the_stage_and_nothing_else(kind: tuple[str, int, bool, str]) -> None:
    plain, stage = stages(kind, WINDOW, WIDEST)
    repeated = {f"dec.ups.{index}.bias": rate for index, rate in enumerate(stage.dec.rates)}
    assert not repeated_problems(stage, plain, repeated)


@cache
def packaged_stages() -> tuple[DecoderStage, AneDecoderStage]:
    """A narrow voice at 48 kHz and its default window, with one residual block in each level."""
    network = seeded_voice(small_config("v2", 48000, resblock_kernel_sizes=[11], resblock_dilation_sizes=[[1, 3, 5]]))
    window = window_for(network.config)
    return DecoderStage(network, window).eval(), AneDecoderStage(network, window)


@cache
def converted() -> ConvertedStage:
    return convert_stage(packaged_stages()[1], "fp16")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.mlpackage"
    converted().model.save(str(path))
    return path


def test_operations_obey_the_limits(package: Path) -> None:
    assert not broken_limits(package)
    assert {name: count for name, count in converted().operation_counts.items() if name in MOVING} == MOVING


def test_package_holds_the_checkpoints_weights(package: Path) -> None:
    assert audit_package(package, packaged_stages()[1], converted().modules).values > 0


@pytest.mark.parametrize(("numerics", "least"), [("declared", 45.0), ("ane", 30.0)])
def test_package_keeps_its_signal(numerics: str, least: float, package: Path) -> None:
    plain, stage = packaged_stages()
    inputs = window_inputs(plain, 120, 3.0)
    with torch.inference_mode():
        wanted = plain.at_window(inputs)["audio"].numpy()
    assert snr_db(wanted, packaged_outputs(stage, ReferenceModel(package, numerics=numerics), inputs)["audio"]) >= least


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="window of 4000 frames cannot be folded"):
        AneDecoderStage(voice("v2", 48000, True), 4000)
    with pytest.raises(ConversionError, match=r"dec\.resblocks\.2\.convs1\.0\.weight has 15 taps"):
        AneDecoderStage(seeded_voice(small_config(resblock_kernel_sizes=[3, 7, 15])), 128)


def test_wider_resblocks_get_a_window_that_still_brings_a_second() -> None:
    config = VoiceConfig.from_list(small_config(resblock_kernel_sizes=[3, 7, 23]))
    assert window_for(config) - 2 * context_frames(config) == 100


@pytest.mark.slow
@pytest.mark.parametrize(("version", "rate"), UPSAMPLING)
def test_full_size(version: str, rate: int, tmp_path: Path) -> None:
    network = full_size_voice(version, rate, True)
    window = window_for(network.config)
    plain, stage = DecoderStage(network, window).eval(), AneDecoderStage(network, window)
    for valid in (1, window):
        assert_equals_network(plain, stage, valid, 3.0)
    path = tmp_path / "decoder.mlpackage"
    made = convert_stage(stage, "fp16")
    made.model.save(str(path))
    assert not broken_limits(path)
    assert audit_package(path, stage, made.modules).values > 0
    inputs = window_inputs(plain, window - 9, 3.0)
    with torch.inference_mode():
        wanted = plain.at_window(inputs)["audio"].numpy()
    for numerics, least in (("declared", 45.0), ("ane", 30.0)):
        assert snr_db(wanted, packaged_outputs(stage, ReferenceModel(path, numerics=numerics), inputs)["audio"]) >= least
    assert math.isfinite(float(abs(wanted).max()))
