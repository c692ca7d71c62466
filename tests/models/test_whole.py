"""The synthesizer as upstream traces it: its own noise and phase, against the synthesizer whose noise comes from outside."""

from __future__ import annotations

import math

import pytest
import torch
from rvc_coreml.models.source import SINE_AMPLITUDE, UNVOICED_NOISE, VOICED_NOISE, frame_phases
from rvc_coreml.models.whole import SineGen, WholeSynthesizer
from support.small_networks import voice

FRAMES = 40
SEED = 3
# Frames -> largest error of the float32 excitation, of amplitude 0.1: a third above what was measured at 1 kHz.
DRIFT = {100: 8e-6, 1000: 8e-5, 4100: 3.2e-4}


@pytest.mark.parametrize(("version", "rate", "f0"), [("v2", 40000, True), ("v2", 48000, True), ("v1", 32000, True), ("v2", 40000, False)])
@torch.inference_mode()
def test_with_the_same_noise_it_is_the_synthesizer(version: str, rate: int, f0: bool) -> None:
    synthesizer = voice(version, rate, f0)
    whole = WholeSynthesizer(synthesizer)
    inputs = whole.example_inputs(FRAMES)
    torch.manual_seed(SEED)
    made = whole(*inputs)
    torch.manual_seed(SEED)
    prior = torch.randn(1, synthesizer.config.inter_channels, FRAMES)
    pitch, hertz, source = None, None, None
    if f0:
        pitch, hertz = inputs[2:4]
        torch.rand(1, 1)  # the initial phase, which upstream draws and does not use
        source = torch.randn(1, FRAMES * synthesizer.config.samples_per_frame, 1)
    wanted = synthesizer.infer(inputs[0], pitch, hertz, 0, prior, source)
    assert made.shape == wanted.shape
    assert wanted.std() > 0.01
    assert (made - wanted).abs().max() < 1e-6


@torch.inference_mode()
def test_frames_past_the_length_change_nothing_before_them() -> None:
    whole = WholeSynthesizer(voice("v2", 40000, False))
    phone, _lengths, speaker = whole.example_inputs(FRAMES)
    kept = FRAMES - 16
    cut = []
    for tail in (0.0, 9.0):
        phone[:, kept:] = tail
        torch.manual_seed(SEED)
        cut.append(whole(phone, torch.tensor([kept]), speaker))
    assert torch.equal(cut[0], cut[1])


@torch.inference_mode()
@pytest.mark.parametrize("frames", list(DRIFT))
def test_upstreams_phase_drifts_in_float32_and_not_in_float64(frames: int) -> None:
    """At 1 kHz, near the highest pitch that estimators give, with every seventh frame unvoiced."""
    hertz = torch.full((1, frames), 1000.0)
    hertz[:, ::7] = 0
    wanted = exact_excitation(hertz, 400, 40000)
    errors = {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(SEED)
        errors[dtype] = (SineGen(400, 40000)(hertz.to(dtype)).double().reshape(-1) - wanted_with_noise(wanted, hertz, dtype)).abs().max()
    assert errors[torch.float64] < 1e-9
    assert errors[torch.float32] < DRIFT[frames]
    assert errors[torch.float32] > 10 * errors[torch.float64]


def exact_excitation(hertz: torch.Tensor, samples: int, rate: int) -> torch.Tensor:
    """The sine alone, float64 (N,), from the closed form."""
    steps = torch.arange(1, samples + 1, dtype=torch.float64) / rate
    phase = frame_phases(hertz).unsqueeze(-1) + hertz.double().unsqueeze(-1) * steps
    return (SINE_AMPLITUDE * torch.sin(2 * math.pi * phase) * (hertz > 0).unsqueeze(-1)).reshape(-1)


def wanted_with_noise(sine: torch.Tensor, hertz: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(SEED)
    torch.rand(1, 1, dtype=dtype)
    voiced = (hertz > 0).double().reshape(-1).repeat_interleave(len(sine) // hertz.numel())
    return sine + (voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE) * torch.randn(len(sine), dtype=dtype).double()


def test_a_wrong_number_of_inputs_is_named() -> None:
    whole = WholeSynthesizer(voice("v2", 40000, True))
    phone, lengths, _pitch, _hertz, speaker = whole.example_inputs(FRAMES)
    with pytest.raises(ValueError, match="pitch, nsff0 and sid"):
        whole(phone, lengths, speaker)
