"""A voice's neighbours of each frame, and the frame blended with them, on whatever device the features are on."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ...errors import UsageError
from .dense import DenseSearch
from .distances import row_norms
from .feature_index import FeatureIndex
from .listed import ListedSearch
from .padded import PaddedSearch

NEIGHBOURS = 8  # RVC-WebUI searches for 8
NO_SCORE = 3.4028234663852886e38  # faiss: the largest float32 stands where a cell holds fewer
_FRAMES_BLENDED = 2048  # at once
BUDGET = 512 << 20  # bytes of work beyond the index
MODES = ("faithful", "exact")
STRATEGIES = ("listed", "padded", "dense")
_SKEWED = 64  # a cell of more than one vector in so many: gathering padded cells would cost more than scoring all vectors


class Search(Protocol):
    """One way of finding; finite features in, infinity and -1 where a cell holds fewer than k."""

    def find(self, features: Tensor) -> tuple[Tensor, Tensor]: ...

    def blended(self, rows: Tensor, weights: Tensor) -> Tensor: ...


class Retriever:
    """Finds and blends. `faithful` looks into the cells that the index file asks for, as faiss does; `exact` at all vectors.

    `dtype` float16 halves what a GPU reads to find candidates; float32 decides. On the CPU it makes no difference.
    `budget` bounds the memory of a search in bytes. `strategy` overrides what the device suggests, for measurements.
    """

    def __init__(
        self,
        index: FeatureIndex,
        device: str | torch.device = "cpu",
        mode: str = "faithful",
        dtype: torch.dtype = torch.float32,
        k: int = NEIGHBOURS,
        *,
        budget: int = BUDGET,
        strategy: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"retrieval {mode!r} is not known; give {' or '.join(MODES)}")
        self.index, self.mode, self.k = index, mode, k
        self.device = torch.device(device)
        self.strategy = strategy or _suggested(index, self.device, mode)
        self.ids = index.ids.to(self.device)
        half = dtype if self.device.type != "cpu" or strategy is not None else torch.float32
        with torch.inference_mode():
            self._search = self._made(half, budget)

    def search(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (T, d) -> squared L2 distances (T, k) float32, ascending, and the vectors' ids (T, k) int64.

        Where the probed cells hold fewer than k: the largest float32 and -1, as faiss has it.
        """
        with torch.inference_mode():
            scores, rows = self._find(self._checked(features))
            return scores.clamp_(max=NO_SCORE), torch.where(rows < 0, rows, self.ids[rows.clamp(min=0)])

    def blend(self, features: Tensor, rate: float) -> Tensor:
        """Features (T, d) -> rate * neighbours + (1 - rate) * features, the neighbours weighted by 1 / distance^4 (the score squared).

        Of exact hits, where upstream divides by zero, the neighbours are those hits alone; a frame without any
        neighbour stays as it is. Upstream's index_rate is `rate`, 0 to 1.
        """
        if not (math.isfinite(rate) and 0 <= rate <= 1):
            raise UsageError(f"the share of retrieved features is {rate}; give 0 to 1")
        checked = self._checked(features)
        if rate == 0:
            return features
        with torch.inference_mode():
            scores, rows = self._find(checked)
            nearest = scores[:, :1]
            weights = torch.where(scores == nearest, 1.0, (nearest / scores).square())  # 0 where a score is infinite
            found = rows[:, :1] >= 0
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
            parts = zip(rows.clamp(min=0).split(_FRAMES_BLENDED), weights.split(_FRAMES_BLENDED), strict=True)
            blended = torch.cat([self._search.blended(some, share) for some, share in parts])
            return torch.where(found, rate * blended + (1 - rate) * checked, checked).to(features.dtype)

    def _find(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and rows (T, k); frames that are not finite have no neighbours."""
        if not len(features):
            return features.new_empty(0, self.k), torch.empty(0, self.k, dtype=torch.int64, device=features.device)
        if self.device.type == "cpu" and math.isfinite(float(torch.linalg.vector_norm(features))):
            return self._search.find(features)
        odd = ~row_norms(features).isfinite()[:, None]
        scores, rows = self._search.find(features.masked_fill(odd, 0))
        return scores.masked_fill_(odd, math.inf), rows.masked_fill_(odd, -1)

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.index.width:
            raise UsageError(f"features of shape {tuple(features.shape)} cannot be searched: the index has width {self.index.width}")
        return features.to(self.device, torch.float32)

    def _made(self, dtype: torch.dtype, budget: int) -> Search:
        if self.strategy == "listed":
            return ListedSearch(self.index, self.k, budget)
        if self.strategy == "padded":
            return PaddedSearch(self.index, self.device, dtype, self.k, budget)
        if self.strategy == "dense":
            return DenseSearch(self.index, self.device, dtype, self.k, budget, faithful=self.mode == "faithful")
        raise UsageError(f"search strategy {self.strategy!r} is not known; give one of {', '.join(STRATEGIES)}")


def _suggested(index: FeatureIndex, device: torch.device, mode: str) -> str:
    """How to search: the CPU reads cells in place; a GPU gathers them, or scores everything where one cell is far too long."""
    if mode == "exact":
        return "dense"
    if device.type == "cpu":
        return "listed"
    longest = int(index.offsets.diff().max())
    return "dense" if longest > max(index.count // _SKEWED, 1 << 11) else "padded"
