"""Writing so that a crash leaves the old file or the new one, and errors of the file system become one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import OutputError, UsageError

HASH_BLOCK = 1 << 20


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Within it, an OSError becomes an OutputError that names the output; so does what safetensors makes of one."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OutputError(f"{path} could not be written: {reason}") from error


def require_writable(path: Path) -> None:
    """Raises OutputError where a file could not be made at a path; makes none."""
    with output_errors(path):
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file that exists."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it becomes `path` when the block ends well and vanishes when it does not."""
    temporary = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    with output_errors(path):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary sibling folder to fill; it becomes `path` when the block ends well and vanishes when it does not.

    With `replace` it takes the place of what is there, which comes back where that fails. Without, raises UsageError where
    something is at `path` already, an empty folder excepted.
    """
    temporary, before = (path.absolute().parent / f".{secrets.token_hex(4)}" for _ in range(2))  # "." has no name of its own
    with output_errors(path):
        if not replace and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UsageError(f"{path} exists already; name a new folder, or an empty one")
        temporary.mkdir()
        try:
            yield temporary
            sync_tree(temporary)
            if replace and path.exists():
                os.rename(path, before)
            elif path.is_dir():
                path.rmdir()  # which fails where somebody has put something there meanwhile
            os.rename(temporary, path)
        except BaseException:
            if before.exists() and not path.exists():
                os.rename(before, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Have the system write out every file below a folder, so that a power cut cannot leave names without contents."""
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Atomic, readable JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file, or of a directory's files in order of their names."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file()):
        if file is not path:
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as handle:
            while block := handle.read(HASH_BLOCK):
                digest.update(block)
    return digest.hexdigest()
