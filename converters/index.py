"""The feature index that comes with a voice: checked before the conversion begins, kept in the library as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime.files import sha256
from ..runtime.library import INDEX
from ..runtime.retrieval import IndexFile, open_index, store_index


def check_index(path: str | Path, width: int) -> IndexFile:
    """The index, read once from end to end. Raises IndexFileError where it is damaged, of another kind or of another feature width."""
    file = open_index(path, width)
    for _vectors, _ids in file.lists():
        pass
    return file


def keep_index(file: IndexFile, folder: Path) -> dict[str, Any]:
    """Write it into a build's folder; what the manifest says of it. Raises IndexFileError and OutputError."""
    store_index(file, folder / INDEX)
    return {
        "file": file.path.name,
        "sha256": sha256(file.path),
        "stored": INDEX,
        "vectors": file.count,
        "cells": file.cells,
        "nprobe": file.nprobe,
        "width": file.width,
    }
