"""The text encoder in the Neural Engine's layout: (1, C, 1, T) throughout, attention as (1, heads, C / heads, T).

Relative positions reach RELATIVE_WINDOW frames to either side, so that within the band j mod OFFSETS tells which of the
OFFSETS positions a key j has, seen from the query i. The scores of the positions (OFFSETS, T) are therefore turned by i mod
OFFSETS, spread over all keys by their residue, and cut to the band; the values go the same way backwards. All of it is
products with constants of 0 and 1: no gather, no transpose, no slice of the last axis, and no axis beyond the window.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrangement import Arranged, Arrangement, cut, permute, reshape
from ..stages import Stage, TensorSpec, TextEncoderStage
from ..synthesizer import Synthesizer
from ..text_encoder import LEAKY_SLOPE, MASKED_SCORE, NORM_EPS, RELATIVE_WINDOW, ChannelLayerNorm, Encoder, FeedForward, MultiHeadAttention
from .layers import Conv, Origins, conv1x1, conv_row, parameter, sources_of
from .residual_norm import ResidualNorm

OFFSETS = 2 * RELATIVE_WINDOW + 1
# Frames of 10 ms: 43.5 s, a segment of up to 41 s with its pads, the longest that RVC-WebUI gives the encoder at once; attention is
# global, and nothing less gives what it gives (docs/windows.md). Rows of 32 are 64 bytes (D14), of 256 whole tiles.
WINDOW = 4352
MAX_WINDOW = 8192  # frames: FAR_FRAME is far from all of them
LOW_FRAMES = 64  # frames are counted in multiples of it and a rest, whose differences half precision tells exactly where they are small
FAR_FRAME = 1e4  # where a key that is not valid lies
PRIOR = "prior"  # the package's output: mean above log deviation


class Turned(nn.Module):
    """Scores of relative positions (1, heads, OFFSETS, T) -> by residue of the key, the same shape: each query's turned by its own.

    Buffers of 0 and 1: `repeat` (OFFSETS * OFFSETS, OFFSETS) gives every position once for every turn, `turn`
    (OFFSETS * OFFSETS, T) keeps the turn that a query has, `collect` (OFFSETS, OFFSETS * OFFSETS) adds up what lands on a residue.
    """

    repeat: Tensor
    turn: Tensor
    collect: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        places, residues = torch.arange(OFFSETS), torch.arange(window) % OFFSETS
        turns, positions = places.repeat_interleave(OFFSETS), places.repeat(OFFSETS)
        self.register_buffer("repeat", _image(positions[:, None] == places), persistent=False)
        self.register_buffer("turn", _image(turns[:, None] == residues), persistent=False)
        landed = (turns + positions - RELATIVE_WINDOW) % OFFSETS
        self.register_buffer("collect", _image(places[:, None] == landed), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        return torch.matmul(self.collect, torch.matmul(self.repeat, positions) * self.turn)


class TurnedBack(Turned):
    """The inverse reading."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.matmul(self.repeat.transpose(2, 3), torch.matmul(self.collect.transpose(2, 3), positions) * self.turn)


class Spread(nn.Module):
    """(1, 1, OFFSETS, T queries) by residue and the band -> (1, 1, T queries, T keys), zero outside the band.

    Buffer: `residues` (OFFSETS, T) is 1 where a key has the residue.
    """

    residues: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.register_buffer("residues", _image(torch.arange(OFFSETS)[:, None] == torch.arange(window) % OFFSETS), persistent=False)

    def forward(self, values: Tensor, band: Tensor) -> Tensor:
        return torch.matmul(values.transpose(2, 3), self.residues) * band


class Gathered(Spread):
    """The inverse reading: (1, 1, T queries, T keys) -> (1, 1, OFFSETS, T queries)."""

    def forward(self, values: Tensor, band: Tensor) -> Tensor:
        return torch.matmul(self.residues, (values * band).transpose(2, 3))


class Band(nn.Module):
    """mask (1, 1, 1, T) -> (1, 1, T queries, T keys): 1 where a valid key is within RELATIVE_WINDOW frames, else 0.

    Made from the mask and not kept, since a constant of that size would be read from memory whenever it is used. Frames count
    from the middle, as a multiple of LOW_FRAMES and a rest: half precision tells whole numbers apart up to 2048, and a
    difference beyond that is out of the band whatever it is rounded to.
    """

    queries_high: Tensor
    queries_low: Tensor
    keys_high: Tensor
    keys_low: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        frames = torch.arange(window) - window // 2
        low = frames % LOW_FRAMES
        for name, values in (("high", frames - low), ("low", low)):
            self.register_buffer(f"queries_{name}", values.float().reshape(1, 1, -1, 1), persistent=False)
            self.register_buffer(f"keys_{name}", values.float().reshape(1, 1, 1, -1), persistent=False)

    def forward(self, mask: Tensor) -> Tensor:
        far = self.keys_high * mask + (1.0 - mask) * FAR_FRAME
        distance = self.queries_high - far + self.queries_low - self.keys_low  # in this order: coremltools would fold a pair of constants
        return torch.clamp(RELATIVE_WINDOW + 1 - distance.abs(), 0.0, 1.0)


class RelativePositions(nn.Module):
    """What all layers share."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.turned, self.turned_back = Turned(window), TurnedBack(window)
        self.spread, self.gathered = Spread(window), Gathered(window)


class RelativeAttention(nn.Module):
    """Self-attention over (1, C, 1, T) with learned relative positions, head by head, so that one head's scores are all there is."""

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self.heads, self.head_channels = attention.heads, attention.head_channels
        self.conv_q, self.conv_k = conv1x1(attention.conv_q), conv1x1(attention.conv_k)
        self.conv_v, self.conv_o = conv1x1(attention.conv_v), conv1x1(attention.conv_o)
        self.emb_rel_k = parameter(attention.emb_rel_k[None])
        self.emb_rel_v = parameter(attention.emb_rel_v[None])
        self.origins: Origins = {"emb_rel_k": (attention.emb_rel_k,), "emb_rel_v": (attention.emb_rel_v,)}

    def forward(self, x: Tensor, key_bias: Tensor, band: Tensor, relative: RelativePositions) -> Tensor:
        """x (1, C, 1, T), key_bias (1, 1, 1, T) added to every score of a key, band (1, 1, T, T) -> (1, C, 1, T)."""
        query = self._heads(self.conv_q(x) * (1 / math.sqrt(self.head_channels)))
        turned = relative.turned(torch.matmul(self.emb_rel_k, query))
        found, near = [], []
        parts = query, self._heads(self.conv_k(x)), self._heads(self.conv_v(x)), turned
        for one_query, key, value, one_turned in zip(*(torch.split(part, 1, dim=1) for part in parts), strict=True):
            scores = torch.matmul(one_query.transpose(2, 3), key) + relative.spread(one_turned, band) + key_bias
            weights = torch.softmax(scores, dim=-1)
            found.append(torch.matmul(value, weights.transpose(2, 3)))
            near.append(relative.gathered(weights, band))
        positions = relative.turned_back(torch.cat(near, dim=1))
        out = torch.cat(found, dim=1) + torch.matmul(self.emb_rel_v.transpose(2, 3), positions)
        return self.conv_o(out.reshape(x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        """(1, C, 1, T) -> (1, heads, C / heads, T)."""
        return x.reshape(1, self.heads, self.head_channels, x.shape[3])


class RowFeedForward(nn.Module):
    """Two convolutions over (1, C, 1, T), each seeing zeros beyond the clip."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        before, after = layer.padding
        self.more = (0, after - before) if after != before else None
        self.conv_1, self.conv_2 = _padded(layer.conv_1, before), _padded(layer.conv_2, before)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = torch.relu(self.conv_1(self._ended(x * mask)))
        return self.conv_2(self._ended(x * mask)) * mask

    def _ended(self, x: Tensor) -> Tensor:
        """With the zero more that an even kernel sees behind the clip."""
        return x if self.more is None else F.pad(x, self.more)


def _norm(layer: nn.Module) -> ResidualNorm:
    norm = cast(ChannelLayerNorm, layer)
    return ResidualNorm(norm.gamma, norm.beta, NORM_EPS)


def _padded(layer: nn.Conv1d, before: int) -> Conv:
    """As a convolution along the last axis that pads on both sides."""
    row = conv_row(layer)
    row.padding = (0, before)
    return row


class RelativeEncoder(nn.Module):
    """Post-norm transformer layers over (1, C, 1, T)."""

    def __init__(self, encoder: Encoder, window: int) -> None:
        super().__init__()
        self.band, self.relative = Band(window), RelativePositions(window)
        self.attn_layers = nn.ModuleList(RelativeAttention(cast(MultiHeadAttention, layer)) for layer in encoder.attn_layers)
        self.norm_layers_1 = nn.ModuleList(_norm(norm) for norm in encoder.norm_layers_1)
        self.ffn_layers = nn.ModuleList(RowFeedForward(cast(FeedForward, layer)) for layer in encoder.ffn_layers)
        self.norm_layers_2 = nn.ModuleList(_norm(norm) for norm in encoder.norm_layers_2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        key_bias, band = (1.0 - mask) * MASKED_SCORE, self.band(mask)
        layers = zip(self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True)
        for attention, norm_1, feed_forward, norm_2 in layers:
            x = norm_1(x, attention(x, key_bias, band, self.relative))
            x = norm_2(x, feed_forward(x, mask))
        return x


class AneTextEncoderStage(Stage):
    """`TextEncoderStage` for the Neural Engine; the package gives mean and log deviation one above the other, (1, 2 * inter, 1, T)."""

    name = TextEncoderStage.name
    description = TextEncoderStage.description
    host_entries = TextEncoderStage.host_entries
    layout = "ane"

    def __init__(self, synthesizer: Synthesizer, window: int) -> None:
        """Raises ValueError for a window beyond MAX_WINDOW."""
        if window > MAX_WINDOW:
            raise ValueError(f"a window of {window} frames is beyond {MAX_WINDOW}")
        plain = TextEncoderStage(synthesizer, window)
        super().__init__(window, plain.context)
        network, config = synthesizer.enc_p, synthesizer.config
        self.has_f0, self.scale = plain.has_f0, network.scale
        self.inputs, self.outputs = plain.inputs, plain.outputs
        self.emb_phone = conv1x1(network.emb_phone)
        self.encoder = RelativeEncoder(network.encoder, window)
        self.proj = conv1x1(network.proj)
        self._sources = sources_of(self, plain)
        inter = config.inter_channels
        self.arrangement = Arrangement(
            inputs=tuple(_as_image(spec) for spec in self.inputs),
            outputs=tuple(
                Arranged(name, PRIOR, (1, inter, window), steps=(cut(1, start, start + inter), reshape(1, inter, window)))
                for name, start in (("m_p", 0), ("logs_p", inter))
            ),
        )

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Own parameter -> the plain stage's parameters that it is made of."""
        return dict(self._sources)

    def forward(self, phone: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """phone (1, D, 1, T), the pitch embedding (1, hidden, 1, T) of a voice with f0, mask (1, 1, 1, T)."""
        mask = rest[-1]
        x = self.emb_phone(phone)
        if self.has_f0:
            x = x + rest[0]
        x = F.leaky_relu(x * self.scale, LEAKY_SLOPE) * mask
        return (self.proj(self.encoder(x, mask)) * mask,)


def _image(values: Tensor) -> Tensor:
    """(H, W) as float (1, 1, H, W)."""
    return values.float()[None, None]


def _as_image(spec: TensorSpec) -> Arranged:
    """A tensor (1, T, C), or (1, C, T), as (1, C, 1, T) with its own name."""
    shape, turned = spec.shape, spec.time_axis == 1
    channels, length = (shape[2], shape[1]) if turned else (shape[1], shape[2])
    moved = (permute(0, 2, 1),) if turned else ()
    return Arranged(spec.name, spec.name, (1, channels, 1, length), spec.description, (*moved, reshape(1, channels, 1, length)))
