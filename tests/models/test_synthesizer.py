"""The synthesizer in all its configurations, against an independent implementation and against exact phases."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.models import Synthesizer, VoiceConfig, frame_phases, harmonic_source, sample_prior
from rvc_coreml.models.checkpoint.state import fold_weight_norm
from rvc_coreml.models.config import PHONE_CHANNELS
from support.checkpoints import UPSAMPLING, small_config, voice_state

from .reference_synthesizer import ReferenceSynthesizer

FRAMES = 24  # so that some pairs of frames have a relative position of their own and some have none
RATE, UPP = 40000, 400
EVERY_CONFIGURATION = [(version, rate, f0, resblock) for version, rate in UPSAMPLING for f0 in (True, False) for resblock in ("1", "2")]


def build(config: list[Any], version: str = "v2", f0: bool = True) -> Synthesizer:
    synthesizer = Synthesizer(VoiceConfig.from_list(config), PHONE_CHANNELS[version], f0)
    synthesizer.load_state_dict(fold_weight_norm(Path("seeded"), voice_state(config, version, f0)))
    return synthesizer.eval()


def inputs(synthesizer: Synthesizer, frames: int = FRAMES, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    config = synthesizer.config
    values: dict[str, Any] = {
        "phone": torch.randn(1, frames, synthesizer.phone_channels, generator=generator),
        "pitch": None,
        "pitchf": None,
        "speaker": 0,
        "prior_noise": torch.randn(1, config.inter_channels, frames, generator=generator),
        "source_noise": None,
    }
    if synthesizer.has_f0:
        values["pitchf"] = 80 + 400 * torch.rand(1, frames, generator=generator)
        values["pitchf"][0, frames // 3 : frames // 2] = 0
        values["pitch"] = torch.randint(1, 256, (1, frames), generator=generator)
        values["source_noise"] = torch.randn(1, frames * config.samples_per_frame, 1, generator=generator)
    return values


def worst(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.detach().reshape(theirs.shape).double().numpy() - theirs).max())


@pytest.mark.parametrize(("version", "rate", "f0", "resblock"), EVERY_CONFIGURATION)
def test_every_configuration_gives_frames_times_upp_samples_and_speakers_differ(version: str, rate: int, f0: bool, resblock: str) -> None:
    synthesizer = build(small_config(version, rate, resblock=resblock, speakers=3), version, f0)
    values = inputs(synthesizer, frames=4)
    first, last = (synthesizer.infer(**{**values, "speaker": speaker}) for speaker in (0, 2))
    assert first.shape == (1, 1, 4 * rate // 100)
    assert first.std() > 1e-3
    assert float((first - last).abs().max()) > 1e-3


@pytest.mark.parametrize("speaker", [-1, 3, 109])
def test_speaker_outside_the_table_is_an_index_error(speaker: int) -> None:
    synthesizer = build(small_config(speakers=3))
    with pytest.raises(IndexError, match=str(speaker)):
        synthesizer.infer(**{**inputs(synthesizer, 2), "speaker": speaker})


@pytest.mark.parametrize("absent", ["pitch", "pitchf", "source_noise"])
def test_voice_with_f0_refuses_to_run_without_pitch(absent: str) -> None:
    synthesizer = build(small_config())
    with pytest.raises((ValueError, TypeError)):
        synthesizer.infer(**{**inputs(synthesizer, 2), absent: None})


@pytest.mark.parametrize(
    ("version", "rate", "f0", "resblock"), [("v2", 40000, True, "1"), ("v1", 32000, False, "1"), ("v2", 24000, True, "2")]
)
def test_stages_equal_independent_float64_implementation(version: str, rate: int, f0: bool, resblock: str) -> None:
    """Each stage from the reference's own input, so that no error hides behind another."""
    config = small_config(version, rate, resblock=resblock)
    reference = ReferenceSynthesizer(voice_state(config, version, f0), config)
    synthesizer = build(config, version, f0)
    values = inputs(synthesizer)
    m_p, logs_p = reference.prior(values["phone"][0].double().numpy(), values["pitch"][0].numpy() if f0 else None)
    z_p = m_p + np.exp(logs_p) * values["prior_noise"][0].double().numpy() * 0.66666
    z = reference.flow(z_p, 1)
    source = reference.source(values["pitchf"][0].double().numpy(), values["source_noise"].double().reshape(-1).numpy()) if f0 else None
    audio = reference.decode(z, 1, source)
    with torch.inference_mode():
        g = synthesizer.speaker_embedding(1)
        ours = synthesizer.enc_p(values["phone"], values["pitch"])
        our_z = synthesizer.flow(torch.from_numpy(z_p).float()[None], g)
        our_source = torch.from_numpy(source).float()[None] if source is not None else None
        our_audio = synthesizer.dec(torch.from_numpy(z).float()[None], g, our_source)
    assert worst(ours[0], m_p) < 1e-5
    assert worst(ours[1], logs_p) < 1e-5
    assert worst(our_z, z) < 1e-5 * max(1, np.abs(z).max())
    assert worst(our_audio, audio) < 1e-5
    if source is not None:
        assert worst(synthesizer.harmonic_source(values["pitchf"], values["source_noise"]), source) < 1e-6
    assert worst(synthesizer.infer(**{**values, "speaker": 1}), audio) < 1e-4
    assert audio.std() > 1e-3


def test_prior_sample_uses_upstreams_five_sixes() -> None:
    noise = torch.tensor([[[1.0, -2.0]]])
    z_p = sample_prior(torch.tensor([[[0.5, 1.0]]]), torch.tensor([[[0.0, math.log(2)]]]), noise)
    assert torch.allclose(z_p, torch.tensor([[[0.5 + 0.66666, 1 - 4 * 0.66666]]]), atol=1e-7)
    assert abs(float(z_p[0, 0, 0]) - 0.5 - 2 / 3) > 5e-6


def source_of(pitchf: torch.Tensor, phases: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> torch.Tensor:
    """The excitation before mixing, made visible by a weight small enough for tanh to be linear: (samples,) float64."""
    noise = torch.zeros(1, pitchf.shape[1] * UPP, 1) if noise is None else noise
    tiny = 1e-3
    out = harmonic_source(pitchf, noise, UPP, torch.tensor([[tiny]]), torch.zeros(1), phases)
    return out.reshape(-1).double() / tiny


def exact_sine(pitchf: np.ndarray, frame: int, sample: int) -> float:
    """0.1 sin(2 pi phase) with the phase summed in exact fractions over all frames before."""
    before = sum((Fraction(float(hertz)) for hertz in pitchf[:frame]), Fraction(0)) * UPP / RATE
    phase = before + Fraction(float(pitchf[frame])) * (sample + 1) / RATE
    return 0.1 * math.sin(2 * math.pi * float(phase % 1))


def test_source_equals_sample_by_sample_accumulation() -> None:
    config = small_config()
    state = voice_state(config)
    generator = np.random.default_rng(3)
    pitchf = np.where(generator.random(60) < 0.3, 0, generator.uniform(50, 1100, 60)).astype(np.float32)
    noise = generator.standard_normal(60 * UPP)
    wanted = ReferenceSynthesizer(state, config).source(pitchf.astype(np.float64), noise)
    linear = (state["dec.m_source.l_linear.weight"], state["dec.m_source.l_linear.bias"])
    made = harmonic_source(torch.from_numpy(pitchf)[None], torch.from_numpy(noise).reshape(1, -1, 1), UPP, *linear)
    assert made.shape == (1, 1, 60 * UPP)
    assert worst(made, wanted) < 1e-6


def test_last_second_of_an_hour_has_the_exact_phase() -> None:
    generator = np.random.default_rng(4)
    frames = 360_000
    pitchf = np.where(generator.random(frames) < 0.2, 0, generator.uniform(50, 1100, frames)).astype(np.float32)
    first = frames - 100
    pitch = torch.from_numpy(pitchf)[None]
    phases = frame_phases(pitch)
    made = source_of(pitch[:, first:], phases[:, first:]).reshape(100, UPP).numpy()
    before = sum((Fraction(float(hertz)) for hertz in pitchf[:first]), Fraction(0)) / 100
    errors = []
    for frame in range(100):
        hertz = Fraction(float(pitchf[first + frame]))
        for sample in (0, 1, UPP // 2, UPP - 1):
            phase = float((before + hertz * (sample + 1) / RATE) % 1)
            errors.append(abs(made[frame, sample] - (0.1 * math.sin(2 * math.pi * phase) if hertz else 0.0)))
        before += hertz / 100
    assert max(errors) < 1e-7
    assert made.std() > 0.05


def test_unvoiced_frames_are_noise_alone_and_hold_the_phase() -> None:
    pitchf = np.array([220.7, 220.7, 0, 0, 0, 331.3, 331.3], np.float32)
    pitch = torch.from_numpy(pitchf)[None]
    silent = source_of(pitch).reshape(7, UPP)
    assert not silent[2:5].any()
    for frame in (0, 1, 5, 6):
        for sample in (0, 7, UPP - 1):
            assert abs(float(silent[frame, sample]) - exact_sine(pitchf, frame, sample)) < 1e-7
    noise = torch.ones(1, 7 * UPP, 1)
    noisy = source_of(pitch, noise=noise).reshape(7, UPP)
    added = noisy - silent
    assert torch.allclose(added[2:5], torch.full((3, UPP), 0.1 / 3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(added[[0, 1, 5, 6]], torch.full((4, UPP), 0.003, dtype=torch.float64), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 50.0, 99.97, 440.0, 1099.5]), min_size=2, max_size=30), st.data())
def test_source_cut_into_pieces_joins_without_a_seam(contour: list[float], data: st.DataObject) -> None:
    pitch = torch.tensor([contour])
    cut = data.draw(st.integers(1, len(contour) - 1))
    noise = torch.randn(1, len(contour) * UPP, 1, generator=torch.Generator().manual_seed(len(contour)))
    phases = frame_phases(pitch)
    whole = source_of(pitch, noise=noise)
    left = source_of(pitch[:, :cut], phases[:, :cut], noise[:, : cut * UPP])
    right = source_of(pitch[:, cut:], phases[:, cut:], noise[:, cut * UPP :])
    assert torch.equal(torch.cat([left, right]), whole)


def test_frame_phases_stay_within_one_cycle() -> None:
    phases = frame_phases(torch.tensor([[100.0, 149.0, 0.0, 1e-3, 1100.0, 50.0]]))
    assert phases.dtype == torch.float64
    assert bool(((phases >= 0) & (phases < 1)).all())
    assert phases[0, 0] == 0
    assert abs(float(phases[0, 2]) - 0.49) < 1e-12
