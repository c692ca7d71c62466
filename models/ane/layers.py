"""Layers over tensors (1, C, 1, S), which hold a checkpoint's numbers in another arrangement.

Each keeps, as `origins`, of which of the network's parameters each of its own is made, so that a stage can say so (`sources_of`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_AXIS = 16384  # D1: height and width through A15 and M3
MAX_WIDTH = 13  # D4: taps of a kernel along the last axis, M1
MAX_HEIGHT = 29  # D4: taps along the other one
LEAST_SCALE = 2.0**-6  # ChannelNorm: smaller values are not brought up to 1, so that eps over the scale's square stays small
LEAST_VARIANCE = 2.0**-24  # ChannelNorm: half precision's smallest number, against a square root of zero
Origins = dict[str, tuple[nn.Parameter, ...]]


class Conv(nn.Module):
    """A convolution over (1, C, H, W) with weight (out, in / groups, kernel height, kernel width); padding is (height, width)."""

    bias: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        origins: Origins,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.weight = parameter(weight)
        self.register_parameter("bias", None if bias is None else parameter(bias))
        self.origins = origins
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def parameter(value: Tensor) -> nn.Parameter:
    """Numbers of a checkpoint in their arrangement; they share its memory where that is possible."""
    return nn.Parameter(value.detach(), requires_grad=False)


def origins_of(layer: nn.Module) -> Origins:
    """For a layer that is made of one other: parameters of the same name."""
    return {name: (value,) for name, value in layer.named_parameters(recurse=False)}


def sources_of(stage: nn.Module, network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every parameter of an arranged stage -> the parameters of the plain one that it is made of, by the names that each has.

    Raises ValueError for one that no layer accounts for.
    """
    names = {id(value): name for name, value in network.named_parameters(remove_duplicate=False)}
    found: dict[str, tuple[str, ...]] = {}
    for path, module in stage.named_modules():
        origins: Origins = getattr(module, "origins", {})
        for name, _value in module.named_parameters(recurse=False):
            own = f"{path}.{name}".lstrip(".")
            if name not in origins or any(id(origin) not in names for origin in origins[name]):
                raise ValueError(f"{own} is made of no parameter of {type(network).__name__}")
            found[own] = tuple(names[id(origin)] for origin in origins[name])
    return found


def conv1x1(layer: nn.Linear | nn.Conv1d) -> Conv:
    """A linear layer, or a convolution of one tap, as weight (out, in, 1, 1). Raises ValueError for another convolution."""
    if isinstance(layer, nn.Conv1d):
        if layer.kernel_size != (1,) or layer.stride != (1,) or layer.padding != (0,):
            raise ValueError(f"{layer} is no convolution of one tap")
        return conv_row(layer)
    return Conv(layer.weight[:, :, None, None], layer.bias, origins_of(layer))


def conv_row(layer: nn.Conv1d) -> Conv:
    """A convolution along the last axis, as weight (out, in, 1, k). How many taps the Neural Engine takes is the caller's care."""
    return Conv(
        layer.weight[:, :, None, :],
        layer.bias,
        origins_of(layer),
        stride=(1, layer.stride[0]),
        padding=(0, _padding(layer)),
        dilation=(1, layer.dilation[0]),
        groups=layer.groups,
    )


def conv_along(layer: nn.Conv1d) -> Conv | SplitConv:
    """A convolution along the last axis, split where it has more taps than MAX_WIDTH."""
    return conv_row(layer) if layer.kernel_size[0] <= MAX_WIDTH else SplitConv(layer)


class SplitConv(nn.Module):
    """A convolution of stride 1 along the last axis with more taps than MAX_WIDTH, as one whose kernel is (rows, width): (1, C, 1, S).

    The padded axis is folded into rows as long as the kernel is wide, each row is followed by the next one's beginning, and
    tap `width * r + j` of the network's kernel is tap (r, j) of this one's: row r + 1 lies just as far behind row r. So the axis
    shrinks to less than twice the width, nothing is cut off its beginning (D11), the data double once, and the kernel's products
    are as many as before, but for taps and positions that fill up the last row. One convolution for 128 taps, where a sum of ten
    took ten, nine additions and a slice that begins inside. Rows this short take twice their size in memory (D14); a copy of the
    whole axis for each row, which does not, is five times that.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Conv1d) -> None:
        """Raises ValueError for a stride, a dilation, or more taps than MAX_HEIGHT rows have."""
        super().__init__()
        taps, out = layer.kernel_size[0], layer.out_channels
        rows = math.ceil(taps / MAX_WIDTH)
        if layer.stride != (1,) or layer.dilation != (1,) or rows > MAX_HEIGHT:
            raise ValueError(f"{layer} cannot be split: it needs stride 1, dilation 1 and at most {MAX_HEIGHT * MAX_WIDTH} taps")
        width = math.ceil(taps / rows)
        self.rows, self.width, self.taps = rows, width, taps
        self.padding, self.groups = _padding(layer), layer.groups
        self.weight = parameter(F.pad(layer.weight, (0, rows * width - taps)).reshape(out, -1, rows, width))
        self.register_parameter("bias", None if layer.bias is None else parameter(layer.bias))
        self.origins = origins_of(layer)

    def forward(self, x: Tensor, length: int | None = None) -> Tensor:
        """The first `length` results, or all."""
        channels, most = int(x.shape[1]), int(x.shape[3]) + 2 * self.padding - self.taps + 1
        length = most if length is None else min(length, most)
        lines = math.ceil(length / self.width)  # of the result
        missing = (lines + self.rows) * self.width - self.padding - int(x.shape[3])
        x = F.pad(x, (self.padding, missing)).reshape(1, channels, lines + self.rows, self.width)
        x = torch.cat([x[:, :, :-1], x[:, :, 1:, : self.width - 1]], dim=3)
        x = F.conv2d(x, self.weight, self.bias, groups=self.groups)
        return x.reshape(1, int(x.shape[1]), 1, lines * self.width)[..., :length]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (1, C, 1, S) or (1, C, H, W), with no value beyond half precision on the way, sums included.

    A position is divided by its greatest magnitude, which leaves the result as it is where eps is divided by its square: so
    no sum passes C and no square 4, whatever comes in, and what is small does not vanish when it is squared. Channels that
    differ by less than a 4096th of what they have in common are not told apart as far as LayerNorm would.
    """

    root_eps: Tensor
    zero: Tensor
    one: Tensor

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, eps: float) -> None:
        """weight and bias (C,)."""
        super().__init__()
        self.weight, self.bias = parameter(weight), parameter(bias)
        self.origins: Origins = {"weight": (weight,), "bias": (bias,)}
        for name, value in (("root_eps", torch.tensor(math.sqrt(eps))), ("zero", torch.zeros(len(bias))), ("one", torch.ones(len(bias)))):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(1, keepdim=True).clamp_min(LEAST_SCALE)
        x = x / scale
        x = x - x.mean(1, keepdim=True)
        eps = self.root_eps / scale
        variance = ((x * x).mean(1, keepdim=True) + eps * eps).clamp_min(LEAST_VARIANCE)
        x = x * torch.rsqrt(variance)
        return F.batch_norm(x, self.zero, self.one, self.weight, self.bias, training=False, eps=0.0)  # x * weight + bias, rounded once


def _padding(layer: nn.Conv1d) -> int:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise ValueError(f"{layer} has a padding that is no number of zeros")
    return cast(Sequence[int], layer.padding)[0]
