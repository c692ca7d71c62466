"""The voice's index, of RVC's kind but small: an IVF Flat over k-means centres of the target's content features, in one cell.

RVC makes many cells and looks into one. So few vectors need none, and at a cell's border the neighbours of a feature change all
at once: rounding to half precision then costs the audio more than all of the network does (docs/embedded_voice.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MOST_VECTORS = 5000  # 5 MB
LEAST_VECTORS = 39  # faiss's least for training a cell
ITERATIONS = 20
SEED = 1234


def build_index(features: NDArray[np.floating], path: Path, most: int = MOST_VECTORS) -> None:
    """Write a faiss index of features (F, 256), by at most `most` vectors. faiss is needed here and nowhere else in training.

    Raises ValueError for too few features to fill one cell.
    """
    import faiss

    vectors = np.ascontiguousarray(features, np.float32)
    if vectors.ndim != 2 or len(vectors) < LEAST_VECTORS:
        raise ValueError(f"an index needs at least {LEAST_VECTORS} feature vectors, not an array of {vectors.shape}")
    if len(vectors) > most:
        means = faiss.Kmeans(vectors.shape[1], most, niter=ITERATIONS, seed=SEED, max_points_per_centroid=64, min_points_per_centroid=1)
        means.train(vectors)
        vectors = np.ascontiguousarray(means.centroids, np.float32)
    index = faiss.index_factory(vectors.shape[1], "IVF1,Flat")
    faiss.extract_index_ivf(index).nprobe = 1
    index.train(vectors)
    index.add(vectors)
    temporary = path.with_name(f".{path.name}.partial")
    faiss.write_index(index, str(temporary))
    temporary.replace(path)
