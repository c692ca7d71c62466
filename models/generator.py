"""`dec`: the HiFi-GAN generators that turn the latent into audio, with and without a harmonic source.

GeneratorNSF adds the source (1, 1, samples) at every resolution; Generator is the same without it. Both are one
class here, because the checkpoints differ only by the `noise_convs` and `m_source` entries.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import VoiceConfig
from .text_encoder import masked

LEAKY_SLOPE = 0.1
LAST_LEAKY_SLOPE = 0.01  # upstream leaves the last activation at torch's default


def context_frames(config: VoiceConfig) -> int:
    """Latent frames on either side that one frame of audio depends on: 12 to 14 in RVC's own configurations.

    Walks from the audio back to the latent, adding each layer's reach at its own rate.
    """
    block = _block_reach(config)
    reach = 3.0  # conv_post
    for rate, kernel in zip(reversed(config.upsample_rates), reversed(config.upsample_kernel_sizes), strict=True):
        reach = (reach + block + (kernel + rate) / 2 - 1) / rate
    return math.ceil(reach + 3)  # conv_pre


class ResBlock1(nn.Module):
    """Three pairs of convolutions, the first of each dilated, with a residual around every pair."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel_size, dilation) for dilation in dilations[:3])
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel_size, 1) for _ in dilations[:3])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            h = dilated(masked(F.leaky_relu(x, LEAKY_SLOPE), mask))
            x = plain(masked(F.leaky_relu_(h, LEAKY_SLOPE), mask)).add_(x)
        return x


class ResBlock2(nn.Module):
    """Two dilated convolutions with a residual around each."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_same_conv(channels, kernel_size, dilation) for dilation in dilations[:2])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for conv in self.convs:
            x = conv(masked(F.leaky_relu(x, LEAKY_SLOPE), mask)).add_(x)
        return x


def _same_conv(channels: int, kernel_size: int, dilation: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=dilation * (kernel_size - 1) // 2)


class SourceModule(nn.Module):
    """`m_source`: holds the two numbers that mix sine and noise; `source.harmonic_source` applies them on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(1, 1)


class GeneratorNSF(nn.Module):
    """z (1, inter, T), g (1, gin, 1) and, for f0 voices, source (1, 1, T * upp) -> audio (1, 1, T * upp)."""

    def __init__(self, config: VoiceConfig, f0: bool) -> None:
        super().__init__()
        rates, initial = config.upsample_rates, config.upsample_initial_channel
        self.rates = rates
        self.kernels = len(config.resblock_kernel_sizes)
        self.block_reach = _block_reach(config)
        self.conv_pre = nn.Conv1d(config.inter_channels, initial, 7, padding=3)
        self.cond = nn.Conv1d(config.gin_channels, initial, 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        if f0:
            self.m_source = SourceModule()
            self.noise_convs = nn.ModuleList()
        block = ResBlock1 if config.uses_resblock1 else ResBlock2
        for index, (rate, kernel) in enumerate(zip(rates, config.upsample_kernel_sizes, strict=True)):
            channels = initial >> (index + 1)
            self.ups.append(nn.ConvTranspose1d(2 * channels, channels, kernel, rate, padding=(kernel - rate) // 2))
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(block(channels, size, dilations))
            if f0:
                self.noise_convs.append(_noise_conv(channels, math.prod(rates[index + 1 :])))
        self.conv_post = nn.Conv1d(initial >> len(rates), 1, 7, padding=3, bias=False)

    def forward(self, z: Tensor, g: Tensor, source: Tensor | None, mask: Tensor | None = None, piece: int | None = None) -> Tensor:
        """mask (1, 1, T) marks the valid frames with 1; every convolution then sees zeros beyond them.

        Without a mask, every level can be computed in pieces of about `piece` bytes, which stay in a cache; the audio is
        the same.
        """
        x = self.conv_pre(masked(z, mask)) + self.cond(g)
        frames, upsampled = int(z.shape[-1]), 1
        level_mask = mask
        if source is not None and mask is not None:
            source = source * _stretch(mask, frames, math.prod(self.rates))
        for index, rate in enumerate(self.rates):
            x = masked(F.leaky_relu(x, LEAKY_SLOPE), level_mask)
            upsampled *= rate
            if mask is not None:
                level_mask = _stretch(mask, frames, upsampled)
            x = self._level(index, x, source, level_mask) if piece is None else self._level_in_pieces(index, x, source, piece)
        x = self.conv_post(masked(F.leaky_relu(x, LAST_LEAKY_SLOPE), level_mask))
        return masked(torch.tanh(x), level_mask)

    def _level(self, index: int, x: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        """Activated input (1, 2C, L) -> (1, C, L * rate): upsampled, the source added, through the residual blocks."""
        x = self.ups[index](x)
        if source is not None:
            x = x + self.noise_convs[index](source)
        blocks = [self.resblocks[index * self.kernels + j](x, mask) for j in range(self.kernels)]
        return _sum(blocks) / self.kernels

    def _level_in_pieces(self, index: int, x: Tensor, source: Tensor | None, piece: int) -> Tensor:
        """The same, each piece computed from its input and as much on either side as reaches it."""
        rate, up = self.rates[index], cast(nn.ConvTranspose1d, self.ups[index])
        length, channels = x.shape[-1], up.out_channels
        margin = -(-(self.block_reach + up.kernel_size[0]) // rate)  # of inputs: outputs nearer to a cut edge are wrong
        keep = max(piece // (channels * rate * x.element_size()), 2 * margin)
        if length <= keep + 2 * margin:
            return self._level(index, x, source, None)
        samples = math.prod(self.rates[index:])  # of the source for each input
        result = x.new_empty(x.shape[0], channels, length * rate)
        for start in range(0, length, keep):
            stop = min(length, start + keep)
            first, last = max(0, start - margin), min(length, stop + margin)
            part = None if source is None else source[:, :, first * samples : last * samples]
            made = self._level(index, x[:, :, first:last], part, None)
            result[:, :, start * rate : stop * rate] = made[:, :, (start - first) * rate : (stop - first) * rate]
        return result


def _block_reach(config: VoiceConfig) -> int:
    """Samples on either side, at its own rate, that a residual block's output depends on."""
    count, plain = (3, 3) if config.uses_resblock1 else (2, 0)  # dilated and undilated convolutions of a block
    return max(
        (size - 1) // 2 * (sum(dilations[:count]) + plain)
        for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    )


def _noise_conv(channels: int, stride: int) -> nn.Conv1d:
    """Brings the source down to a level that still has `stride` samples for each of its own."""
    if stride == 1:
        return nn.Conv1d(1, channels, 1)
    return nn.Conv1d(1, channels, 2 * stride, stride, padding=stride // 2)


def _stretch(mask: Tensor, frames: int, factor: int) -> Tensor:
    """(1, 1, T) -> (1, 1, T * factor), each entry repeated."""
    return mask.unsqueeze(-1).expand(1, 1, frames, factor).reshape(1, 1, frames * factor)


def _sum(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
