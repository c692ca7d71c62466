"""HuBERT-base / ContentVec: 16 kHz waveform to 50 Hz content features.

RVC's `hubert_base.pt` is ContentVec (500-class, legacy); the architecture is HuBERT-base's and so is this module, with
fairseq's part names. Smaller encoders of the same architecture load too: `HubertConfig` describes the shape.
The first layer's GroupNorm spans the whole clip, so a window of a clip takes its statistics as inputs
(`with_statistics`); `models.host` computes them from the waveform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 16000
V1_LAYER = 9  # RVC-WebUI: v1 voices read the output of layer 9 through final_proj
MASKED_SCORE = -1e4  # finite, so that half precision keeps it


@dataclass(frozen=True)
class HubertConfig:
    """Shape of the encoder; the defaults are HuBERT-base."""

    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    projection: int | None = 256
    eps: float = 1e-5

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HubertConfig:
        """From the fields as JSON keeps them. Raises TypeError for unknown ones."""
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**fields)

    @property
    def stride(self) -> int:
        """Samples from one frame to the next (320 for HuBERT-base)."""
        product = 1
        for stride in self.conv_strides:
            product *= stride
        return product

    @property
    def receptive_field(self) -> int:
        """Samples that the first frame needs (400 for HuBERT-base)."""
        field = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            field = (field - 1) * stride + kernel
        return field

    @property
    def v1_layer(self) -> int:
        """Layer whose projection v1 voices read: the ninth, or the last of a shallower encoder."""
        return min(V1_LAYER, self.layers)

    def frames(self, samples: int) -> int:
        """Frames for a waveform of that many samples; 0 where it is shorter than the receptive field."""
        return max(0, (samples - self.receptive_field) // self.stride + 1)

    def samples(self, frames: int) -> int:
        """Fewest samples that give that many frames."""
        return (frames - 1) * self.stride + self.receptive_field


class ConvLayer(nn.Sequential):
    """fairseq's numbering: the convolution is entry 0 and a norm, where there is one, entry 2."""

    def __init__(self, conv: nn.Conv1d, norm: nn.GroupNorm | None) -> None:
        super().__init__()
        self.add_module("0", conv)
        if norm is not None:
            self.add_module("2", norm)

    @property
    def conv(self) -> nn.Conv1d:
        return cast(nn.Conv1d, self.get_submodule("0"))

    @property
    def norm(self) -> nn.GroupNorm:
        return cast(nn.GroupNorm, self.get_submodule("2"))


class ConvFeatureExtractor(nn.Module):
    """Seven strided convolutions without bias; the first is followed by a GroupNorm over time."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_layers = nn.ModuleList()
        channels = 1
        for index, out in enumerate(config.conv_channels):
            conv = nn.Conv1d(channels, out, config.conv_kernels[index], config.conv_strides[index], bias=False)
            self.conv_layers.append(ConvLayer(conv, nn.GroupNorm(out, out, eps=config.eps) if index == 0 else None))
            channels = out

    def forward(self, waveform: Tensor) -> Tensor:
        """(1, N) -> (1, C, F), the norm's statistics taken over the whole waveform."""
        first = self.first
        return self._rest(first.norm(first.conv(waveform.unsqueeze(1))))

    def with_statistics(self, waveform: Tensor, scale: Tensor, shift: Tensor, piece: int | None = None) -> Tensor:
        """The same with the norm given as `host.WaveformNorm` makes it: scale and shift (1, C, 1).

        `piece` frames are computed at a time, which changes nothing: no convolution here is padded.
        """
        frames = self.config.frames(int(waveform.shape[1]))
        if piece is None or frames <= piece:
            return self._rest(self.first.conv(waveform.unsqueeze(1)) * scale + shift)
        stride, parts = self.config.stride, []
        for start in range(0, frames, piece):
            samples = self.config.samples(min(piece, frames - start))
            parts.append(self.with_statistics(waveform[:, start * stride : start * stride + samples], scale, shift))
        return torch.cat(parts, dim=2)

    @property
    def first(self) -> ConvLayer:
        """The layer with the norm."""
        return cast(ConvLayer, self.conv_layers[0])

    def _rest(self, x: Tensor) -> Tensor:
        x = F.gelu(x)
        for layer in list(self.conv_layers)[1:]:
            x = F.gelu(layer.get_submodule("0")(x))
        return x


class SelfAttention(nn.Module):
    """(B, F, hidden) -> (B, F, hidden): one clip to convert, a batch to train on."""

    fused = True  # without a mask, scores are never held as a whole; benchmarks turn it off to measure what it gains

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, hidden // heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """key_bias (1, 1, 1, F) is added to every score of a key."""
        batch, frames = int(x.shape[0]), int(x.shape[1])
        query = self._split(self.q_proj(x) * (1.0 / self.width**0.5), frames)
        key, value = self._split(self.k_proj(x), frames), self._split(self.v_proj(x), frames)
        if key_bias is None and self.fused:
            out = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:  # written out, so that packages keep operations that every target has
            scores = torch.matmul(query, key.transpose(2, 3))
            if key_bias is not None:
                scores = scores + key_bias
            out = torch.matmul(torch.softmax(scores, dim=-1), value)
        return self.out_proj(out.transpose(1, 2).reshape(batch, frames, self.heads * self.width))

    def _split(self, x: Tensor, frames: int) -> Tensor:
        """(B, F, hidden) -> (B, heads, F, width)."""
        return x.reshape(int(x.shape[0]), frames, self.heads, self.width).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Post-norm layer over (1, F, hidden)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.hidden, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.fc1 = nn.Linear(config.hidden, config.feed_forward)
        self.fc2 = nn.Linear(config.feed_forward, config.hidden)
        self.final_layer_norm = nn.LayerNorm(config.hidden, eps=config.eps)

    def forward(self, x: Tensor, key_bias: Tensor | None = None) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, key_bias))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class TransformerEncoder(nn.Module):
    """Positional convolution, LayerNorm, then the layers."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        kernel = config.position_kernel
        conv = nn.Conv1d(config.hidden, config.hidden, kernel, padding=kernel // 2, groups=config.position_groups)
        self.pos_conv = nn.ModuleList([conv])
        self.layer_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, upto: tuple[int, ...], frame_mask: Tensor | None = None) -> list[Tensor]:
        """x (1, F, hidden) -> the outputs after each layer count in `upto`; frame_mask (1, F, 1) is 1 where valid."""
        frames = int(x.shape[1])
        key_bias = None
        if frame_mask is not None:
            x = x * frame_mask
            key_bias = ((1.0 - frame_mask) * MASKED_SCORE).reshape(1, 1, 1, frames)
        position = self.pos_conv[0](x.transpose(1, 2))[:, :, :frames]  # an even kernel gives one frame too many
        x = self.layer_norm(x + F.gelu(position).transpose(1, 2))
        outputs = {0: x}
        for index, layer in enumerate(list(self.layers)[: max(upto)]):
            x = layer(x, key_bias)
            outputs[index + 1] = x
        return [outputs[count] for count in upto]


class Hubert(nn.Module):
    """The content encoder. `features` is the whole job; the other methods are its parts."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = ConvFeatureExtractor(config)
        self.layer_norm = nn.LayerNorm(config.conv_channels[-1], eps=config.eps)
        self.post_extract_proj = nn.Linear(config.conv_channels[-1], config.hidden)
        self.encoder = TransformerEncoder(config)
        if config.projection is not None:
            self.final_proj = nn.Linear(config.hidden, config.projection)

    @property
    def versions(self) -> tuple[str, ...]:
        """Voice versions this encoder can feed: v1 needs `final_proj`."""
        return ("v1", "v2") if self.config.projection is not None else ("v2",)

    @torch.inference_mode()
    def features(self, waveform: Tensor, version: str = "v2") -> Tensor:
        """float32 (1, samples) at 16 kHz -> (1, frames, 768) for v2, (1, frames, 256) for v1.

        Raises ValueError for another shape, an unknown version, a v1 request without `final_proj`, or a waveform
        shorter than one frame.
        """
        if waveform.ndim != 2 or waveform.shape[0] != 1:
            raise ValueError(f"waveform must be (1, samples), not {tuple(waveform.shape)}")
        if version not in self.versions:
            raise ValueError(f"version {version!r} is not available from this encoder, which offers {', '.join(self.versions)}")
        if waveform.shape[1] < self.config.receptive_field:
            raise ValueError(f"waveform has {waveform.shape[1]} samples, fewer than the {self.config.receptive_field} of one frame")
        return self.encode(self.project(self.feature_extractor(waveform)), version)

    def encode(self, x: Tensor, version: str) -> Tensor:
        """Projected frames (1, F, hidden) -> the features of a version, running no layer beyond the one it reads."""
        if version == "v1":
            return self.final_proj(self.encoder(x, (self.config.v1_layer,))[0])
        return self.encoder(x, (self.config.layers,))[0]

    def project(self, x: Tensor) -> Tensor:
        """Convolution output (1, C, F) -> (1, F, hidden)."""
        return self.post_extract_proj(self.layer_norm(x.transpose(1, 2)))
