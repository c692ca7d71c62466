"""The synthesizer as upstream traces it: prior noise, SineGen and every table inside one graph.

The rest of this project makes noise and phase on the host and feeds them in. Here they are part of the network, with
upstream's arithmetic in float32, for those who export the synthesizer whole and for the converter's fallback, which
has to leave exactly these operations in PyTorch. Weights and modules are the `Synthesizer`'s own.

Random numbers come from torch's global generator in upstream's order: the prior's normal draws, one uniform draw for
the fundamental's initial phase, which is then set to zero, and the source's normal draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .source import SINE_AMPLITUDE, UNVOICED_NOISE, VOICED_NOISE
from .synthesizer import Synthesizer, sample_prior
from .text_encoder import PITCH_BINS, masked


class Prior(nn.Module):
    """m_p, logs_p (1, inter, T) and mask (1, 1, T) -> z_p (1, inter, T), drawn anew at every call."""

    def forward(self, m_p: Tensor, logs_p: Tensor, mask: Tensor) -> Tensor:
        return masked(sample_prior(m_p, logs_p, torch.randn_like(m_p)), mask)


class SineGen(nn.Module):
    """Fundamental frequency (1, T) in Hz, 0 where unvoiced -> excitation (1, T * samples_per_frame, 1).

    The phase is summed sample by sample in float32 and one cycle is taken off where the phase at the frames, stretched
    linearly to samples, wraps: this keeps the sum small and changes no sine. It drifts with the clip's length, unlike
    `source.harmonic_source`.
    """

    def __init__(self, samples_per_frame: int, rate: int) -> None:
        super().__init__()
        self.samples_per_frame = samples_per_frame
        self.rate = rate

    def forward(self, f0: Tensor) -> Tensor:
        samples = self.samples_per_frame
        step = (f0.unsqueeze(1) / self.rate) % 1  # (1, 1, T) cycles a sample
        initial = torch.rand(f0.shape[0], 1, device=f0.device, dtype=f0.dtype)
        initial[:, 0] = 0  # upstream randomises overtones only, and RVC has none
        step = torch.cat([step[:, :, :1] + initial.unsqueeze(-1), step[:, :, 1:]], dim=2)
        at_frames = torch.cumsum(step, dim=2) * samples
        stretched = F.interpolate(at_frames, scale_factor=float(samples), mode="linear", align_corners=True) % 1
        wraps = (stretched[:, :, 1:] - stretched[:, :, :-1]) < 0
        shift = F.pad(-wraps.to(f0.dtype), (1, 0))
        cycles = torch.cumsum(F.interpolate(step, scale_factor=float(samples), mode="nearest") + shift, dim=2)
        sine = SINE_AMPLITUDE * torch.sin(cycles * (2 * math.pi))
        voiced = F.interpolate((f0 > 0).to(f0.dtype).unsqueeze(1), scale_factor=float(samples), mode="nearest")
        level = voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE
        return (sine * voiced + level * torch.randn_like(sine)).transpose(1, 2)


class SourceModuleHnNSF(nn.Module):
    """f0 (1, T) Hz -> the decoder's source input (1, 1, T * samples_per_frame)."""

    def __init__(self, linear: nn.Linear, samples_per_frame: int, rate: int) -> None:
        super().__init__()
        self.l_sin_gen = SineGen(samples_per_frame, rate)
        self.l_linear = linear

    def forward(self, f0: Tensor) -> Tensor:
        return torch.tanh(self.l_linear(self.l_sin_gen(f0))).transpose(1, 2)


class WholeSynthesizer(nn.Module):
    """A voice's whole network on a synthesizer's weights, from content features to audio, with its randomness."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        super().__init__()
        config = synthesizer.config
        self.config = config
        self.phone_channels = synthesizer.phone_channels
        self.has_f0 = synthesizer.has_f0
        self.enc_p = synthesizer.enc_p
        self.prior = Prior()
        self.flow = synthesizer.flow
        self.dec = synthesizer.dec
        self.emb_g = synthesizer.emb_g
        if self.has_f0:
            self.m_source = SourceModuleHnNSF(self.dec.m_source.l_linear, config.samples_per_frame, config.sr)
        self.train(synthesizer.training)

    def forward(self, phone: Tensor, phone_lengths: Tensor, *rest: Tensor) -> Tensor:
        """phone (1, T, D), phone_lengths (1,), then pitch (1, T) of 1..255 and nsff0 (1, T) Hz for a voice with f0, and sid (1,).

        Lengths, pitch and sid are int64. Audio (1, 1, T * samples_per_frame); frames from the length on are silent to the
        decoder, as upstream has it.
        """
        *pitched, speaker = rest
        if len(pitched) != (2 if self.has_f0 else 0):
            raise ValueError("a voice with f0 takes phone, phone_lengths, pitch, nsff0 and sid; one without leaves out pitch and nsff0")
        mask = (torch.arange(phone.shape[1], device=phone.device) < phone_lengths.unsqueeze(-1)).to(phone.dtype).unsqueeze(1)
        g = self.emb_g(speaker).unsqueeze(-1)
        embedding = self.enc_p.emb_pitch(pitched[0]) if self.has_f0 else None
        m_p, logs_p = self.enc_p.encode(phone, embedding, mask)
        z = masked(self.flow(self.prior(m_p, logs_p, mask), g, mask), mask)
        return self.dec(z, g, self.m_source(pitched[1]) if self.has_f0 else None)

    def example_inputs(self, frames: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of a clip of that many 10 ms frames: seeded features and coarse pitch, a gliding fundamental, speaker 0."""
        generator = torch.Generator().manual_seed(seed)
        phone = 0.3 * torch.randn(1, frames, self.phone_channels, generator=generator)  # near the deviation of real features
        lengths, speaker = torch.tensor([frames]), torch.zeros(1, dtype=torch.int64)
        if not self.has_f0:
            return phone, lengths, speaker
        pitch = torch.randint(1, PITCH_BINS, (1, frames), generator=generator)
        time = torch.arange(frames)
        hertz = 110.0 * 2 ** (1 + torch.sin(2 * math.pi * time / 331))  # two octaves
        return phone, lengths, pitch, torch.where((time // 10) % 5 == 4, 0.0, hertz)[None], speaker
