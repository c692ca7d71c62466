"""Deterministic weights and noise: what stands in for trained weights where none can be had.

A tensor depends only on its checkpoint name, its shape and a seed, so two programs can fill the same network without
exchanging a file. The scales keep the networks alive (audio near a peak of 0.3 without a constant part, HuBERT frames
that differ), which random initialisation does not. The formula is the one behind the recorded upstream outputs in
`golden_outputs/upstream`, so it must not change.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SEED_STRIDE = 100_003  # apart far enough that no run's draws meet another's


def seeded_tensor(name: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Float32 values of `shape` for checkpoint entry `name`."""
    size = tuple(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    values = torch.randn(size, generator=generator)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(size, dtype=torch.int64)
    kind = name.rpartition(".")[2]
    if kind == "weight_g":
        return (values.abs() * 0.3 + 0.2) * (2.0 if name.startswith("dec.") else 1.0)
    if kind == "running_var":
        return 1 + 0.1 * values.abs()
    if kind == "running_mean":
        return 0.1 * values
    if kind == "gamma" or (len(size) == 1 and kind == "weight"):
        return 1 + 0.1 * values
    if kind in ("bias", "beta"):
        return 0.02 * values
    if name.startswith("emb_g") or "emb_pitch" in name:
        return 0.3 * values
    fan_in = max(1, torch.Size(size[1:]).numel())
    values = values / fan_in**0.5
    if name == "dec.conv_post.weight":
        return values - values.mean(-1, keepdim=True)
    if name.endswith(("self_attn.out_proj.weight", "fc2.weight")):
        return values * 0.3
    return values


def seeded_state(shapes: Iterable[tuple[str, Sequence[int]]], seed: int = 0) -> dict[str, Tensor]:
    """A whole checkpoint's entries."""
    return {name: seeded_tensor(name, shape, seed) for name, shape in shapes}


def noise_draw(index: int, shape: Sequence[int], seed: int) -> Tensor:
    """The `index`-th standard-normal draw of a run.

    A synthesizer call draws the prior noise (1, 192, T) and then, for f0 voices, the source noise (1, T * upp, 1).
    """
    generator = torch.Generator().manual_seed(seed * SEED_STRIDE + index)
    return torch.randn(tuple(shape), generator=generator)
