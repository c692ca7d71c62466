"""Feature indexes as RVC's training makes them, written by faiss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[3] / "shared" / "real_features" / "contentvec_layer12.npy"
NO_FEATURES = "real ContentVec features are not beside this checkout (../shared/real_features)"


def clustered(count: int, width: int, seed: int = 0, groups: int = 12, spread: float = 0.3) -> NDArray[np.float32]:
    """(count, width) around a few centres, as features are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(width).standard_normal((groups, width))
    return (centres[random.integers(0, groups, count)] + spread * random.standard_normal((count, width))).astype(np.float32)


def ivf(vectors: NDArray[np.float32], cells: int, nprobe: int = 1, added: int | None = None) -> Any:
    """faiss's index of the first `added` vectors, its cells trained on all."""
    faiss.cvar.distance_compute_blas_threshold = 1 << 30  # exact cells: faiss's quicker way rounds before it decides
    index = faiss.index_factory(vectors.shape[1], f"IVF{cells},Flat")
    index.cp.niter = 5
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors[:added])
    index.nprobe = nprobe
    return index


def write(index: Any, path: Path) -> Path:
    faiss.write_index(index, str(path))
    return path
