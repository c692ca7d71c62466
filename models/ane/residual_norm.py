"""LayerNorm of a sum over tensors (1, C, 1, S), in half precision as good as a fused one: a value is rounded once on its way through."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import LEAST_SCALE, Origins, parameter

MOST_POWER = 14  # 2^-14 is half precision's smallest normal number
MOST_SCALE = 2.0**MOST_POWER
LEAST_VARIANCE = 1 / MOST_SCALE  # an engine may take smaller ones for zero, which has no logarithm
TERMS = 3


class ResidualNorm(nn.Module):
    """LayerNorm over the channels of x + added, both (1, C, 1, S), with no value beyond half precision on the way, sums included.

    `ChannelNorm` rounds the sum, its quotient, the difference from the mean, the factor, the product and the result. Here x and
    added are multiplied by a power of two, which is exact; what is left of the factor, within 0.7 and 1.5, acts as a correction
    that is small and rounds finely; and one convolution of three terms for each channel, one above the other, adds everything
    up with weight and bias. Should an engine's exp2 be inexact, it scales twice by the same number, and nothing else changes.
    Channels whose sums differ by less than a 128th of the greatest of x and added are not told apart as far as LayerNorm would.
    """

    root_eps: Tensor

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, eps: float) -> None:
        """weight and bias (C,); the weight is held once for each term, (C, 1, TERMS, 1)."""
        super().__init__()
        self.weight = parameter(weight[:, None, None, None].repeat(1, 1, TERMS, 1))
        self.bias = parameter(bias)
        self.origins: Origins = {"weight": (weight,), "bias": (bias,)}
        self.register_buffer("root_eps", torch.tensor(math.sqrt(eps)), persistent=False)

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        total = x + added
        greatest = torch.maximum(x.abs(), added.abs()).amax(1, keepdim=True)  # not of the sum, where the two may cancel out
        down = _power_of_two(greatest.clamp(LEAST_SCALE, MOST_SCALE), -1.0)
        scaled, eps = total * down, self.root_eps * down
        mean = scaled.mean(1, keepdim=True)
        centred = scaled - mean
        variance = ((centred * centred).mean(1, keepdim=True) + eps * eps).clamp_min(LEAST_VARIANCE)
        up = _power_of_two(variance, -0.5)
        variance = variance * up * up
        rest = (1.0 - variance) / (variance + torch.sqrt(variance))  # 1 / sqrt(variance) - 1
        factor = down * up
        terms = torch.cat([x * factor, added * factor, centred * (up * rest) - mean * up], 2)
        return F.conv2d(terms, self.weight, self.bias, groups=len(self.bias))


def _power_of_two(x: Tensor, exponent: float) -> Tensor:
    """The power of two nearest to x ** exponent, where that is a normal number of half precision (D15)."""
    return torch.exp2(torch.round(torch.log(x) * (exponent / math.log(2.0))).clamp(-MOST_POWER, MOST_POWER))
