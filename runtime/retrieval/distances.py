"""Squared L2 distances. |x|^2 - 2xy + |y|^2 finds candidates quickly and loses digits for close vectors; differences decide."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to |x|^2 + |y|^2: beyond what float32 loses when it sums a product of 768 terms eight lanes wide, as the slowest of CPUs does.
ROUNDING = 1e-5
MARGIN = 8  # candidates kept beyond those asked for; with RVC's 8 that makes 16, the most that topk of older Metal takes
_DIFFERENCES_BYTES = 2 << 20  # stays in the cache


def row_norms(vectors: Tensor) -> Tensor:
    """Squared lengths: (n, d) -> (n,)"""
    return torch.linalg.vector_norm(vectors, dim=1).square_()


def squared_norms(vectors: Tensor) -> Tensor:
    """The same of a large table, in parts."""
    return torch.cat([row_norms(part) for part in vectors.split(1 << 14)])


def listed_distances(features: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """Of features (T, d) to the rows (T, C) of vectors (n, d): (T, C). On the CPU, in parts that fit its cache."""
    frames, listed = rows.shape
    distances = features.new_empty(frames, listed)
    columns = max(1, min(listed, _DIFFERENCES_BYTES // (4 * features.shape[1])))
    at_once = max(1, min(frames, _DIFFERENCES_BYTES // (4 * columns * features.shape[1])))
    scratch = features.new_empty(at_once * columns, features.shape[1])  # used again: fresh memory costs as much as the work
    for first in range(0, listed, columns):
        for frame in range(0, frames, at_once):
            some = rows[frame : frame + at_once, first : first + columns]
            theirs = torch.index_select(vectors, 0, some.flatten(), out=scratch[: some.numel()]).view(*some.shape, -1)
            ours = features[frame : frame + at_once, None]
            torch.linalg.vector_norm(theirs.sub_(ours), dim=2, out=distances[frame : frame + at_once, first : first + columns])
    return distances.square_()
