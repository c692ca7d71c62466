"""What this machine has found out about compute units, remembered between runs. Needs neither torch nor coremltools.

One JSON file for each key. It is replaced whole, under a lock that the system gives up when a process dies, so that a
kill at any moment leaves the old record or the new one. Where nothing can be written, records live as long as the process.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ...errors import RvcCoremlError
from ..downloads import cache_folder, lock
from ..files import write_json

FORMAT_VERSION = 1
MAX_RECORDS = 256  # files; the oldest go first
MAX_RECORD_BYTES = 1 << 20
LOCK_SECONDS = 5.0  # a process holds the lock for milliseconds: one that holds it longer is stopped, and is not waited for
_LOCK = ".lock"
_PAUSE = 0.02  # seconds between attempts to lock
Record = dict[str, Any]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Key:
    """What a decision depends on: the program without its weights, the chip, the system's build, and the tools."""

    program: str
    chip: str
    os_build: str
    coremltools: str
    rvc_coreml: str

    @property
    def digest(self) -> str:
        """The record's name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


class Decisions:
    """Records by key. `notify` gets one line, once, where the folder cannot be used."""

    def __init__(self, folder: Path | None = None, notify: Notify = lambda _line: None) -> None:
        self.folder = cache_folder() / "placement" if folder is None else folder
        self._notify = notify
        self._kept: dict[str, Record] = {}  # what could not be written
        self._told = False

    def load(self, key: str) -> Record | None:
        """The record, or None where there is none. A damaged file is none: its candidates are measured anew."""
        if key in self._kept:
            return copy.deepcopy(self._kept[key])
        path = self._path(key)
        try:
            if path.stat().st_size > MAX_RECORD_BYTES:
                return None
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            return None
        return content["record"] if isinstance(content.get("record"), dict) else None

    def store(self, key: str, record: Mapping[str, Any]) -> None:
        """Replace a record. Never raises for the file system: what cannot be written is kept for this process."""
        self.update(key, lambda _old: dict(record))

    def update(self, key: str, change: Callable[[Record], Record]) -> Record:
        """Replace a record by what `change` makes of it as it is now ({} where there is none); two processes lose nothing."""
        record: Record | None = None
        try:
            with self._locked() as alone:
                record = change(self.load(key) or {})
                if alone:
                    self._tidy()
                write_json(self._path(key), {"format_version": FORMAT_VERSION, "record": record})
                self._kept.pop(key, None)
        except (OSError, RvcCoremlError) as error:
            record = change(self.load(key) or {}) if record is None else record
            self._kept[key] = copy.deepcopy(record)
            self._tell(error)
        return record

    def forget(self, key: str) -> None:
        """Remove a record."""
        self._kept.pop(key, None)
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if not key.isalnum():
            raise ValueError(f"{key!r} is no key")
        return self.folder / f"{key}.json"

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """The folder, held against other processes; False where one has held it for too long: files are replaced whole anyway."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("a") as file:
            yield _held(file)

    def _tidy(self) -> None:
        """Remove what killed processes left, and the oldest records beyond the bound. The lock is held."""
        with os.scandir(self.folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".json")]
        for name in names:
            if name.startswith("."):
                (self.folder / name).unlink(missing_ok=True)
        records = [name for name in names if not name.startswith(".")]
        if len(records) < MAX_RECORDS:
            return
        oldest = sorted(records, key=lambda name: _modified(self.folder / name))
        for name in oldest[: len(records) - MAX_RECORDS + 1]:
            (self.folder / name).unlink(missing_ok=True)

    def _tell(self, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._notify(f"what was found about compute units is not remembered: {self.folder} cannot be used ({reason})")


def _held(file: IO[Any]) -> bool:
    deadline = time.monotonic() + LOCK_SECONDS
    while not lock(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _modified(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0
