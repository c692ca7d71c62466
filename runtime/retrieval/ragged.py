"""Lists of different lengths, one for each frame, side by side in one flat tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INFINITY = float("inf")


@dataclass(frozen=True)
class Lists:
    """`rows` (P,) int64: what each frame's list holds, one after another; `offsets` (T + 1,) int64: where each list begins."""

    rows: Tensor
    offsets: Tensor

    @property
    def lengths(self) -> Tensor:
        """(T,) int64"""
        return self.offsets.diff()

    def smallest(self, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` smallest of each list's values (P,), ascending, and their rows: (T, count); infinity and -1 beyond its end."""
        if len(self.offsets) == 2 and len(values) >= count:
            best, found = values.topk(count, largest=False)
            return best[None], self.rows[found][None]
        lengths = self.lengths
        width = max(count, int(lengths.max()))
        inside = torch.arange(width) < lengths[:, None]
        padded = values.new_full(inside.shape, INFINITY).masked_scatter_(inside, values)
        best, column = padded.topk(count, dim=1, largest=False)
        missing = column >= lengths[:, None]
        found = self.rows[(self.offsets[:-1, None] + column).masked_fill_(missing, 0)]
        return best, found.masked_fill_(missing, -1)


def list_ranges(starts: Tensor, lengths: Tensor) -> Lists:
    """The rows start, start + 1, ... of ranges (T, R), those of one frame joined."""
    flat = lengths.flatten()
    ends = flat.cumsum(0)
    total = int(ends[-1])
    rows = torch.arange(total) + torch.repeat_interleave(starts.flatten() - (ends - flat), flat, output_size=total)
    per_frame = lengths.sum(1)
    return Lists(rows, torch.cat([per_frame.new_zeros(1), per_frame.cumsum(0)]))
