"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import mil_op


@mil_op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@mil_op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Transposition has no effect on a vector."""
    left = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    return torch.matmul(left, y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y)
