"""faiss IVF Flat files, the `.index` that RVC's training writes, read without faiss.

Layout (little endian, checked against faiss 1.15): a four-letter code, a header, the inverted file's `nlist` and
`nprobe`, a flat quantizer with the cells' centroids, a direct map that is skipped, then the inverted lists: their
sizes, and per list that is not empty its vectors followed by their ids. Every size is compared with what the file has
left before anything of that size is made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import IndexFileError

MAGIC = b"IwFl"
_HEADER = struct.Struct("<iqqqBi")  # width, vectors, two unused numbers, is trained, metric
_L2 = 1
_FLAT = (b"IxF2", b"IxFl")  # the quantizer: of today's faiss, of those before 1.5
_NO_MAP, _ARRAY_MAP, _HASH_MAP = 0, 1, 2
MAX_WIDTH = 1 << 16
MAX_CELLS = 1 << 20  # RVC makes 16 * sqrt(n): 16,000 for a million vectors
_BLOCK_BYTES = 16 << 20
_OTHER_KINDS = {
    b"IxF2": "Flat",
    b"IxFI": "Flat",
    b"IxFl": "Flat",
    b"IHNf": "HNSW",
    b"IHNp": "HNSW",
    b"IHNs": "HNSW",
    b"IHN2": "HNSW",
    b"IHNc": "HNSW",
    b"IxPq": "PQ",
    b"IxPT": "one with a transform before it",
    b"IxSQ": "SQ",
    b"IxMp": "IDMap",
    b"IxM2": "IDMap",
    b"IvFl": "IVF Flat of a faiss before 1.3",
    b"IvFL": "IVF Flat of a faiss before 1.3",
    b"IwPQ": "IVF PQ",
    b"IwQR": "IVF PQ",
    b"IwSQ": "IVF SQ",
    b"IwSq": "IVF SQ",
}


@dataclass(frozen=True)
class IndexFile:
    """What stands before the vectors: `centroids` (cells, width) float32, `sizes` (cells,) int64, and where the lists begin."""

    path: Path
    width: int
    count: int
    nprobe: int
    centroids: NDArray[np.float32]
    sizes: NDArray[np.int64]
    start: int

    @property
    def cells(self) -> int:
        return len(self.sizes)

    def lists(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Vectors (m, width) and ids (m,) in order of their cells, some MB at a time; the vectors' memory is used again for the next.

        Raises IndexFileError where they are not what an index holds.
        """
        at_once = max(1, _BLOCK_BYTES // (4 * self.width))
        buffer = np.empty((min(at_once, self.count), self.width), np.float32)
        seen = np.zeros(self.count, bool)
        with _open(self.path) as (file, size):
            if size < self.start + self.count * (4 * self.width + 8):
                raise IndexFileError(f"{self.path} became shorter while it was read")
            position = self.start
            for length in self.sizes[self.sizes > 0].tolist():
                ids = np.empty(length, np.int64)
                file.seek(position + length * 4 * self.width)
                self._read(file, ids)
                self._check_ids(ids, seen)
                file.seek(position)
                for first in range(0, length, at_once):
                    vectors = buffer[: min(at_once, length - first)]
                    self._read(file, vectors)
                    if not np.isfinite(np.vdot(vectors, vectors)):
                        raise IndexFileError(f"{self.path} is damaged: it holds vectors that are not finite; get the file again")
                    yield vectors, ids[first : first + len(vectors)]
                position += length * (4 * self.width + 8)

    def _read(self, file: BufferedReader, target: np.ndarray) -> None:
        if file.readinto(target.data.cast("B")) != target.nbytes:
            raise IndexFileError(f"{self.path} became shorter while it was read")

    def _check_ids(self, ids: NDArray[np.int64], seen: NDArray[np.bool_]) -> None:
        if ids.min() < 0 or ids.max() >= self.count:
            raise IndexFileError(f"{self.path} is damaged: a vector's number lies outside 0 to {self.count - 1}; get the file again")
        if seen[ids].any() or len(np.unique(ids)) != len(ids):
            raise IndexFileError(f"{self.path} is damaged: two vectors have one number; get the file again")
        seen[ids] = True


def open_index(path: str | Path, width: int | None = None) -> IndexFile:
    """Checks an index without reading its vectors. `width` is the voice's: 256 for v1, 768 for v2.

    A `trained_*` file gives way to the `added_*` one beside it, as upstream has it. Raises IndexFileError.
    """
    path = added_beside(Path(path))
    with _open(path) as (file, size):
        return _parse(_Cursor(path, file, size), width)


def added_beside(path: Path) -> Path:
    """The file that upstream reads for a path: with "added" for "trained" in its name, where there is such a file."""
    added = path.with_name(path.name.replace("trained", "added")) if path.name else path
    return added if added.is_file() else path


@contextmanager
def _open(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    if not path.is_file():
        raise IndexFileError(f"the index {path} does not exist{', it is a folder' if path.is_dir() else ''}")
    try:
        with path.open("rb") as file:
            yield file, path.stat().st_size
    except OSError as error:
        raise IndexFileError(f"the index {path} cannot be read: {error.strerror or error}") from error


class _Cursor:
    """Reads forward; never asks for more than the file has left."""

    def __init__(self, path: Path, file: BufferedReader, size: int) -> None:
        self.path, self._file, self._size = path, file, size
        self.position = 0

    @property
    def left(self) -> int:
        return self._size - self.position

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise IndexFileError(f"{self.path} is truncated: it ends at byte {self._size} and has to go on; get the file again")
        data = self._file.read(length)
        self.position += len(data)
        if len(data) < length:
            raise IndexFileError(f"{self.path} became shorter while it was read")
        return data

    def skip(self, length: int) -> None:
        if length > self.left:
            raise self.damaged("its direct map is larger than the file")
        self._file.seek(length, 1)
        self.position += length

    def numbers(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def number(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def damaged(self, why: str) -> IndexFileError:
        return IndexFileError(f"{self.path} is damaged: {why}; get the file again")


def _parse(cursor: _Cursor, wanted: int | None) -> IndexFile:
    width, count = _index_header(cursor, wanted)
    cells, nprobe = cursor.number(), cursor.number()
    if not 0 < cells <= MAX_CELLS or nprobe < 1:
        raise cursor.damaged(f"it states {cells} cells, {nprobe} of them to be searched")
    centroids = _quantizer(cursor, width, cells)
    _skip_direct_map(cursor)
    sizes = _list_sizes(cursor, width, cells, count)
    needed = count * (4 * width + 8)
    if cursor.left < needed:
        raise IndexFileError(f"{cursor.path} is truncated: it states {count} vectors and has room for fewer; get the file again")
    if cursor.left > needed:
        raise cursor.damaged(f"{cursor.left - needed} bytes follow its end")
    return IndexFile(cursor.path, width, count, min(nprobe, cells), centroids, sizes, cursor.position)


def _index_header(cursor: _Cursor, wanted: int | None) -> tuple[int, int]:
    """Width and number of vectors."""
    magic = cursor.take(4) if cursor.left >= 4 else b""
    if magic in _OTHER_KINDS:
        kind = _OTHER_KINDS[magic]
        raise IndexFileError(
            f"{cursor.path} is not a feature index as RVC writes them (faiss IVF Flat) but {kind}: give the added_*.index of the training"
        )
    if magic != MAGIC or cursor.left < _HEADER.size:
        raise IndexFileError(f"{cursor.path} is not a feature index as RVC writes them (faiss IVF Flat)")
    width, count, _one, _other, trained, metric = cursor.numbers(_HEADER)
    if not 0 < width <= MAX_WIDTH or count < 0 or trained > 1:
        raise cursor.damaged(f"it states {count} vectors of width {width}")
    if wanted is not None and width != wanted:
        raise IndexFileError(f"{cursor.path} holds features of width {width} and the voice needs {wanted}: it belongs to another voice")
    if not count:
        raise IndexFileError(f"{cursor.path} holds no vectors (a 'trained' index): use the 'added' one")
    if metric != _L2:
        raise IndexFileError(f"{cursor.path} compares by another measure (faiss metric {metric}) than RVC's L2 distance")
    if count > cursor.left // (4 * width + 8):
        raise IndexFileError(f"{cursor.path} is truncated: it states {count} vectors and has room for fewer; get the file again")
    return width, count


def _quantizer(cursor: _Cursor, width: int, cells: int) -> NDArray[np.float32]:
    """The centroids (cells, width)."""
    magic = cursor.take(4)
    if magic not in _FLAT:
        raise IndexFileError(f"{cursor.path} finds its cells by other means than RVC's (a flat list of centroids): it cannot be used")
    own_width, own_count, _one, _other, _trained, metric = cursor.numbers(_HEADER)
    values = cursor.number()
    if (own_width, own_count, metric, values) != (width, cells, _L2, cells * width):
        raise cursor.damaged("its centroids do not fit its cells")
    centroids = np.frombuffer(cursor.take(4 * values), "<f4").astype(np.float32).reshape(cells, width)
    if not np.isfinite(np.vdot(centroids, centroids)):
        raise cursor.damaged("it holds centroids that are not finite")
    return centroids


def _skip_direct_map(cursor: _Cursor) -> None:
    kind = cursor.take(1)[0]
    if kind not in (_NO_MAP, _ARRAY_MAP, _HASH_MAP):
        raise cursor.damaged(f"it has a direct map of kind {kind}")
    cursor.skip(8 * cursor.number())
    if kind == _HASH_MAP:
        cursor.skip(16 * cursor.number())


def _list_sizes(cursor: _Cursor, width: int, cells: int, count: int) -> NDArray[np.int64]:
    """Vectors in each cell (cells,)."""
    if cursor.take(4) != b"ilar":
        raise IndexFileError(f"{cursor.path} keeps its vectors elsewhere (an index without lists of its own): it cannot be used")
    if (cursor.number(), cursor.number()) != (cells, 4 * width):
        raise cursor.damaged("its lists do not fit its cells")
    kind, length = cursor.take(4), cursor.number()
    if kind not in (b"full", b"sprs") or (length != cells if kind == b"full" else length % 2 or length > 2 * cells):
        raise cursor.damaged("its lists do not fit its cells")
    stored = np.frombuffer(cursor.take(8 * length), "<u8")
    if kind == b"sprs":
        numbers, filled = stored[0::2], stored[1::2]
        if len(numbers) and (numbers.max() >= cells or len(np.unique(numbers)) != len(numbers)):
            raise cursor.damaged("its lists do not fit its cells")
        stored = np.zeros(cells, np.uint64)
        stored[numbers.astype(np.int64)] = filled
    if stored.max() > count or int(stored.sum()) != count:
        raise cursor.damaged(f"its lists hold another number of vectors than the {count} it states")
    return stored.astype(np.int64)
