"""Faithful search on a GPU: the probed cells, padded to the longest, are gathered and compared in batches of frames."""

from __future__ import annotations

import torch
from torch import Tensor

from .cells import DeviceCells
from .distances import MARGIN, squared_norms
from .feature_index import FeatureIndex
from .ragged import INFINITY

_UPLOADED_AT_ONCE = 1 << 16  # vectors


class PaddedSearch:
    """Vectors are kept as differences from their cell's centroid, so that products of close ones lose no digits.

    With `dtype` float16 a second copy in half precision finds the candidates, and the float32 one decides.
    """

    def __init__(self, index: FeatureIndex, device: torch.device, dtype: torch.dtype, k: int, budget: int) -> None:
        self.k, self.budget = k, budget
        self.centroids = index.centroids.to(device)
        self.cells = DeviceCells(self.centroids, index.nprobe)
        lengths = index.offsets.diff()
        self.longest = int(lengths.max())
        self.starts, self.lengths = index.offsets[:-1].to(device), lengths.to(device)
        self.cell_of = torch.repeat_interleave(lengths).to(device)
        self.table = torch.empty(index.vectors.shape, device=device)
        for first in range(0, index.count, _UPLOADED_AT_ONCE):
            part = slice(first, first + _UPLOADED_AT_ONCE)
            torch.sub(index.vectors[part].to(device), self.centroids[self.cell_of[part]], out=self.table[part])
        self.norms = squared_norms(self.table)
        self.rough = self.table if dtype == torch.float32 else self.table.to(dtype)

    def find(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(T, d) -> squared distances (T, k) ascending and rows of the index (T, k), infinity and -1 where there are fewer."""
        per_row = features.shape[1] * self.rough.element_size() + 48
        columns = max(1, min(self.longest, self.budget // per_row))
        per_frame = columns * per_row + self.cells.bytes_per_frame() + 12 * (self.k + MARGIN) * features.shape[1]
        found = [self._find(part, columns) for part in features.split(max(1, self.budget // per_frame))]
        return torch.cat([scores for scores, _rows in found]), torch.cat([rows for _scores, rows in found])

    def vectors(self, rows: Tensor) -> Tensor:
        """(...) -> (..., d)"""
        return self.table[rows] + self.centroids[self.cell_of[rows]]

    def blended(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums (T, d) of rows (T, k)."""
        return (weights[:, None] @ self.vectors(rows))[:, 0]

    def _find(self, features: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        cells = self.cells.nearest(features)
        best = features.new_full((len(features), self.k + MARGIN), INFINITY)
        rows = cells.new_full(best.shape, -1)
        for probe in cells.T:
            offset = features - self.centroids[probe]
            norms = offset.square().sum(1, keepdim=True)
            starts, lengths = self.starts[probe][:, None], self.lengths[probe][:, None]
            for first in range(0, self.longest, columns):
                column = torch.arange(first, min(first + columns, self.longest), device=features.device)
                missing = column >= lengths
                listed = (starts + column).masked_fill_(missing, 0)
                gathered = self.rough.index_select(0, listed.flatten()).view(*listed.shape, -1)
                products = torch.bmm(gathered, offset.to(self.rough.dtype)[:, :, None])[:, :, 0].float()
                scores = torch.where(missing, INFINITY, self.norms[listed] + norms - 2 * products)
                best, chosen = torch.cat([best, scores], 1).topk(best.shape[1], dim=1, largest=False)
                rows = torch.cat([rows, listed.masked_fill_(missing, -1)], 1).gather(1, chosen)
        return self._decide(features, rows)

    def _decide(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        known = rows.clamp(min=0)
        offset = features[:, None] - self.centroids[self.cell_of[known]]
        exact = torch.where(rows < 0, INFINITY, (offset - self.table[known]).square().sum(2))
        scores, best = exact.topk(self.k, dim=1, largest=False)
        return scores, rows.gather(1, best)
