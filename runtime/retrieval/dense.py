"""Search of all vectors, block by block with one matrix product each; where a search is faithful, other cells' vectors do not count."""

from __future__ import annotations

import torch
from torch import Tensor

from .cells import DeviceCells
from .distances import MARGIN, row_norms
from .feature_index import FeatureIndex
from .ragged import INFINITY

_UPLOADED_AT_ONCE = 1 << 16  # vectors
_MOST_FRAMES = 2048


class DenseSearch:
    """Vectors y are kept as y = o + t: the mean for o in an exact search, the cell's centroid in a faithful one.

    |x - y|^2 is |x - o|^2 + |t|^2 - 2 t(x - o), of which t(o - mean) + |t|^2 / 2 is known beforehand. A faithful search
    tells vectors of a cell apart however close they are; an exact one leaves in any order what is closer together than
    float32 resolves in |x - mean|^2. With `dtype` float16 a second copy in half precision finds the candidates.
    """

    def __init__(
        self, index: FeatureIndex, device: torch.device, dtype: torch.dtype, k: int, budget: int, *, faithful: bool = False
    ) -> None:
        self.k, self.budget = k, budget
        parts = index.vectors.split(_UPLOADED_AT_ONCE)
        total = sum((part.to(device).sum(0) for part in parts), torch.zeros(index.width, device=device))
        self.mean = total / index.count
        self.cells = DeviceCells(index.centroids.to(device), index.nprobe) if faithful else None
        self.origins = index.centroids.to(device) if faithful else self.mean[None]
        lengths = index.offsets.diff() if faithful else torch.tensor([index.count])
        self.origin_of = torch.repeat_interleave(lengths).to(device)
        self.table = torch.empty(index.vectors.shape, device=device)
        self.known = torch.empty(index.count, device=device)
        for first, part in zip(range(0, index.count, _UPLOADED_AT_ONCE), parts, strict=True):
            rows = slice(first, first + len(part))
            origins = self.origins[self.origin_of[rows]]
            torch.sub(part.to(device), origins, out=self.table[rows])
            self.known[rows] = row_norms(self.table[rows]) + 2 * (self.table[rows] * (origins - self.mean)).sum(1)
        self.rough = self.table if dtype == torch.float32 else self.table.to(dtype)

    def find(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(T, d) -> squared distances (T, k) ascending and rows of the index (T, k), infinity and -1 where there are fewer."""
        per_frame = 16 * features.shape[1] * (self.k + MARGIN) + (self.cells.bytes_per_frame() if self.cells else 0)
        frames = max(1, min(_MOST_FRAMES, self.budget // 2 // per_frame))
        columns = max(self.k + MARGIN, min(len(self.table), self.budget // 2 // (24 * min(frames, max(1, len(features))))))
        found = [self._find(part, columns) for part in features.split(frames)]
        return torch.cat([scores for scores, _rows in found]), torch.cat([rows for _scores, rows in found])

    def blended(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums (T, d) of rows (T, k)."""
        return (weights[:, None] @ (self.table[rows] + self.origins[self.origin_of[rows]]))[:, 0]

    def _find(self, features: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        centred = features - self.mean
        narrow = centred.to(self.rough.dtype)
        probed, distances = None, None
        if self.cells is not None:
            probed = self.cells.nearest(features)
            distances = torch.stack([row_norms(features - self.origins[probe]) for probe in probed.T], 1)
        best = features.new_full((len(features), self.k + MARGIN), INFINITY)
        rows = torch.full(best.shape, -1, device=features.device)
        for first in range(0, len(self.table), columns):
            part = slice(first, min(first + columns, len(self.table)))
            scores = self._products(narrow, part)
            if probed is not None and distances is not None:
                scores = scores + _of_cells(probed, distances, self.origin_of[part])
            some, column = scores.topk(min(self.k + MARGIN, scores.shape[1]), dim=1, largest=False)
            listed = (column + first).masked_fill_(some.isinf(), -1)
            best, chosen = torch.cat([best, some], 1).topk(best.shape[1], dim=1, largest=False)
            rows = torch.cat([rows, listed], 1).gather(1, chosen)
        return self._decide(features, rows)

    def _products(self, narrow: Tensor, part: slice) -> Tensor:
        if self.rough is self.table:
            return torch.addmm(self.known[part], narrow, self.table[part].T, alpha=-2)
        return self.known[part] - 2 * (narrow @ self.rough[part].T).float()

    def _decide(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        known = rows.clamp(min=0)
        difference = features[:, None] - self.origins[self.origin_of[known]] - self.table[known]
        scores, best = torch.where(rows < 0, INFINITY, difference.square().sum(2)).topk(self.k, dim=1, largest=False)
        return scores, rows.gather(1, best)


def _of_cells(probed: Tensor, distances: Tensor, cells: Tensor) -> Tensor:
    """(T, n): a vector's cell is as far as `distances` (T, nprobe) says of the cells `probed`, and infinitely far otherwise."""
    found = torch.where(probed[:, :1] == cells, distances[:, :1], INFINITY)
    for probe, distance in zip(probed.T[1:], distances.T[1:], strict=True):
        found = torch.where(probe[:, None] == cells, distance[:, None], found)
    return found
