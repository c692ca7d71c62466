"""Transposed convolutions as convolutions: every output position of one input position is a channel, and channels are then interleaved.

A transposed convolution of stride r gives r outputs for each input. Output r m + p is the sum over d of w[p + padding - r d] x[m + d],
so all the outputs of phase p are one convolution over x, and the r of them are r times the channels of one. Taps that a phase
does not have are zeros: equal, and free of conv_transpose, whose fate on the Neural Engine is uncertain (D6).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Origins, parameter


class Upsampling(nn.Module):
    """ConvTranspose1d (2C -> C, stride r) over rows: (1, 2C, H, W) -> (1, C, H, r W), zeros beyond the ends of a row.

    Channel p C + c of the convolution is channel c of phase p. To interleave them, the channels go last, where (W, r C) and
    (r W, C) are the same numbers in the same order, and back. Two transpositions, but no axis of r numbers is ever last: a last
    axis is padded to 64 bytes (D14), so that of the usual (C, W, r) takes 16 times its size at r = 2, and (rows, W, r) besides C
    would need a fifth axis. No axis is longer than the result's.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.ConvTranspose1d) -> None:
        """Raises ValueError for a layer that does not make exactly `stride` outputs of an input."""
        super().__init__()
        self.rate = layer.stride[0]
        kernel, padding = layer.kernel_size[0], cast("tuple[int, ...]", layer.padding)[0]
        if kernel - self.rate != 2 * padding or layer.groups != 1 or layer.dilation != (1,) or layer.output_padding != (0,):
            raise ValueError(f"{layer} is no upsampling by its stride")
        self.reach = reach(self.rate, padding)
        phases = phase_taps(layer.weight.detach(), self.rate, padding, range(-self.reach, self.reach + 1))  # (r, C, 2C, taps)
        self.weight = parameter(phases.flatten(0, 1).unsqueeze(2))
        self.register_parameter("bias", None if layer.bias is None else parameter(layer.bias.detach().repeat(self.rate)))
        self.origins: Origins = {name: (value,) for name, value in layer.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        _one, _channels, rows, width = x.shape
        x = F.conv2d(x, self.weight, self.bias, padding=(0, self.reach)).permute(0, 2, 3, 1)
        return x.reshape(1, rows, width * self.rate, -1).permute(0, 3, 1, 2)


def reach(rate: int, padding: int) -> int:
    """Inputs on either side that the outputs of one input depend on, where the kernel is `rate + 2 * padding` long."""
    return (rate - 1 + padding) // rate


def phase_taps(weight: Tensor, rate: int, padding: int, offsets: range) -> Tensor:
    """A transposed kernel (in, out, k) -> (rate, out, in, offsets): for each phase its taps at x[m + offset], zero where it has none."""
    inputs, outputs, kernel = weight.shape
    taps = weight.new_zeros(rate, outputs, inputs, len(offsets))
    for phase in range(rate):
        for index, offset in enumerate(offsets):
            place = phase + padding - rate * offset
            if 0 <= place < kernel:
                taps[phase, :, :, index] = weight[:, :, place].T
    return taps


class SourceConv(nn.Module):
    """A noise convolution (1 -> C, 2 s taps, stride s) over the source in blocks of s samples as channels: (1, s, H, W) -> (1, C, H, W).

    Its window begins half a block early, so it has the second half of one block, a whole one and the first half of a third:
    three taps of stride 1, which also spares a kernel of 96 taps (D4) over the audio's length (D1).
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Conv1d) -> None:
        """Raises ValueError for a convolution that is none of these, nor one of a single tap (s = 1)."""
        super().__init__()
        stride, kernel, padding = layer.stride[0], layer.kernel_size[0], cast("tuple[int, ...]", layer.padding)[0]
        self.stride, self.reach = stride, int(stride > 1)
        if (kernel, padding) != ((2 * stride, stride // 2) if stride > 1 else (1, 0)) or layer.in_channels != 1:
            raise ValueError(f"{layer} brings no source down to a level")
        held = F.pad(layer.weight.detach(), (stride // 2, stride - stride // 2)) if stride > 1 else layer.weight.detach()
        self.weight = parameter(held.reshape(layer.out_channels, -1, stride).transpose(1, 2).unsqueeze(2))
        self.register_parameter("bias", None if layer.bias is None else parameter(layer.bias))
        self.origins: Origins = {name: (value,) for name, value in layer.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=(0, self.reach))


def doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(1, C, H, W) -> (1, out, 2 H, 2 W) by a convolution of 2x2 taps (4 out, C, 2, 2) whose channels are the four phases."""
    return F.pixel_shuffle(F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias), 2)


def doubling_weight(weight: Tensor) -> Tensor:
    """A transposed kernel (in, out, 3, 3) of stride 2, padding 1, output padding 1 -> that of `doubled`, (4 out, in, 2, 2)."""
    inputs, outputs = weight.shape[:2]
    rows = phase_taps(weight.permute(0, 1, 3, 2).reshape(inputs, -1, 3), 2, 1, range(2))  # (2, out * 3, in, 2)
    rows = rows.reshape(2, outputs, 3, inputs, 2).permute(3, 1, 0, 4, 2)  # (in, out, row phase, row tap, 3)
    both = phase_taps(rows.reshape(inputs, -1, 3), 2, 1, range(2)).reshape(2, outputs, 2, 2, inputs, 2)
    return both.permute(1, 2, 0, 4, 3, 5).reshape(4 * outputs, inputs, 2, 2)
