"""The RVC synthesizer: text encoder, flow, decoder and speaker table, in one module with upstream's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import VoiceConfig
from .flow import ResidualCouplingBlock
from .generator import GeneratorNSF
from .source import harmonic_source
from .text_encoder import TextEncoder

PRIOR_SCALE = 0.66666  # RVC-WebUI infer(); five sixes


class Synthesizer(nn.Module):
    """One voice's network for every version, rate and kind of voice; `config` alone decides its shape."""

    def __init__(self, config: VoiceConfig, phone_channels: int, f0: bool) -> None:
        super().__init__()
        self.config = config
        self.phone_channels = phone_channels
        self.has_f0 = f0
        self.enc_p = TextEncoder(
            phone_channels,
            config.inter_channels,
            config.hidden_channels,
            config.filter_channels,
            config.n_heads,
            config.n_layers,
            config.kernel_size,
            f0,
        )
        self.flow = ResidualCouplingBlock(config.inter_channels, config.hidden_channels, config.gin_channels)
        self.dec = GeneratorNSF(config, f0)
        self.emb_g = nn.Embedding(config.spk_embed_dim, config.gin_channels)

    def speaker_embedding(self, speaker: int) -> Tensor:
        """(1, gin, 1) for one speaker of the table. Raises IndexError outside it."""
        return speaker_row(self.emb_g.weight, speaker)

    def harmonic_source(self, pitchf: Tensor, source_noise: Tensor) -> Tensor:
        """pitchf (1, T) Hz, noise (1, T * upp, 1) -> the decoder's source input (1, 1, T * upp)."""
        linear = self.dec.m_source.l_linear
        source = harmonic_source(pitchf, source_noise, self.config.samples_per_frame, linear.weight, linear.bias)
        return source.to(self.emb_g.weight.device)

    @torch.inference_mode()
    def stages(
        self,
        phone: Tensor,
        pitch: Tensor | None,
        pitchf: Tensor | None,
        speaker: int,
        prior_noise: Tensor,
        source_noise: Tensor | None,
    ) -> dict[str, Tensor]:
        """Every intermediate of `infer`: m_p, logs_p, z_p, z (1, inter, T) and audio (1, 1, T * upp)."""
        g = self.speaker_embedding(speaker)
        m_p, logs_p = self.enc_p(phone, pitch if self.has_f0 else None)
        z_p = sample_prior(m_p, logs_p, prior_noise)
        z = self.flow(z_p, g)
        source = None
        if self.has_f0:
            if pitch is None or pitchf is None or source_noise is None:
                raise ValueError("this voice follows pitch: pitch, pitchf and source_noise are needed")
            source = self.harmonic_source(pitchf, source_noise)
        return {"m_p": m_p, "logs_p": logs_p, "z_p": z_p, "z": z, "audio": self.dec(z, g, source)}

    def infer(
        self,
        phone: Tensor,
        pitch: Tensor | None,
        pitchf: Tensor | None,
        speaker: int,
        prior_noise: Tensor,
        source_noise: Tensor | None,
    ) -> Tensor:
        """Audio (1, 1, T * upp) in tanh range.

        phone float (1, T, 768 or 256); pitch int64 (1, T) with 1..255 and pitchf Hz (1, T), or None for a voice
        without f0; prior_noise standard normal (1, inter, T); source_noise standard normal (1, T * upp, 1) or None.
        Raises IndexError for an unknown speaker and ValueError where an f0 voice gets no pitch.
        """
        return self.stages(phone, pitch, pitchf, speaker, prior_noise, source_noise)["audio"]


def speaker_row(table: Tensor, speaker: int) -> Tensor:
    """(speakers, gin) -> (1, gin, 1). Raises IndexError outside the table."""
    if not 0 <= speaker < table.shape[0]:
        raise IndexError(f"speaker {speaker} is not among this voice's {table.shape[0]} (0 is the first)")
    return table[speaker].reshape(1, -1, 1)


def sample_prior(m_p: Tensor, logs_p: Tensor, noise: Tensor) -> Tensor:
    """The prior sample z_p = m_p + exp(logs_p) * noise * 0.66666, all (1, inter, T)."""
    return m_p + torch.exp(logs_p) * noise * PRIOR_SCALE
