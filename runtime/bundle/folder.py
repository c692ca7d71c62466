"""The files of a bundle that are plain numbers: little-endian and without a header, each with its entry in the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import sha256

HOST, VECTORS = "host", "vectors"
Entry = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


class BundleFolder:
    """Writes arrays below a folder. `host` and `vectors` are the contract's entries by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host: dict[str, Entry] = {}
        self.vectors: dict[str, Entry] = {}

    def add_host(self, name: str, values: np.ndarray | Iterable[np.ndarray], description: str) -> None:
        """A table that the host computes with; blocks of rows where it is too large to hold."""
        blocks = [values] if isinstance(values, np.ndarray) else values
        self.host[name] = self._write(f"{HOST}/{name}", blocks, description)

    def add_vector(self, name: str, values: np.ndarray, description: str) -> None:
        """A golden vector. `name` may hold slashes, which become folders."""
        self.vectors[name] = self._write(f"{VECTORS}/{name}", [values], description)

    def _write(self, stem: str, blocks: Iterable[np.ndarray], description: str) -> Entry:
        rows, tail, kind, relative, path = 0, (), "float32", stem, self.path / stem
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in blocks:
                array = plain(block)
                kind = str(array.dtype)
                file.write(array.tobytes())
                rows, tail = rows + array.shape[0], array.shape[1:]
        relative = f"{stem}.{'i32' if kind == 'int32' else 'f32'}"
        final = path.rename(self.path / relative)
        return {"file": relative, "shape": [rows, *tail], "dtype": kind, "description": description, "sha256": sha256(final)}


def plain(values: np.ndarray) -> np.ndarray:
    """As it is written: float32, or int32 for whole numbers; at least one axis. Raises ValueError where int32 is too short."""
    array = np.atleast_1d(np.asarray(values))
    if array.dtype.kind in "iu":
        if array.size and max(abs(int(array.min())), abs(int(array.max()))) >= 1 << 31:
            raise ValueError("whole numbers beyond 32 bits")
        return np.ascontiguousarray(array, "<i4")
    return np.ascontiguousarray(array, "<f4")
