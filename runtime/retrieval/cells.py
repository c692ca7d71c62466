"""The cells that a frame's neighbours are looked for in: those with the nearest centroids."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import MARGIN, ROUNDING, listed_distances, row_norms, squared_norms

_DIRECTIONS = 63  # and one column for what lies outside them
_FEW_CELLS = 512  # not worth a bound
_ITERATIONS = 4
_CANDIDATES = (5, 15, 127)  # beyond nprobe: enough for nine frames of speech in ten; for 98 in 100; for silence
_TOGETHER, _FEW_FRAMES = 8, 16
_SCORES_BYTES = 4 << 20  # of one block of frames; stays in the cache


class BoundedCells:
    """For the CPU: lower bounds rule nearly all centroids out, differences decide among the rest, and the result is proven.

    With the strongest directions of the centroids as an orthonormal basis, x splits into a part x1 inside it and a rest of
    length r(x), and x.c <= x1.c1 + r(x) r(c). That takes 64 products for each centroid instead of 768, and of speech
    it leaves about five centroids in 5,000. Frames that it does not settle are compared with all centroids.
    """

    def __init__(self, centroids: Tensor, nprobe: int) -> None:
        self.nprobe = nprobe
        self.mean = centroids.mean(0)
        self.centred = centroids - self.mean
        norms = squared_norms(self.centred)
        self.low_norms = norms * (1 - ROUNDING)  # makes of any product's score a lower bound, but for |x|^2 * ROUNDING
        self.basis = self.bounds = None
        if len(centroids) > _FEW_CELLS and centroids.shape[1] > 2 * _DIRECTIONS:
            self.basis = _strongest_directions(self.centred)
            self.bounds = _reduced(self.centred, norms, self.basis)

    def nearest(self, features: Tensor) -> Tensor:
        """(T, d) -> (T, nprobe) int64, nearest first."""
        at_once = max(16, _SCORES_BYTES // (4 * len(self.centred)))
        centred = features - self.mean
        norms = row_norms(centred)
        cells = torch.empty(len(centred), self.nprobe, dtype=torch.int64)
        left = torch.arange(len(centred))
        if self.basis is not None and self.bounds is not None:
            reduced = _reduced(centred, norms, self.basis)
            for more in _CANDIDATES:
                left = self._settle(cells, left, centred, norms, reduced, self.bounds, more, at_once)
        for more in _CANDIDATES:
            left = self._settle(cells, left, centred, norms, centred, self.centred, more, at_once)
        for frame in left.tolist():  # more centroids at one distance than that
            exact = torch.linalg.vector_norm(self.centred - centred[frame], dim=1)
            cells[frame] = exact.topk(self.nprobe, largest=False).indices
        return cells

    def _settle(
        self, cells: Tensor, left: Tensor, centred: Tensor, norms: Tensor, ours: Tensor, theirs: Tensor, more: int, at_once: int
    ) -> Tensor:
        """Cells of the frames `left`, from bounds by the products of `ours` and `theirs`; the frames for which that proves nothing."""
        if not len(left):
            return left
        unsettled = []
        scratch = torch.empty(min(len(left), at_once), len(theirs))  # used again: fresh memory costs as much as the work
        for frames in left.split(at_once):
            whole = len(frames) == len(centred)
            some, own, rows = (centred, norms, ours) if whole else (centred[frames], norms[frames], ours[frames])
            lower = torch.addmm(self.low_norms, rows, theirs.T, alpha=-2, out=scratch[: len(rows)])
            found, proven = self._best(some, own, lower, self.nprobe + more)
            if whole:
                cells.copy_(found)
            else:
                cells[frames] = found
            if not bool(proven.all()):
                unsettled.append(frames[~proven])
        return torch.cat(unsettled) if unsettled else left[:0]

    def _best(self, centred: Tensor, norms: Tensor, lower: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The nearest (T, nprobe) among the `count` centroids of the lowest bounds (less |x|^2), and whether no other is nearer (T,)."""
        bounds, candidates = lowest(lower, min(count, len(self.centred)))
        exact = listed_distances(centred, self.centred, candidates)
        nearest, best = exact.topk(self.nprobe, dim=1, largest=False)
        proven = nearest[:, -1] - norms * (1 - ROUNDING) <= bounds[:, -1]
        return candidates.gather(1, best), proven if count < len(self.centred) else torch.ones_like(proven)


class DeviceCells:
    """For a GPU: all products at once, and differences decide among the best; nothing comes back to the host."""

    def __init__(self, centroids: Tensor, nprobe: int) -> None:
        self.nprobe = nprobe
        self.mean = centroids.mean(0)
        self.centred = centroids - self.mean
        self.norms = squared_norms(self.centred)
        self.candidates = min(len(centroids), nprobe + MARGIN - 1)

    def nearest(self, features: Tensor) -> Tensor:
        """(T, d) -> (T, nprobe) int64, nearest first."""
        centred = features - self.mean
        rough = torch.addmm(self.norms, centred, self.centred.T, alpha=-2)
        candidates = rough.topk(self.candidates, dim=1, largest=False).indices
        exact = (self.centred[candidates] - centred[:, None]).square().sum(2)
        best = exact.topk(self.nprobe, dim=1, largest=False).indices
        return candidates.gather(1, best)

    def bytes_per_frame(self) -> int:
        """Memory that a frame takes while its cells are found."""
        return 4 * (len(self.centred) + 3 * self.candidates * self.centred.shape[1])


def lowest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of each row's lowest (T, count), ascending: the lowest of columns taken together first, which vector units do at once."""
    frames, columns = scores.shape
    together = columns // _TOGETHER
    if frames < _FEW_FRAMES or count * _TOGETHER > together:
        return scores.topk(count, dim=1, largest=False)
    grouped = scores[:, : _TOGETHER * together].view(frames, _TOGETHER, together)
    groups = grouped.amin(1).topk(count, dim=1, largest=False).indices[:, None].expand(-1, _TOGETHER, -1)
    rest = torch.arange(_TOGETHER * together, columns).expand(frames, -1)
    listed = torch.cat([(groups + together * torch.arange(_TOGETHER)[:, None]).flatten(1), rest], 1)
    values = torch.cat([grouped.gather(2, groups).flatten(1), scores[:, _TOGETHER * together :]], 1)
    best, chosen = values.topk(count, dim=1, largest=False)
    return best, listed.gather(1, chosen)


def _reduced(centred: Tensor, norms: Tensor, basis: Tensor) -> Tensor:
    """(n, d) -> (n, 64): inside the basis, and the length of what is outside, never too short."""
    inside = centred @ basis
    outside = (norms - row_norms(inside)).clamp_(min=0).add_(norms, alpha=ROUNDING).sqrt_()
    return torch.cat([inside, outside[:, None]], 1)


def _strongest_directions(centred: Tensor) -> Tensor:
    """(n, d) -> (d, 63) orthonormal, by subspace iteration from a fixed start."""
    start = torch.randn(centred.shape[1], _DIRECTIONS, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
    return basis.contiguous()
