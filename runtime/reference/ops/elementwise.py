"""Elementwise arithmetic and type changes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..program import DTYPES
from ..registry import mil_op


@mil_op("add")
def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


@mil_op("sub")
def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


@mil_op("mul")
def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


@mil_op("exp")
def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


@mil_op("cast", moves=True)
def cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype][0])
