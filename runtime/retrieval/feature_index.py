"""A feature index in memory and in a model library, as one safetensors file whose vectors are mapped and not read.

Tensors: `ids` (n,) and `offsets` (cells + 1,) int64, `centroids` (cells, width) and `vectors` (n, width) float32, the
vectors in order of their cells; `nprobe` stands in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import IndexFileError
from ..files import atomic_path
from .index_file import IndexFile, open_index

FORMAT = "rvc-coreml feature index 1"
_ALIGNMENT = 64  # bytes; where the mapped vectors begin
_CHECKED_AT_ONCE = 1 << 22  # values
_DTYPES = {"ids": "I64", "offsets": "I64", "centroids": "F32", "vectors": "F32"}


@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """`centroids` (cells, width) float32, `vectors` (n, width) float32 by cell, their `ids` (n,) int64, `offsets` (cells + 1,) int64."""

    centroids: Tensor
    vectors: Tensor
    ids: Tensor
    offsets: Tensor
    nprobe: int

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def count(self) -> int:
        return self.vectors.shape[0]

    @property
    def cells(self) -> int:
        return self.centroids.shape[0]

    def save(self, path: str | Path) -> None:
        """One safetensors file, the old one or the new one at any time. Raises OutputError."""
        blocks = (self.vectors.numpy()[first : first + 4096] for first in range(0, self.count, 4096))
        head = _Head(self.centroids.numpy(), self.offsets.numpy(), self.nprobe, self.count)
        _write(Path(path), head, ((block, None) for block in blocks), self.ids.numpy())

    @classmethod
    def load(cls, path: str | Path) -> FeatureIndex:
        """Checked and mapped: the vectors are read from the file when they are used. Raises IndexFileError."""
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
                nprobe = _check_shapes(path, file.metadata() or {}, shapes)
                tensors = {name: file.get_tensor(name) for name in _DTYPES}
        except (OSError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error
        index = cls(tensors["centroids"], tensors["vectors"], tensors["ids"], tensors["offsets"], nprobe)
        index._check_values(path)
        return index

    def _check_values(self, path: Path) -> None:
        lengths = self.offsets.diff()
        if self.offsets[0] != 0 or self.offsets[-1] != self.count or bool((lengths < 0).any()):
            raise _damaged(path, "its cells do not fit its vectors")
        if bool(((self.ids < 0) | (self.ids >= self.count)).any()) or int(self.ids.bincount(minlength=self.count).max()) != 1:
            raise _damaged(path, "its vectors are not numbered from 0 on")
        for values in (self.centroids, self.vectors):
            for part in values.flatten().split(_CHECKED_AT_ONCE):
                if not bool(part.dot(part).isfinite()):
                    raise _damaged(path, "it holds values that are not finite")


def read_index(path: str | Path, width: int | None = None) -> FeatureIndex:
    """A faiss IVF Flat file in memory. `width` is the voice's: 256 for v1, 768 for v2. Raises IndexFileError.

    For width and number of vectors alone, `open_index` reads far less.
    """
    file = open_index(path, width)
    vectors, ids = np.empty((file.count, file.width), np.float32), np.empty(file.count, np.int64)
    row = 0
    for block, numbers in file.lists():
        vectors[row : row + len(block)], ids[row : row + len(block)] = block, numbers
        row += len(block)
    return FeatureIndex(
        torch.from_numpy(file.centroids), torch.from_numpy(vectors), torch.from_numpy(ids), torch.from_numpy(_offsets(file)), file.nprobe
    )


def store_index(file: IndexFile, target: Path) -> None:
    """A faiss file as `FeatureIndex.load` reads it, in some MB of memory. Raises IndexFileError and OutputError."""
    ids = np.empty(file.count, np.int64)
    _write(target, _Head(file.centroids, _offsets(file), file.nprobe, file.count), file.lists(), ids)


def _offsets(file: IndexFile) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(file.sizes)])


@dataclass(frozen=True)
class _Head:
    centroids: NDArray[np.float32]
    offsets: NDArray[np.int64]
    nprobe: int
    count: int


def _write(path: Path, head: _Head, blocks: Iterable[tuple[np.ndarray, np.ndarray | None]], ids: NDArray[np.int64]) -> None:
    """safetensors by hand, since the library wants all bytes at once. Blocks may bring the ids, which are filled in then."""
    cells, width = head.centroids.shape
    sizes = {"ids": (head.count,), "offsets": (cells + 1,), "centroids": (cells, width), "vectors": (head.count, width)}
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "nprobe": str(head.nprobe)}}
    begin, positions = 0, {}
    for name, shape in sizes.items():
        positions[name] = begin
        end = begin + int(np.prod(shape)) * (8 if _DTYPES[name] == "I64" else 4)
        header[name] = {"dtype": _DTYPES[name], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    text += b" " * (-(8 + len(text) + positions["vectors"]) % _ALIGNMENT // 8 * 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        data = 8 + len(text)
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(data + positions["offsets"])
        file.write(np.ascontiguousarray(head.offsets, "<i8").data)
        file.write(np.ascontiguousarray(head.centroids, "<f4").data)
        row = 0
        for vectors, numbers in blocks:
            file.write(np.ascontiguousarray(vectors, "<f4").data)
            if numbers is not None:
                ids[row : row + len(numbers)] = numbers
            row += len(vectors)
        file.seek(data)
        file.write(np.ascontiguousarray(ids, "<i8").data)


def _check_shapes(path: Path, metadata: dict[str, str], found: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """nprobe, where the file's tensors are those of an index and fit together."""
    if metadata.get("format") != FORMAT or set(found) != set(_DTYPES):
        raise _damaged(path, "it is no stored feature index")
    for name, dtype in _DTYPES.items():
        if found[name][0] != dtype or len(found[name][1]) != (1 if dtype == "I64" else 2):
            raise _damaged(path, f"{name} has another type or shape")
    (count, width), (cells, own_width) = found["vectors"][1], found["centroids"][1]
    if not (count and width and cells) or own_width != width or found["ids"][1] != (count,) or found["offsets"][1] != (cells + 1,):
        raise _damaged(path, "its tensors do not fit together")
    text = metadata.get("nprobe", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= cells):
        raise _damaged(path, "it does not say how many cells to search")
    return int(text)


def _damaged(path: Path, why: str) -> IndexFileError:
    return IndexFileError(f"the stored index {path} is damaged ({why}): convert the voice again")
