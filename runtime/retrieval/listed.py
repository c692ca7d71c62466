"""Faithful search on the CPU: each frame's cell is read where it lies, vector by vector, and nothing is copied."""

from __future__ import annotations

import warnings
from bisect import bisect_right

import torch
from torch import Tensor

from .cells import BoundedCells
from .distances import ROUNDING, listed_distances, row_norms, squared_norms
from .feature_index import FeatureIndex
from .ragged import INFINITY, Lists, list_ranges

_MARGIN = 4  # candidates beyond k; what they do not prove is found by differences alone
_FEW = 256  # vectors in a cell
_SHORT = 64  # vectors; lists up to so many are padded to one length
_BYTES_PER_PAIR = 64  # of a frame and a vector: positions, scores, and the same again padded


class ListedSearch:
    """Products of the pairs that share a cell, by torch's sampled matrix product; differences decide among the best."""

    def __init__(self, index: FeatureIndex, k: int, budget: int) -> None:
        self.index, self.k = index, k
        self.cells = BoundedCells(index.centroids, index.nprobe)
        self.lengths = index.offsets.diff()
        self.low_norms = squared_norms(index.vectors).mul_(
            1 - ROUNDING
        )  # makes of a product's score a lower bound, but for |x|^2 * ROUNDING
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch says once that its compressed rows are a beta
            torch.sparse_csr_tensor([0], [], [], (0, 0))
        self.pairs = max(1, budget // _BYTES_PER_PAIR)

    def find(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(T, d) -> squared distances (T, k) ascending and rows of the index (T, k), infinity and -1 where there are fewer."""
        cells = self.cells.nearest(features)
        if len(features) == 1 and self.index.nprobe == 1:
            start, end = self.index.offsets[int(cells) :][:2].tolist()
            if self.k <= end - start <= _FEW:
                return self._find_one(features, start, end)
        starts, lengths = self.index.offsets[cells], self.lengths[cells]
        scores, rows = features.new_empty(len(features), self.k), cells.new_empty(len(features), self.k)
        for frames in self._blocks(lengths.sum(1)):
            some = features[frames]
            scores[frames], rows[frames] = self._find(some, list_ranges(starts[frames], lengths[frames]))
        return scores, rows

    def blended(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums (T, d) of rows (T, k)."""
        return torch.nn.functional.embedding_bag(rows, self.index.vectors, mode="sum", per_sample_weights=weights)

    def _blocks(self, pairs: Tensor) -> list[Tensor]:
        """Frames in blocks of about equal lists that fit the budget; one with a longer list than that stands alone."""
        order = pairs.argsort(descending=True)
        shortening = [-length for length in pairs[order].tolist()]
        blocks, first = [], 0
        while first < len(shortening):
            longest = max(_SHORT, -shortening[first])
            last = min(bisect_right(shortening, -longest // 2), first + max(1, self.pairs // longest))
            if longest == _SHORT:
                last = min(len(shortening), first + max(1, self.pairs // longest))
            blocks.append(order[first:last])
            first = last
        return blocks

    def _find_one(self, feature: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
        """The same for one frame (1, d) and a short cell, where all differences take less time than finding out which."""
        exact = torch.linalg.vector_norm(self.index.vectors[start:end] - feature, dim=1).square_()
        scores, rows = exact.topk(self.k, largest=False)
        return scores[None], (rows + start)[None]

    def _find(self, features: Tensor, lists: Lists) -> tuple[Tensor, Tensor]:
        norms = row_norms(features)
        rough, rows = lists.smallest(self._products(features, lists), self.k + _MARGIN)
        exact = listed_distances(features, self.index.vectors, rows.clamp(min=0))
        scores, best = exact.masked_fill_(rows < 0, INFINITY).topk(self.k, dim=1, largest=False)
        rows_found = rows.gather(1, best)
        # What was left out is no nearer than this, rounding included.
        passed = rough[:, -1] + norms * (1 - ROUNDING)
        for frame in (scores[:, -1] > passed).nonzero().flatten().tolist():
            own = lists.rows[lists.offsets[frame] : lists.offsets[frame + 1]]
            all_exact = listed_distances(features[frame : frame + 1], self.index.vectors, own[None])[0]
            scores[frame], best_own = all_exact.topk(self.k, largest=False)
            rows_found[frame] = own[best_own]
        return scores, rows_found

    def _products(self, features: Tensor, lists: Lists) -> Tensor:
        """|y|^2 - 2xy of every pair (P,)."""
        if not len(lists.rows):
            return self.low_norms[:0]
        values, shape = self.low_norms[lists.rows], (len(features), self.index.count)
        pairs = torch.sparse_csr_tensor(lists.offsets, lists.rows, values, shape, check_invariants=False)
        return torch.sparse.sampled_addmm(pairs, features, self.index.vectors.T, beta=1.0, alpha=-2.0, out=pairs).values()
