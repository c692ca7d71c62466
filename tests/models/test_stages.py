"""A stage in its padded window against the network on the clip alone, whatever lies in the padding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.models import ContentHost, VoiceConfig, VoiceHost, load_voice, read_hubert, sample_prior
from rvc_coreml.models.flow import RECEPTIVE_FIELD
from rvc_coreml.models.generator import context_frames
from rvc_coreml.models.stages import DEFAULT_WINDOWS, VALID_INPUT, VOICE_STAGES, Stage, content_encoder_stage, voice_stage
from safetensors.torch import save_file
from support.checkpoints import SMALL_HUBERT, UPSAMPLING, small_config, write_small_hubert, write_voice
from support.small_networks import exact_hubert, hubert, normal, voice
from torch import Tensor

TOLERANCE = 1e-4
# (version, rate) -> frames that one latent frame reaches at most, on either side
MEASURED_REACH = {("v2", 48000): 10.43, ("v2", 40000): 11.38, ("v1", 48000): 12.25, ("v2", 32000): 11.85, ("v1", 32000): 13.27}
WINDOWS = {"content_encoder": 40, "text_encoder": 40, "flow": 30, "decoder": 12}
VOICE_KINDS = [("v2", 40000, True, "1"), ("v1", 32000, False, "1"), ("v2", 24000, True, "2")]
garbage_scales = st.sampled_from([0.0, 1.0, 10.0])
few = settings(max_examples=40, deadline=None)


def padded(values: Tensor, length: int, axis: int, scale: float) -> Tensor:
    """`values` along `axis` at the start of garbage of that scale."""
    shape = list(values.shape)
    shape[axis] = length - values.shape[axis]
    return torch.cat([values, scale * normal(99, *shape)], dim=axis)


@torch.inference_mode()
def run(stage: Stage, values: dict[str, Tensor], valid: int, scale: float) -> dict[str, Tensor]:
    """Valid inputs into the window, garbage after them; checks that nothing of it comes out."""
    assert {spec.name for spec in stage.inputs} == set(values) | {VALID_INPUT}
    tensors = []
    for spec in stage.inputs:
        if spec.name == VALID_INPUT:
            tensors.append(stage.mask(valid))
            continue
        value = values[spec.name]
        axis = next((axis for axis in range(value.ndim) if value.shape[axis] != spec.shape[axis]), None)
        tensors.append(value if axis is None else padded(value, spec.shape[axis], axis, scale))
        assert tensors[-1].shape == spec.shape
    outputs = {}
    for spec, result in zip(stage.outputs, stage(*tensors), strict=True):
        assert result.shape == spec.shape
        beyond = result.narrow(spec.time_axis, valid * spec.samples, (stage.window - valid) * spec.samples)
        assert not beyond.any()
        outputs[spec.name] = result.narrow(spec.time_axis, 0, valid * spec.samples)
    return outputs


def worst(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max())


def speech(samples: int, seed: int = 0) -> Tensor:
    """Something with pitch and noise, of level 0.1."""
    time = torch.arange(samples) / 16000
    tone = sum(torch.sin(2 * torch.pi * 170 * harmonic * time) / harmonic for harmonic in range(1, 8))
    return 0.07 * tone + 0.03 * normal(seed, samples)


@few
@given(
    samples=st.integers(400, SMALL_HUBERT.samples(WINDOWS["content_encoder"]) + 319),
    gain=st.sampled_from([1.0, 0.1, 0.01]),
    offset=st.sampled_from([0.0, 0.05, -0.3]),
    scale=garbage_scales,
)
def test_content_encoder_window_equals_network_on_the_clip(samples: int, gain: float, offset: float, scale: float) -> None:
    check_content_encoder(samples, gain, offset, scale)


@pytest.mark.parametrize("gain", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("samples", [400, 719, 720, SMALL_HUBERT.samples(WINDOWS["content_encoder"])])
def test_content_encoder_window_equals_network_at_every_gain_with_an_offset(samples: int, gain: float) -> None:
    check_content_encoder(samples, gain, 0.2, 1.0)


def check_content_encoder(samples: int, gain: float, offset: float, scale: float) -> None:
    waveform = gain * speech(samples) + offset
    stage = content_encoder_stage(hubert(), WINDOWS["content_encoder"])
    norm = ContentHost.of(hubert()).norm(waveform)
    frames = SMALL_HUBERT.frames(samples)
    piece = norm.apply(waveform[: SMALL_HUBERT.samples(frames)])[None]
    outputs = run(stage, {"waveform": piece, "norm_scale": norm.scale, "norm_shift": norm.shift}, frames, scale)
    for version in ("v1", "v2"):
        wanted = exact_hubert().features(waveform.double()[None], version)
        assert worst(outputs[f"features_{version}"], wanted) < TOLERANCE
        assert wanted.std() > 0.1


@few
@given(samples=st.integers(10, 3000), gain=st.sampled_from([1.0, 0.1, 0.01]), offset=st.sampled_from([0.0, 0.2, -0.7]))
def test_statistics_equal_the_layers_own_mean_and_variance(samples: int, gain: float, offset: float) -> None:
    waveform = gain * speech(samples, seed=samples) + offset
    mean, variance = ContentHost.of(hubert()).statistics(waveform)
    weight = exact_hubert().state_dict()["feature_extractor.conv_layers.0.0.weight"]
    with torch.inference_mode():
        layer = torch.nn.functional.conv1d(waveform.double()[None, None], weight, stride=SMALL_HUBERT.conv_strides[0])[0]
    assert torch.allclose(mean, layer.mean(-1), rtol=1e-9, atol=1e-12)
    assert torch.allclose(variance, layer.var(-1, unbiased=False), rtol=1e-7, atol=1e-12)


def test_statistics_over_several_blocks_equal_those_over_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = speech(5000) + 0.4
    whole = ContentHost.of(hubert()).statistics(waveform)
    monkeypatch.setattr("rvc_coreml.models.host.BLOCK_PATCHES", 97)
    monkeypatch.setattr("rvc_coreml.models.host.BLOCK_SAMPLES", 101)
    blocks = ContentHost.of(hubert()).statistics(waveform)
    for one, many in zip(whole, blocks, strict=True):
        assert torch.allclose(one, many, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_gives_finite_features_equal_to_the_networks(level: float) -> None:
    waveform = torch.full((4000,), level)
    norm = ContentHost.of(hubert()).norm(waveform)
    assert all(bool(torch.isfinite(value).all()) for value in (norm.scale, norm.shift))
    check = content_encoder_stage(hubert(), SMALL_HUBERT.frames(4000))
    piece = norm.apply(waveform[: check.samples])[None]
    outputs = run(check, {"waveform": piece, "norm_scale": norm.scale, "norm_shift": norm.shift}, check.window, 0.0)
    assert worst(outputs["features_v2"], exact_hubert().features(waveform.double()[None])) < TOLERANCE


@pytest.mark.parametrize("kind", VOICE_KINDS)
@few
@given(valid=st.integers(1, WINDOWS["text_encoder"]), scale=garbage_scales)
def test_text_encoder_window_equals_network_on_the_clip(kind: tuple[str, int, bool, str], valid: int, scale: float) -> None:
    synthesizer = voice(*kind)
    stage = voice_stage("text_encoder", synthesizer, WINDOWS["text_encoder"])
    phone = normal(valid, 1, valid, synthesizer.phone_channels)
    values, pitch = {"phone": phone}, None
    if synthesizer.has_f0:
        coarse = np.arange(1, 256, 6)[:valid]
        values["pitch_embedding"] = VoiceHost.of(synthesizer).pitch_embedding(coarse)
        pitch = torch.from_numpy(coarse)[None]
    outputs = run(stage, values, valid, scale)
    with torch.inference_mode():
        wanted = synthesizer.enc_p(phone, pitch)
    for name, tensor in zip(("m_p", "logs_p"), wanted, strict=True):
        assert worst(outputs[name], tensor) < TOLERANCE


@pytest.mark.parametrize("kind", VOICE_KINDS)
@few
@given(valid=st.integers(1, WINDOWS["flow"]), scale=garbage_scales)
def test_flow_window_equals_network_on_the_clip(kind: tuple[str, int, bool, str], valid: int, scale: float) -> None:
    synthesizer = voice(*kind)
    inter = synthesizer.config.inter_channels
    values = {name: normal(seed, 1, inter, valid) for seed, name in enumerate(("m_p", "logs_p", "noise"))}
    g = synthesizer.speaker_embedding(1)
    outputs = run(voice_stage("flow", synthesizer, WINDOWS["flow"]), {**values, "g": g}, valid, scale)
    with torch.inference_mode():
        wanted = synthesizer.flow(sample_prior(**values), g)
    assert worst(outputs["z"], wanted) < TOLERANCE


@pytest.mark.parametrize("kind", VOICE_KINDS)
@few
@given(valid=st.integers(1, WINDOWS["decoder"]), scale=garbage_scales)
def test_decoder_window_equals_network_on_the_clip(kind: tuple[str, int, bool, str], valid: int, scale: float) -> None:
    synthesizer = voice(*kind)
    z, g, source = normal(1, 1, synthesizer.config.inter_channels, valid), synthesizer.speaker_embedding(2), None
    values = {"z": z, "g": g}
    if synthesizer.has_f0:
        values["source"] = source = torch.tanh(normal(2, 1, 1, valid * synthesizer.config.samples_per_frame))
    outputs = run(voice_stage("decoder", synthesizer, WINDOWS["decoder"]), values, valid, scale)
    with torch.inference_mode():
        wanted = synthesizer.dec(z, g, source)
    assert worst(outputs["audio"], wanted) < TOLERANCE


@pytest.mark.parametrize(("version", "rate"), UPSAMPLING)
def test_context_of_flow_and_decoder_is_all_they_see(version: str, rate: int) -> None:
    """A full window from the middle of a clip, less its context, is what the whole clip gives there."""
    synthesizer = voice(version, rate, True)
    g, upp, inter = synthesizer.speaker_embedding(0), synthesizer.config.samples_per_frame, synthesizer.config.inter_channels
    z_p, source = normal(1, 1, inter, 70), torch.tanh(normal(2, 1, 1, 70 * upp))
    with torch.inference_mode():
        whole_z, whole_audio = synthesizer.flow(z_p, g), synthesizer.dec(z_p, g, source)
        context = RECEPTIVE_FIELD
        window = slice(10, 60)
        z = synthesizer.flow(z_p[..., window], g)[..., context:-context]
        assert worst(z, whole_z[..., 10 + context : 60 - context]) < 1e-5
        context = context_frames(VoiceConfig.from_list(small_config(version, rate)))
        audio = synthesizer.dec(z_p[..., window], g, source[..., 10 * upp : 60 * upp])[..., context * upp : -context * upp]
        assert worst(audio, whole_audio[..., (10 + context) * upp : (60 - context) * upp]) < 1e-5


@pytest.mark.parametrize(("version", "rate"), UPSAMPLING)
def test_gradients_reach_no_further_than_the_context(version: str, rate: int) -> None:
    """Exact where values are not: an influence too faint to show in audio still has a gradient."""
    synthesizer = copy.deepcopy(voice(version, rate, True)).double()
    g, upp = synthesizer.speaker_embedding(0).detach(), synthesizer.config.samples_per_frame
    z = normal(1, 1, synthesizer.config.inter_channels, 61).double().requires_grad_()
    source = torch.tanh(normal(2, 1, 1, 61 * upp).double()).requires_grad_()
    synthesizer.dec(z, g, source)[..., 30 * upp : 31 * upp].sum().backward()
    assert z.grad is not None
    assert source.grad is not None
    assert 10 <= reach(z.grad.abs().sum((0, 1))) <= context_frames(VoiceConfig.from_list(small_config(version, rate)))
    assert reach(source.grad.reshape(61, upp).abs().sum(1)) <= context_frames(VoiceConfig.from_list(small_config(version, rate)))
    z.grad = None
    synthesizer.flow(z, g)[..., 30].sum().backward()
    assert reach(z.grad.abs().sum((0, 1))) == RECEPTIVE_FIELD


def reach(influence: Tensor) -> int:
    """The furthest frame from frame 30 that has any."""
    return int((influence.nonzero().flatten() - 30).abs().max())


@pytest.mark.parametrize("name", VOICE_STAGES)
def test_stage_defaults_to_its_plans_window(name: str) -> None:
    assert voice_stage(name, voice("v2", 40000, True)).window == DEFAULT_WINDOWS[name]


def test_host_tables_of_a_file_equal_those_of_the_network(tmp_path: Path) -> None:
    loaded = load_voice(write_voice(tmp_path / "voice.pth"))
    save_file(loaded.source_state, tmp_path / "voice.safetensors", loaded.file_metadata())
    ours, theirs = VoiceHost.read(tmp_path / "voice.safetensors"), VoiceHost.of(loaded.synthesizer)
    assert ours.config == theirs.config
    for name in ("speakers", "pitch", "source_weight", "source_bias"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    checkpoint = read_hubert(write_small_hubert(tmp_path / "hubert"))
    save_file(checkpoint.source_state, tmp_path / "hubert.safetensors", checkpoint.file_metadata())
    content: tuple[Any, ...] = (ContentHost.read(tmp_path / "hubert.safetensors"), ContentHost.of(checkpoint.network))
    assert content[0].config == content[1].config
    for name in ("weight", "gamma", "beta"):
        assert torch.equal(getattr(content[0], name), getattr(content[1], name))


@pytest.mark.parametrize(("key", "measured"), list(MEASURED_REACH.items()), ids=str)
def test_the_decoders_context_covers_its_measured_reach(key: tuple[str, int], measured: float) -> None:
    """The figures were measured on upstream's decoders by perturbing single latent frames in float64."""
    context = context_frames(VoiceConfig.from_list(small_config(*key)))
    assert measured <= context < measured + 2


def test_wider_resblocks_get_a_wider_context() -> None:
    config = small_config("v2", 40000, resblock_kernel_sizes=[3, 7, 23])
    assert context_frames(VoiceConfig.from_list(config)) >= 19.6
