"""What training adds to the voice's networks computes what the project's own do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rvc_coreml.models import Synthesizer, VoiceConfig, harmonic_source, load_voice, sample_prior
from rvc_coreml.models.checkpoint.state import fold_weight_norm
from rvc_coreml.models.flow import ResidualCouplingLayer
from torch import nn
from train_embedded.discriminators import Discriminators, adversarial_losses
from train_embedded.losses import MEL_SCALES, SpectralLoss, kl_divergence, linear_spectra, mel_basis, standard_divergence
from train_embedded.networks import TINY_CONFIG, VOICE_CONFIG, TrainedSynthesizer, batched_source, encode_batch, export_state
from train_embedded.posterior import PosteriorEncoder

CONFIG = VoiceConfig.from_list(TINY_CONFIG)
FRAMES = (30, 21)  # valid frames of the two items of a batch


@pytest.fixture(scope="module")
def trained() -> TrainedSynthesizer:
    torch.manual_seed(3)
    network = TrainedSynthesizer(CONFIG)
    for layer in network.flow.flows:
        if isinstance(layer, ResidualCouplingLayer):
            nn.init.normal_(layer.post.weight, std=0.5)
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def project(trained: TrainedSynthesizer) -> Synthesizer:
    network = Synthesizer(CONFIG, 256, True)
    names = {
        name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
        for name, value in trained.state_dict().items()
    }
    network.load_state_dict(fold_weight_norm(Path("trained"), names))
    return network.requires_grad_(False).eval()


def masks() -> torch.Tensor:
    return torch.stack([(torch.arange(max(FRAMES)) < count).float() for count in FRAMES]).unsqueeze(1)


def test_to_prior_undoes_the_flow_that_conversion_runs(trained: TrainedSynthesizer, project: Synthesizer) -> None:
    mask, g = masks(), trained.speaker(2)
    z_p = torch.randn(2, CONFIG.inter_channels, max(FRAMES)) * mask
    z = project.flow(z_p, g, mask)
    assert (z - z_p).abs().max() > 0.1
    assert torch.allclose(trained.flow.to_prior(z, g, mask), z_p, atol=1e-5)
    assert torch.allclose(trained.flow(trained.flow.to_prior(z_p, g, mask), g, mask), z_p, atol=1e-5)


def test_a_batch_of_prior_equals_clips_one_by_one(trained: TrainedSynthesizer, project: Synthesizer) -> None:
    phone, pitch = torch.randn(2, max(FRAMES), 256), torch.randint(1, 256, (2, max(FRAMES)))
    m_p, logs_p = encode_batch(trained.enc_p, phone, pitch, masks())
    for item, count in enumerate(FRAMES):
        own = project.enc_p(phone[item : item + 1, :count], pitch[item : item + 1, :count])
        assert torch.allclose(m_p[item, :, :count], own[0][0], atol=1e-5)
        assert torch.allclose(logs_p[item, :, :count], own[1][0], atol=1e-5)
        assert not m_p[item, :, count:].any()


def test_the_source_is_the_one_of_conversion() -> None:
    pitchf = torch.tensor([[0.0, 110.0, 111.5, 0.0, 300.0], [95.0, 95.0, 0.0, 120.0, 121.0]])
    noise = torch.randn(2, 5 * 320)
    weight, bias = torch.tensor([[0.7]]), torch.tensor([0.05])
    made = batched_source(pitchf, noise, 320, weight, bias, torch.zeros(2, 1, dtype=torch.float64))
    for item in range(2):
        own = harmonic_source(pitchf[item : item + 1], noise[item].reshape(1, -1, 1), 320, weight, bias)
        assert torch.allclose(made[item], own[0], atol=1e-6)


def test_an_exported_voice_loads_and_says_what_training_heard(trained: TrainedSynthesizer, tmp_path: Path) -> None:
    state = export_state(trained)
    assert {"dec.ups.0.weight_g", "dec.resblocks.0.convs1.0.weight_v", "flow.flows.0.enc.cond_layer.weight_g"} <= set(state)
    content = {"weight": state, "config": CONFIG.to_list(), "info": "", "sr": "32k", "f0": 1, "version": "v1"}
    torch.save(content, tmp_path / "voice.pth")
    voice = load_voice(tmp_path / "voice.pth")
    phone, pitch, pitchf = torch.randn(1, 25, 256), torch.randint(1, 256, (1, 25)), torch.full((1, 25), 110.0)
    prior_noise, source_noise = torch.randn(1, CONFIG.inter_channels, 25), torch.randn(1, 25 * 320, 1)
    heard = voice.synthesizer.infer(phone, pitch, pitchf, 0, prior_noise, source_noise)
    mask, g = torch.ones(1, 1, 25), trained.speaker(1)
    m_p, logs_p = trained.prior(phone, pitch, mask)
    z = trained.flow(sample_prior(m_p, logs_p, prior_noise), g, mask)
    linear = trained.dec.m_source.l_linear
    source = batched_source(pitchf, source_noise[:, :, 0], 320, linear.weight, linear.bias, torch.zeros(1, 1, dtype=torch.float64))
    assert torch.linalg.vector_norm(trained.dec(z, g, source) - heard) < 0.02 * torch.linalg.vector_norm(heard)


def test_the_shipped_voice_fits_its_size() -> None:
    with torch.device("meta"):
        network = TrainedSynthesizer(VoiceConfig.from_list(VOICE_CONFIG))
    assert sum(tensor.numel() for tensor in network.state_dict().values()) * 2 < 20_000_000 - 200_000


def test_what_lies_beyond_a_clip_does_not_reach_its_posterior() -> None:
    torch.manual_seed(1)
    network = PosteriorEncoder(9, 4, 8, 6, layers=3)
    spectra, g = torch.randn(1, 9, 20), torch.randn(1, 6, 1)
    mask = (torch.arange(20) < 12).float().reshape(1, 1, -1)
    _z, m_q, logs_q = network(spectra, g, mask)
    _z, short_m, short_logs = network(spectra[:, :, :12], g, mask[:, :, :12])
    assert torch.allclose(m_q[:, :, :12], short_m, atol=1e-5)
    assert torch.allclose(logs_q[:, :, :12], short_logs, atol=1e-5)
    assert not m_q[:, :, 12:].any()


def test_the_divergence_is_that_of_normal_distributions() -> None:
    torch.manual_seed(0)
    count = 20000
    m_q, logs_q = torch.full((1, 2, count), 0.4), torch.full((1, 2, count), -0.5)
    m_p, logs_p = torch.full((1, 2, count), -0.2), torch.full((1, 2, count), 0.3)
    mask = torch.ones(1, 1, count)
    sample = m_q + torch.exp(logs_q) * torch.randn_like(m_q)
    normal = torch.distributions.Normal
    exact = 2 * torch.distributions.kl_divergence(normal(0.4, torch.exp(torch.tensor(-0.5))), normal(-0.2, torch.exp(torch.tensor(0.3))))
    assert float(kl_divergence(sample, logs_q, m_p, logs_p, mask)) == pytest.approx(float(exact), rel=0.03)
    assert abs(float(kl_divergence(sample, logs_q, m_q, logs_q, mask))) < 0.03
    exact = 2 * torch.distributions.kl_divergence(normal(0.4, torch.exp(torch.tensor(-0.5))), normal(0.0, 1.0))
    assert float(standard_divergence(m_q, logs_q, mask)) == pytest.approx(float(exact), rel=1e-4)


def test_following_the_divergence_moves_the_prior_to_the_sample() -> None:
    z_p, logs = torch.full((1, 1, 4), 2.0), torch.zeros(1, 1, 4)
    m_p = torch.zeros(1, 1, 4, requires_grad=True)
    kl_divergence(z_p, logs, m_p, logs, torch.ones(1, 1, 4)).backward()
    assert m_p.grad is not None
    assert (m_p.grad < 0).all()


def test_masked_frames_do_not_count_in_the_divergence() -> None:
    mask = masks()
    values = [torch.randn(2, 3, max(FRAMES)) for _ in range(4)]
    changed = [value + (1 - mask) * 9 for value in values]
    assert torch.allclose(kl_divergence(*values, mask), kl_divergence(*changed, mask))


def test_every_band_of_every_scale_has_a_bin() -> None:
    for size, bands in MEL_SCALES:
        basis = mel_basis(32000, size, bands)
        assert basis.shape == (bands, size // 2 + 1)
        assert (basis.sum(1) > 0).all()
        assert float(basis.max()) <= 1.0


def test_spectral_distances_tell_near_from_far() -> None:
    torch.manual_seed(0)
    loss = SpectralLoss()
    real = 0.1 * torch.sin(torch.arange(12800) * 0.05).reshape(1, 1, -1)
    noise = torch.randn_like(real)
    near, far = (sum(float(part) for part in loss(real + level * noise, real)) for level in (0.001, 0.05))
    assert sum(float(part) for part in loss(real, real)) == 0.0
    assert 0 < near < far


def test_a_frame_of_linear_spectra_is_centred_on_its_hop() -> None:
    audio = torch.zeros(1, 10 * 320 + 704)
    audio[0, 352 + 4 * 320 + 160] = 1.0  # the middle of frame 4, behind what the first frame reaches to its left
    found = linear_spectra(audio, torch.hann_window(1024), 320)
    assert found.shape == (1, 513, 10)
    assert int(found.mean(1).argmax()) == 4
    assert torch.allclose(found[:, :, 3], found[:, :, 5], atol=1e-3)


def test_judges_learn_to_tell_and_the_generator_hears_it() -> None:
    torch.manual_seed(0)
    judges = Discriminators(narrowing=8)
    optimiser = torch.optim.AdamW(judges.parameters(), 2e-3)
    time = torch.arange(6400) / 32000
    tones = torch.sin(2 * torch.pi * 120 * time).expand(4, 1, -1) * 0.2
    hiss = torch.randn(4, 1, 6400) * 0.1
    first, last, fooled = 0.0, 0.0, 0.0
    for step in range(12):
        own, fooling, features = adversarial_losses(judges(torch.cat([tones, hiss])))
        optimiser.zero_grad()
        own.backward()
        optimiser.step()
        first, last, fooled = (
            (float(own.detach()), float(own.detach()), 0.0) if step == 0 else (first, float(own.detach()), float(fooling.detach()))
        )
    assert last < 0.7 * first
    assert fooled > 0.5 * last
    assert float(features.detach()) > 0
    same = adversarial_losses(judges(torch.cat([tones, tones])))
    assert float(same[2].detach()) == pytest.approx(0.0, abs=1e-6)
