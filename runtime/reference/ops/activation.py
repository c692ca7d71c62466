"""Activation functions. Parameters by channel belong to the second axis."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import mil_op
from .normalization import by_channel

UNVERIFIED = {"clamped_relu with a negative beta": "the documented formula; coremltools' own constant folding differs"}


@mil_op("relu", in_half=True)
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@mil_op("relu6")
def relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


@mil_op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """As documented; where `beta` is negative, coremltools' own constant folding adds it twice."""
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@mil_op("leaky_relu", in_half=True)
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return F.leaky_relu(x, alpha)


@mil_op("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < alpha, 0, x)


@mil_op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, by_channel("alpha", alpha, x) * x)


@mil_op("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x))


@mil_op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * x + beta


@mil_op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


@mil_op("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@mil_op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


@mil_op("silu")
def silu(x: Tensor) -> Tensor:
    return F.silu(x)


@mil_op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise PackageError(f"gelu has no mode {mode!r}")
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@mil_op("softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to full precision; torch's softplus is x itself beyond a threshold."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


@mil_op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return by_channel("alpha", alpha, x) * softplus(by_channel("beta", beta, x) * x)


@mil_op("softsign")
def softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


@mil_op("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, dim=axis)
