"""The feature index that comes with a voice: checked here so far as to tell that it fits; nothing searches it yet."""

from __future__ import annotations

import struct
from pathlib import Path

from ..errors import UsageError

MAGIC = b"IwFl"  # faiss IVF Flat, the only kind RVC tools write
_HEADER = struct.Struct("<4siq")


def check_index(path: Path, width: int) -> None:
    """Raises UsageError where the file is missing, no faiss IVF Flat index, or of another feature width."""
    if not path.is_file():
        raise UsageError(f"the index {path} does not exist")
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
    if len(start) < _HEADER.size or start[:4] != MAGIC:
        raise UsageError(f"{path} is not a feature index as RVC writes them (faiss IVF Flat)")
    _magic, dimension, count = _HEADER.unpack(start)
    if dimension != width:
        raise UsageError(f"{path} holds features of width {dimension} and the voice needs {width}: it belongs to another voice")
    if path.stat().st_size < count * dimension * 4:
        raise UsageError(f"{path} is truncated: it states {count} vectors and has room for fewer")
    if count <= 0:
        raise UsageError(f"{path} holds no vectors (a 'trained' index): use the 'added' one")
