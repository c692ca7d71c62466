"""Batch norms of a trained network, folded: at inference each is a factor and an addend for every channel.

Computed in float64 and rounded once, so that the folded network is the one that is kept, converted and audited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import IncompleteCheckpoint

EPS = 1e-5  # torch's default, which upstream keeps
BATCH_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")


def batch_norm_affine(path: Path, state: Mapping[str, Tensor], norm: str, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Factor and addend (C,), float64, of the batch norm at `norm`. Raises IncompleteCheckpoint where an entry is missing."""
    missing = [f"{norm}.{entry}" for entry in BATCH_NORM_ENTRIES if f"{norm}.{entry}" not in state]
    if missing:
        raise IncompleteCheckpoint(f"{path} lacks {', '.join(missing)}, a part of a batch norm")
    weight, bias, mean, variance = (state[f"{norm}.{entry}"].double() for entry in BATCH_NORM_ENTRIES)
    if len({tuple(tensor.shape) for tensor in (weight, bias, mean, variance)}) > 1 or weight.ndim != 1:
        raise IncompleteCheckpoint(f"{path}: the entries of {norm} differ in shape")
    scale = weight / torch.sqrt(variance + eps)
    return scale, bias - mean * scale


def fold_batch_norm(path: Path, state: Mapping[str, Tensor], pairs: Iterable[tuple[str, str]], transposed: str = "") -> dict[str, Tensor]:
    """Float32 copies in which each (convolution, norm) of `pairs` has become a convolution with a bias.

    Convolutions whose names hold `transposed` keep their output channels on axis 1. Raises IncompleteCheckpoint where a
    norm is not whole or does not fit its convolution.
    """
    pairs = list(pairs)
    dropped = tuple(f"{norm}.{entry}" for _, norm in pairs for entry in BATCH_NORM_ENTRIES)
    folded = {name: tensor.float() for name, tensor in state.items() if name not in set(dropped)}
    for convolution, norm in pairs:
        scale, shift = batch_norm_affine(path, state, norm)
        weight = state[f"{convolution}.weight"].double()
        axis = 1 if transposed and f".{transposed}." in convolution else 0
        if weight.ndim < 2 or weight.shape[axis] != len(scale):
            raise IncompleteCheckpoint(f"{path}: {convolution} and its batch norm {norm} do not fit")
        bias = state.get(f"{convolution}.bias")
        shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
        folded[f"{convolution}.weight"] = (weight * scale.reshape(shape)).float()
        folded[f"{convolution}.bias"] = (shift if bias is None else shift + bias.double() * scale).float()
    return folded
