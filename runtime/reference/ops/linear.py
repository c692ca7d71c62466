"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import Tensors, mil_op


@mil_op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """From iOS17 on integers and floats may be mixed; products are then floating, as in value inference."""
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        x, weight, bias = _of_one_type(x, weight, bias)
    return F.linear(x, weight, bias)


@mil_op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Transposition has no effect on a vector. From iOS17 on integers and floats may be mixed, as in `linear`."""
    left = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    right = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    if left.dtype != right.dtype:
        left, right, _none = _of_one_type(left, right, None)
    return torch.matmul(left, right)


@mil_op("einsum")
def einsum(values: Tensors, equation: str) -> Tensor:
    """Any equation and number of values; axes of size 1 stretch, as coremltools allows for the two equations it knows."""
    return torch.einsum(equation, *values)


def _of_one_type(x: Tensor, y: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = torch.promote_types(x.dtype, y.dtype)
    if bias is not None:
        dtype = torch.promote_types(dtype, bias.dtype)
    return x.to(dtype), y.to(dtype), None if bias is None else bias.to(dtype)
