"""Activation functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import mil_op


@mil_op("relu")
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@mil_op("leaky_relu")
def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@mil_op("tanh")
def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@mil_op("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@mil_op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise PackageError(f"gelu has no mode {mode!r}")
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@mil_op("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, dim=axis)
