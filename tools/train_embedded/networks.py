"""The project's synthesizer made trainable: weight norm, batches, the flow's forward direction, a decoder that keeps float32 last.

The classes of `rvc_coreml.models` run one clip at a time and only towards audio; what training needs beyond that is here, over
the same parameters, so that what is trained is what conversion runs.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from rvc_coreml.models.config import FRAMES_PER_SECOND, PHONE_CHANNELS, VoiceConfig
from rvc_coreml.models.flow import ResidualCouplingBlock, ResidualCouplingLayer, WaveNet
from rvc_coreml.models.generator import LAST_LEAKY_SLOPE, LEAKY_SLOPE, GeneratorNSF
from rvc_coreml.models.source import SINE_AMPLITUDE, UNVOICED_NOISE, VOICED_NOISE
from rvc_coreml.models.synthesizer import Synthesizer
from rvc_coreml.models.text_encoder import MASKED_SCORE, MultiHeadAttention, TextEncoder, gather_band, spread_band
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

VERSION = "v1"
VOICE_CONFIG: list[Any] = [
    *(513, 32, 128, 128, 512, 2, 6, 3, 0, "1"),
    [3, 7, 11],
    [[1, 3, 5]] * 3,
    [10, 8, 2, 2],
    256,
    [20, 16, 4, 4],
    *(1, 128, 32000),
]  # 9.4 million parameters, below 20 MB in half precision
TINY_CONFIG: list[Any] = [
    *(513, 32, 8, 8, 16, 2, 1, 3, 0, "1"),
    [3],
    [[1, 3, 5]],
    [10, 8, 2, 2],
    32,
    [20, 16, 4, 4],
    *(1, 8, 32000),
]  # for tests and first tries on a CPU
NARROW_CONFIG: list[Any] = [
    *(513, 32, 64, 64, 256, 2, 3, 3, 0, "1"),
    [3, 7],
    [[1, 3, 5]] * 2,
    [10, 8, 2, 2],
    128,
    [20, 16, 4, 4],
    *(1, 64, 32000),
]  # for longer tries on a CPU
CONFIGS = {"full": VOICE_CONFIG, "narrow": NARROW_CONFIG, "tiny": TINY_CONFIG}
FULL_PRECISION_LEVELS = 1  # of the decoder, its last: audio out of bfloat16 has a noise floor that training would learn around


class TrainedGenerator(GeneratorNSF):
    """GeneratorNSF whose last level and output stay in float32 under autocast."""

    def forward(self, z: Tensor, g: Tensor, source: Tensor | None, mask: Tensor | None = None, piece: int | None = None) -> Tensor:
        """z (B, inter, T), g (B, gin, 1), source (B, 1, T * upp) -> float32 audio (B, 1, T * upp); no mask and no pieces."""
        if mask is not None or piece is not None:
            raise ValueError("the decoder is trained on whole segments")
        x = self.conv_pre(z) + self.cond(g)
        last = len(self.rates) - FULL_PRECISION_LEVELS
        for index in range(last):
            x = self._level(index, F.leaky_relu(x, LEAKY_SLOPE), source, None)
        with torch.autocast(z.device.type, enabled=False):
            x = x.float()
            for index in range(last, len(self.rates)):
                x = self._level(index, F.leaky_relu(x, LEAKY_SLOPE), source, None)
            return torch.tanh(self.conv_post(F.leaky_relu(x, LAST_LEAKY_SLOPE)))


class TrainedFlow(ResidualCouplingBlock):
    """The flow in both directions: `forward` is the project's, prior to latent; `to_prior` undoes it."""

    def to_prior(self, z: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        """z (B, C, T) -> z_p (B, C, T); couple, then flip, from the first layer to the last."""
        for layer in self.flows:
            if isinstance(layer, ResidualCouplingLayer):
                kept, moved = z[:, : layer.kept_channels], z[:, layer.kept_channels :]
                shift = layer.post(layer.enc(layer.pre(kept) * mask, g, mask))
                z = torch.cat([kept, (moved + shift) * mask], dim=1)
            else:
                z = layer(z, g, mask)
        return z


class TrainedSynthesizer(Synthesizer):
    """A v1 voice with f0 in training: names of the parameters are upstream's, but for weight norm (see `export_state`)."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__(config, PHONE_CHANNELS[VERSION], True)
        self.flow = TrainedFlow(config.inter_channels, config.hidden_channels, config.gin_channels)
        self.dec = TrainedGenerator(config, True)
        self._initialise()
        for convolution in self._normed():
            weight_norm(convolution)

    def _initialise(self) -> None:
        """Levels that keep their input's size, couplings that start as identity, a source that is heard from the first step."""
        for up, rate in zip(self.dec.ups, self.dec.rates, strict=True):
            up = cast(nn.ConvTranspose1d, up)
            nn.init.normal_(up.weight, std=(rate / (up.in_channels * up.kernel_size[0])) ** 0.5)
        for layer in self.flow.flows:
            if isinstance(layer, ResidualCouplingLayer):
                nn.init.zeros_(layer.post.weight)
                nn.init.zeros_(cast(Tensor, layer.post.bias))
        nn.init.ones_(self.dec.m_source.l_linear.weight)
        nn.init.zeros_(self.dec.m_source.l_linear.bias)
        for attention in self.enc_p.encoder.attn_layers:
            attention = cast(MultiHeadAttention, attention)
            for table in (attention.emb_rel_k, attention.emb_rel_v):
                nn.init.normal_(table, std=attention.head_channels**-0.5)
            for projection in (attention.conv_q, attention.conv_k, attention.conv_v):
                nn.init.xavier_uniform_(projection.weight)

    def _normed(self) -> list[nn.Module]:
        """The convolutions to which upstream gives weight norm."""
        found: list[nn.Module] = list(self.dec.ups)
        found += [module for block in self.dec.resblocks for module in block.modules() if isinstance(module, nn.Conv1d)]
        for layer in self.flow.flows:
            if isinstance(layer, ResidualCouplingLayer):
                wavenet: WaveNet = layer.enc
                found += [wavenet.cond_layer, *wavenet.in_layers, *wavenet.res_skip_layers]
        return found

    def speaker(self, batch: int) -> Tensor:
        """g (B, gin, 1) of the only speaker."""
        return self.emb_g.weight[0].reshape(1, -1, 1).expand(batch, -1, -1)

    def prior(self, phone: Tensor, pitch: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """phone (B, T, 256), coarse pitch int (B, T), mask (B, 1, T) -> float32 m_p and logs_p (B, inter, T)."""
        return encode_batch(self.enc_p, phone, pitch, mask)

    def excitation(self, pitchf: Tensor) -> Tensor:
        """pitchf (B, T) Hz -> the source (B, 1, T * upp) with fresh noise and a fresh phase, as a stretch of a longer clip has."""
        noise = torch.randn(pitchf.shape[0], pitchf.shape[1] * self.config.samples_per_frame, device=pitchf.device)
        linear = self.dec.m_source.l_linear
        phase = torch.rand(pitchf.shape[0], 1, dtype=torch.float64, device=pitchf.device)
        return batched_source(pitchf, noise, self.config.samples_per_frame, linear.weight, linear.bias, phase)


def batched_source(pitchf: Tensor, noise: Tensor, samples_per_frame: int, weight: Tensor, bias: Tensor, phase: Tensor) -> Tensor:
    """`models.source.harmonic_source` for a batch, differentiable in weight and bias: float32 (B, 1, T * samples_per_frame).

    pitchf (B, T) Hz, noise (B, T * samples_per_frame), phase (B, 1) in cycles, float64, at the first frame.
    """
    pitch = pitchf.double()
    cycles = torch.frac(pitch / FRAMES_PER_SECOND)
    phases = torch.frac(phase + torch.cumsum(cycles, dim=1) - cycles).unsqueeze(-1)
    steps = torch.arange(1, samples_per_frame + 1, dtype=torch.float64, device=pitchf.device) / (samples_per_frame * FRAMES_PER_SECOND)
    within = torch.frac(phases + pitch.unsqueeze(-1) * steps).float()
    voiced = (pitchf > 0).float().unsqueeze(-1)
    level = voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE
    excitation = SINE_AMPLITUDE * torch.sin(2 * math.pi * within) * voiced + level * noise.reshape(within.shape)
    return torch.tanh(weight.reshape(()) * excitation + bias.reshape(())).reshape(pitchf.shape[0], 1, -1)


def encode_batch(encoder: TextEncoder, phone: Tensor, pitch: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """TextEncoder.forward for a batch: phone (B, T, D), pitch (B, T), mask (B, 1, T) -> float32 m_p, logs_p (B, inter, T)."""
    x = encoder.emb_phone(phone) + encoder.emb_pitch(pitch)
    x = F.leaky_relu(x * encoder.scale, LEAKY_SLOPE).transpose(1, 2) * mask
    key_bias = (1.0 - mask) * MASKED_SCORE
    parts = encoder.encoder
    for attention, norm_1, feed_forward, norm_2 in zip(
        parts.attn_layers, parts.norm_layers_1, parts.ffn_layers, parts.norm_layers_2, strict=True
    ):
        x = norm_1(x + attend(cast(MultiHeadAttention, attention), x, key_bias))
        x = norm_2(x + feed_forward(x, mask))
    stats = (encoder.proj(x * mask) * mask).float()
    return stats[:, : encoder.inter], stats[:, encoder.inter :]


def attend(attention: MultiHeadAttention, x: Tensor, key_bias: Tensor) -> Tensor:
    """MultiHeadAttention.forward for a batch, its heads laid beside each other: x (B, C, T), key_bias (B, 1, T) -> (B, C, T)."""
    batch, channels, frames = x.shape
    rows, width = batch * attention.heads, attention.head_channels
    query = (attention.conv_q(x) / math.sqrt(width)).reshape(rows, width, frames).transpose(1, 2)
    key = attention.conv_k(x).reshape(rows, width, frames)
    value = attention.conv_v(x).reshape(rows, width, frames).transpose(1, 2)
    scores = torch.matmul(query, key) + spread_band(torch.matmul(query, attention.emb_rel_k.transpose(1, 2)), rows, frames)
    weights = torch.softmax(scores + key_bias.repeat_interleave(attention.heads, dim=0), dim=-1)
    out = torch.matmul(weights, value) + torch.matmul(gather_band(weights, rows, frames).to(value.dtype), attention.emb_rel_v)
    return attention.conv_o(out.transpose(1, 2).reshape(batch, channels, frames))


def export_state(synthesizer: nn.Module) -> dict[str, Tensor]:
    """Half precision tensors under the names of voice files: `weight_g` and `weight_v` where there is weight norm."""
    renamed = {}
    for name, tensor in synthesizer.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")
        renamed[name] = tensor.detach().cpu().half().contiguous()
    return renamed
