"""Long axes as overlapping rows: what would be longer than the Neural Engine's 16,384 positions runs as (1, C, rows, width).

Every row holds a stretch of the signal and, on either side, as much more as anything after it sees, so that the rows never
have to exchange anything. What lies in these margins and what the margins see beyond a row's end is wrong and is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arrangement import Step, cut, pad, permute, repeat, reshape, windows

BLOCKS = (64, 32)  # positions that are moved as one where rows are cut; 32 in half precision are 64 bytes, so none is padded (D14)


@dataclass(frozen=True)
class Rows:
    """`count` rows, the next one `stride` positions further on, each with `margin` more on either side."""

    count: int
    stride: int
    margin: int = 0
    block: int = BLOCKS[0]

    @property
    def width(self) -> int:
        return self.stride + 2 * self.margin

    def finer(self, rate: int) -> Rows:
        """The same rows of a signal that has `rate` positions for each."""
        return Rows(self.count, self.stride * rate, self.margin * rate, self.block)

    def coarser(self, rate: int) -> Rows:
        """The reverse."""
        return Rows(self.count, self.stride // rate, self.margin // rate, self.block)

    def cutting(self, length: int, samples: int = 1) -> tuple[Step, ...]:
        """(1, 1, length * samples) -> (1, samples, count, width): rows of blocks of samples, zeros beyond the ends."""
        after = self.count * self.stride + self.margin - length
        steps = [pad(2, self.margin * samples, after * samples)] if self.margin or after else []
        if self.count > 1:
            steps.append(windows(2, self.width * samples, self.stride * samples))
        if samples == 1:
            return *steps, reshape(1, 1, self.count, self.width)
        return *steps, reshape(1, self.count, self.width, samples), permute(0, 3, 1, 2)

    def masks(self, frames: int, factor: int) -> tuple[Step, ...]:
        """A mask (1, 1, frames) -> (1, 1, count, width), each entry `factor` times."""
        return repeat(2, factor), *self.cutting(frames * factor)

    def joining(self, length: int) -> tuple[Step, ...]:
        """(1, 1, count, width) -> (1, 1, length): rows without their margins, one after the other."""
        inner = (cut(3, self.margin, self.margin + self.stride),) if self.margin else ()
        total = self.count * self.stride
        return *inner, reshape(1, 1, total), *((cut(2, 0, length),) if length < total else ())


def fold(x: Tensor, rows: Rows) -> Tensor:
    """(1, C, 1, L) -> (1, C, count, width), by whole blocks, which lie on the axis of rows while they are cut (D11: not the last)."""
    channels, length = int(x.shape[1]), int(x.shape[3])
    if rows.count * rows.stride > length:
        x = F.pad(x, (0, rows.count * rows.stride - length))
    beyond, step = rows.margin // rows.block, rows.stride // rows.block
    blocks = F.pad(x.reshape(1, channels, rows.count * step, rows.block), (0, 0, beyond, beyond))
    parts = [blocks[:, :, index * step : (index + 1) * step + 2 * beyond] for index in range(rows.count)]
    return torch.cat(parts, dim=2).reshape(1, channels, rows.count, rows.width)


def fewest_rows(length: int, need: int, rate: int, limit: int) -> Rows | None:
    """The rows with the fewest positions in all whose width, `rate` times finer, stays within the limit; None where none does.

    `need` positions on either side are the margin's least.
    """
    found: list[Rows] = []
    for block in BLOCKS:
        margin = math.ceil(need / block) * block
        longest = (limit // rate - 2 * margin) // block * block
        if longest > 0:
            count = math.ceil(length / longest)
            found.append(Rows(count, math.ceil(length / count / block) * block, margin, block))
    return min(found, key=lambda rows: rows.count * rows.width, default=None)


def plan_rows(length: int, rates: Sequence[int], needs: Sequence[int], limit: int) -> tuple[Rows, ...] | None:
    """Rows at the beginning and after each upsampling: one as long as that is possible, then as few positions as are enough.

    `needs` are the positions on either side, before each upsampling, that everything after depends on. None where it cannot be.
    """
    if length > limit:
        return None
    rows: Rows | None = Rows(1, length)
    plan = [rows]
    for index, rate in enumerate(rates):
        if rows.count == 1 and rows.stride * rate > limit:
            rows = fewest_rows(rows.stride, needs[index], math.prod(rates[index:]), limit)
            if rows is None:
                return None
        rows = rows.finer(rate)
        plan.append(rows)
    return tuple(plan)
