"""The feature index that comes with a voice: read without faiss, stored as safetensors, searched in torch on any device."""

from __future__ import annotations

from pathlib import Path

from .feature_index import FeatureIndex, read_index, store_index
from .index_file import IndexFile, open_index
from .search import Retriever


def load_index(path: str | Path) -> FeatureIndex:
    """The index that a model library keeps beside its voice. Raises IndexFileError."""
    return FeatureIndex.load(path)


__all__ = ["FeatureIndex", "IndexFile", "Retriever", "load_index", "open_index", "read_index", "store_index"]
