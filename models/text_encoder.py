"""`enc_p`: content features and coarse pitch to the mean and log-deviation of the prior.

Upstream's TextEncoder in the closed form of its relative-position attention. Part names and shapes are those of
the checkpoint (`enc_p.encoder.attn_layers.0.conv_q` ...). Time comes last unless a shape says otherwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RELATIVE_WINDOW = 10  # frames on either side that have a relative position of their own (upstream window_size)
PITCH_BINS = 256  # coarse pitch runs from 1 to 255
LEAKY_SLOPE = 0.1
MASKED_SCORE = -1e4  # upstream's fill value; finite, so that half precision keeps it
NORM_EPS = 1e-5
WHOLE_FRAMES = 1024  # clips up to here, all packages among them, hold their scores as one square
QUERY_BLOCK = 256  # queries at a time beyond: their scores stay in a core's cache
DEVICE_QUERY_BLOCK = 2048  # the same on a GPU, which wants few and large operations


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of (1, C, T), with upstream's parameter names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.transpose(1, 2), (self.channels,), self.gamma, self.beta, NORM_EPS)
        return x.transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """Self-attention over (1, C, T) with learned relative positions up to RELATIVE_WINDOW frames."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_channels = channels // heads
        size = 2 * RELATIVE_WINDOW + 1
        self.emb_rel_k = nn.Parameter(torch.zeros(1, size, self.head_channels))
        self.emb_rel_v = nn.Parameter(torch.zeros(1, size, self.head_channels))
        self.conv_q = nn.Conv1d(channels, channels, 1)
        self.conv_k = nn.Conv1d(channels, channels, 1)
        self.conv_v = nn.Conv1d(channels, channels, 1)
        self.conv_o = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """x (1, C, T), key_bias (1, 1, T) added to every score of a key -> (1, C, T)."""
        frames = int(x.shape[-1])
        query = self._split(self.conv_q(x) / math.sqrt(self.head_channels), frames)
        key = self._split(self.conv_k(x), frames)
        value = self._split(self.conv_v(x), frames)
        if frames <= WHOLE_FRAMES:
            scores = torch.matmul(query, key.transpose(1, 2))
            scores = scores + spread_band(torch.matmul(query, self.emb_rel_k.transpose(1, 2)), self.heads, frames)
            if key_bias is not None:
                scores = scores + key_bias
            weights = torch.softmax(scores, dim=-1)
            out = torch.matmul(weights, value) + torch.matmul(gather_band(weights, self.heads, frames), self.emb_rel_v)
        else:
            rows = QUERY_BLOCK if x.device.type == "cpu" else DEVICE_QUERY_BLOCK
            parts = [self._rows(query[:, start : start + rows], start, key, value, key_bias) for start in range(0, frames, rows)]
            out = torch.cat(parts, dim=1)
        out = out.transpose(1, 2).reshape(1, self.heads * self.head_channels, frames)
        return self.conv_o(out)

    def _rows(self, query: Tensor, start: int, key: Tensor, value: Tensor, key_bias: Tensor | None) -> Tensor:
        """The queries from `start` on, (heads, rows, width), against all keys: the same sums without the whole square in memory."""
        rows, frames = query.shape[1], key.shape[1]
        low, high = max(0, start - RELATIVE_WINDOW), min(frames, start + rows + RELATIVE_WINDOW)
        left, right = low - (start - RELATIVE_WINDOW), start + rows + RELATIVE_WINDOW - high
        scores = torch.matmul(query, key.transpose(1, 2))
        band = _shear(torch.matmul(query, self.emb_rel_k.transpose(1, 2)), self.heads, rows)
        scores[:, :, low:high] += band[:, :, left : band.shape[2] - right]
        if key_bias is not None:
            scores = scores + key_bias
        weights = torch.softmax(scores, dim=-1)
        near = _unshear(F.pad(weights[:, :, low:high], (left, right)), self.heads, rows)
        return torch.matmul(weights, value) + torch.matmul(near, self.emb_rel_v)

    def _split(self, x: Tensor, frames: int) -> Tensor:
        """(1, C, T) -> (heads, T, C / heads)."""
        return x.reshape(self.heads, self.head_channels, frames).transpose(1, 2)


def spread_band(band: Tensor, heads: int, frames: int) -> Tensor:
    """(heads, T, 21), one row of relative offsets for each query -> (heads, T, T), zero outside the band."""
    return _shear(band, heads, frames)[:, :, RELATIVE_WINDOW : RELATIVE_WINDOW + frames]


def gather_band(square: Tensor, heads: int, frames: int) -> Tensor:
    """The inverse reading: (heads, T, T) -> (heads, T, 21) around the diagonal, zero beyond the edges."""
    return _unshear(F.pad(square, (RELATIVE_WINDOW, RELATIVE_WINDOW)), heads, frames)


def _shear(band: Tensor, heads: int, rows: int) -> Tensor:
    """(heads, rows, 21) -> (heads, rows, rows + 20): entry r of row i lands on column i + r.

    Padding every row and re-reading the flat buffer with rows one shorter shifts row i by i.
    """
    width = rows + 2 * RELATIVE_WINDOW
    flat = F.pad(band, (0, rows)).reshape(heads, rows * (width + 1))
    return flat[:, : rows * width].reshape(heads, rows, width)


def _unshear(square: Tensor, heads: int, rows: int) -> Tensor:
    """The inverse reading: (heads, rows, rows + 20) -> (heads, rows, 21)."""
    width = rows + 2 * RELATIVE_WINDOW
    flat = square.reshape(heads, rows * width)
    return F.pad(flat, (0, rows)).reshape(heads, rows, width + 1)[:, :, : 2 * RELATIVE_WINDOW + 1]


class FeedForward(nn.Module):
    """Two convolutions over (1, C, T), each seeing zeros beyond the clip."""

    def __init__(self, channels: int, filter_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.padding = ((kernel_size - 1) // 2, kernel_size // 2)
        self.conv_1 = nn.Conv1d(channels, filter_channels, kernel_size)
        self.conv_2 = nn.Conv1d(filter_channels, channels, kernel_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = torch.relu(self.conv_1(F.pad(masked(x, mask), self.padding)))
        return masked(self.conv_2(F.pad(masked(x, mask), self.padding)), mask)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x times mask, or x where everything is valid."""
    return x if mask is None else x * mask


class Encoder(nn.Module):
    """Post-norm transformer layers over (1, C, T)."""

    def __init__(self, channels: int, filter_channels: int, heads: int, layers: int, kernel_size: int) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(MultiHeadAttention(channels, heads) for _ in range(layers))
        self.norm_layers_1 = nn.ModuleList(ChannelLayerNorm(channels) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(FeedForward(channels, filter_channels, kernel_size) for _ in range(layers))
        self.norm_layers_2 = nn.ModuleList(ChannelLayerNorm(channels) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        key_bias = None if mask is None else (1.0 - mask) * MASKED_SCORE
        layers = zip(self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True)
        for attention, norm_1, feed_forward, norm_2 in layers:
            x = norm_1(x + attention(x, key_bias))
            x = norm_2(x + feed_forward(x, mask))
        return masked(x, mask)


class TextEncoder(nn.Module):
    """phone (1, T, D) and the pitch embedding (1, T, hidden) -> m_p and logs_p, both (1, inter, T)."""

    def __init__(
        self, phone_channels: int, inter: int, hidden: int, filter_channels: int, heads: int, layers: int, kernel_size: int, f0: bool
    ) -> None:
        super().__init__()
        self.inter = inter
        self.scale = math.sqrt(hidden)
        self.emb_phone = nn.Linear(phone_channels, hidden)
        if f0:
            self.emb_pitch = nn.Embedding(PITCH_BINS, hidden)
        self.encoder = Encoder(hidden, filter_channels, heads, layers, kernel_size)
        self.proj = nn.Conv1d(hidden, 2 * inter, 1)

    def forward(self, phone: Tensor, pitch: Tensor | None) -> tuple[Tensor, Tensor]:
        """phone (1, T, D), coarse pitch int (1, T) with 1..255, or None for a voice without f0."""
        return self.encode(phone, None if pitch is None else self.emb_pitch(pitch))

    def encode(self, phone: Tensor, pitch_embedding: Tensor | None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same from an embedding looked up beforehand; mask (1, 1, T) marks the valid frames with 1."""
        x = self.emb_phone(phone)
        if pitch_embedding is not None:
            x = x + pitch_embedding
        x = F.leaky_relu(x * self.scale, LEAKY_SLOPE).transpose(1, 2)
        x = self.encoder(masked(x, mask), mask)
        stats = masked(self.proj(x), mask)
        return stats[:, : self.inter], stats[:, self.inter :]
