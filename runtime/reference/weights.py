"""The weight file of an ML Program: 64-byte records that point at aligned arrays.

Layout (little endian): at a record's offset the sentinel 0xDEADBEEF, a data type, the array's size in bytes and its
offset in the file. The file is mapped, not read, and every offset is checked against its length.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ...errors import PackageError
from .program import DTYPES, TensorType

_RECORD = struct.Struct("<IIQQ")
SENTINEL = 0xDEADBEEF


class WeightFile:
    """Read-only view of one weight file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size == 0:
            raise PackageError(f"{path} is empty")
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def array(self, offset: int, kind: TensorType, name: str) -> np.ndarray:
        """The array of the record at `offset`, typed and shaped as declared. Raises PackageError out of bounds."""
        if offset < 0 or offset + _RECORD.size > self._bytes.size:
            raise PackageError(f"{self.path}: the record of {name} lies at {offset}, beyond the file's {self._bytes.size} bytes")
        sentinel, _code, size, start = _RECORD.unpack(self._bytes[offset : offset + _RECORD.size].tobytes())
        if sentinel != SENTINEL:
            raise PackageError(f"{self.path}: there is no weight record for {name} at {offset}")
        dtype = np.dtype(DTYPES[kind.dtype][1])
        count = 1
        for length in kind.shape:
            count *= int(length or 0)
        if size != count * dtype.itemsize:
            raise PackageError(f"{self.path}: {name} holds {size} bytes and {kind.dtype} {kind.shape} needs {count * dtype.itemsize}")
        if start % dtype.itemsize:
            raise PackageError(f"{self.path}: {name} starts at {start}, which is no multiple of its {dtype.itemsize} bytes")
        if start + size > self._bytes.size:
            raise PackageError(f"{self.path}: {name} reaches to {start + size}, beyond the file's {self._bytes.size} bytes")
        return self._bytes[start : start + size].view(dtype).reshape([int(length or 0) for length in kind.shape])
