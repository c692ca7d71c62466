"""The weight file of an ML Program: 64-byte records that point at aligned arrays.

Layout (little endian): at a record's offset the sentinel 0xDEADBEEF, a data type, the array's size in bytes and its
offset in the file; for values narrower than a byte, the bits of padding in the last byte. The file is mapped, not
read, and every offset is checked against its length.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from ...errors import PackageError
from .program import DTYPES, SUB_BYTE_BITS, TensorType

_RECORD = struct.Struct("<IIQQ")
SENTINEL = 0xDEADBEEF
_UNPACKED_AT_ONCE = 1 << 20  # values; a multiple of 8, so that each part begins with a byte


class WeightFile:
    """Private view of one weight file: what is written to its arrays never reaches the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size == 0:
                raise PackageError(f"{path} is empty")
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise PackageError(f"{path} cannot be read: {error}") from error
        self._arrays: dict[tuple[int, str, tuple[int, ...]], np.ndarray] = {}  # constants that share a record share its array

    def array(self, offset: int, kind: TensorType, name: str) -> np.ndarray:
        """The array of the record at `offset`, typed and shaped as declared. Raises PackageError out of bounds."""
        if offset < 0 or offset + _RECORD.size > self._bytes.size:
            raise PackageError(f"{self.path}: the record of {name} lies at {offset}, beyond the file's {self._bytes.size} bytes")
        sentinel, _code, size, start = _RECORD.unpack(self._bytes[offset : offset + _RECORD.size].tobytes())
        if sentinel != SENTINEL:
            raise PackageError(f"{self.path}: there is no weight record for {name} at {offset}")
        dtype = np.dtype(DTYPES[kind.dtype][1])
        count = kind.count or 0
        needed = stored_bytes(kind.dtype, count)
        if size != needed:
            raise PackageError(f"{self.path}: {name} holds {size} bytes and {kind.dtype} {kind.shape} needs {needed}")
        if start % dtype.itemsize:
            raise PackageError(f"{self.path}: {name} starts at {start}, which is no multiple of its {dtype.itemsize} bytes")
        if start + size > self._bytes.size:
            raise PackageError(f"{self.path}: {name} reaches to {start + size}, beyond the file's {self._bytes.size} bytes")
        shape = tuple(int(length or 0) for length in kind.shape)
        if (offset, kind.dtype, shape) not in self._arrays:
            stored = self._bytes[start : start + size]
            flat = (offset, kind.dtype, (count,))
            if flat not in self._arrays:
                self._arrays[flat] = unpack_bits(stored, kind.dtype, count) if kind.dtype in SUB_BYTE_BITS else stored.view(dtype)
            self._arrays[offset, kind.dtype, shape] = self._arrays[flat].reshape(shape)
        return self._arrays[offset, kind.dtype, shape]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self._bytes.size)

    def forget_pages(self) -> None:
        """Lets the system drop what was read; it comes back from the file when it is read again."""
        mapped: mmap.mmap | None = getattr(self._bytes, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def stored_bytes(dtype: str, count: int) -> int:
    """Bytes that `count` values of a type take in a file, packed where they are narrower than a byte."""
    if dtype in SUB_BYTE_BITS:
        return -(-count * SUB_BYTE_BITS[dtype] // 8)
    return count * np.dtype(DTYPES[dtype][1]).itemsize


def unpack_bits(stored: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """`count` values of a type narrower than a byte, one to a byte; the first lies in the lowest bits."""
    width = SUB_BYTE_BITS[dtype]
    values = np.empty(count, np.uint8)
    for start in range(0, count, _UNPACKED_AT_ONCE):  # spreading bits takes eight bytes for each value
        some = min(_UNPACKED_AT_ONCE, count - start)
        first = start * width // 8
        bits = np.unpackbits(stored[first : first + -(-some * width // 8)], bitorder="little")[: some * width]
        values[start : start + some] = np.packbits(bits.reshape(some, width), axis=1, bitorder="little").reshape(some)
    if dtype.startswith("u"):
        return values
    sign = 1 << (width - 1)
    return (values ^ sign).astype(np.int8) - np.int8(sign)
