"""Compiled packages, kept at fixed paths between runs.

Core ML specialises a compiled model for the device when it first loads it, minutes for the Neural Engine, and finds that
work again for a compiled model that lies where it lay (ml-stable-diffusion's README, FAQ; whisper-rs #67).
coremltools' MLModel compiles into a new temporary folder each time. Not yet run on a Mac.

`<key>/NAME.mlmodelc` with `<key>/entry.json` is an entry, whole or not there at all. `<key>.lock` is held shared by those
who use the entry, and alone by the one who makes or removes it. `.<key>.part` and `.<key>.gone` are on their way in and out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..downloads import cache_folder
from ..files import sha256

try:
    import fcntl
except ImportError:  # Windows, where there is no Core ML
    fcntl = None

DEFAULT_BYTES = 4 << 30
KEY_LENGTH = 32  # hex digits of a SHA-256
WAIT_SECONDS = 600.0  # for another process that compiles the same package
POLL_SECONDS = 0.02
NOTE = "entry.json"
HASHES = "hashes.json"
MAX_HASHES = 256
SETTLED_NS = 2_000_000_000  # a file written so recently may change once more and keep its time stamp
Notify = Callable[[str], None]
Compile = Callable[[Path, Path], Path]


@dataclass(frozen=True)
class Stored:
    """What lies under a key: where, how large, and when it was last opened (seconds since 1970)."""

    key: str
    path: Path
    bytes: int
    used: float


class Entry:
    """A compiled model at `path`, held until it is closed.

    `cached`: it lies in the cache; one that does not is removed when it is closed. `fresh`: it was compiled just now.
    """

    def __init__(self, path: Path, lock: IO[bytes] | None = None, *, fresh: bool) -> None:
        self.path, self.fresh = path, fresh
        self.cached = lock is not None
        self._lock = lock

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if not self.cached:
            shutil.rmtree(self.path, ignore_errors=True)

    def intact(self) -> bool:
        """Whether its files hold what was compiled."""
        try:
            note = _read_json(self.path.parent / NOTE)
            return not self.cached or _digest(self.path, note["files"]) == note["sha256"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def drop(self) -> None:
        """Close it and throw it out of the cache, unless others use it."""
        if self._lock is not None and _held(self._lock, exclusive=True):
            _remove(self.path.parent)
        self.close()

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class CompiledCache:
    """A folder of compiled packages, `max_bytes` in all: those unused for longest go first, never one that is in use.

    Where the folder cannot be used (read-only, full, no locks), packages are compiled without it and `notify` is told once.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = DEFAULT_BYTES, notify: Notify | None = None) -> None:
        self.folder = cache_folder() / "compiled" if folder is None else folder
        self.max_bytes = max_bytes
        self.notify = notify
        self._said = False

    def open(self, package: Path, toolchain: str, compile: Compile, wait: float = WAIT_SECONDS) -> Entry:
        """The compiled model of a package for a `toolchain`, which is the versions of system and compiler as text.

        `compile(package, folder)` makes it where there is none, in the folder or elsewhere, and returns its place; what it
        raises is passed on. Another process that makes the same one is waited for, `wait` seconds at most.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
            key = hashlib.sha256(f"{self._content(package)}\0{package.stem}\0{toolchain}".encode()).hexdigest()[:KEY_LENGTH]
            lock, place = self._lock(key, time.monotonic() + wait)
        except OSError as error:
            self._say(error)
            return compile_alone(package, compile)
        if lock is None:
            return compile_alone(package, compile)
        if place is not None:
            with suppress(OSError):
                os.utime(self.folder / key / NOTE)
            return Entry(place, lock, fresh=False)
        try:
            return self._make(package, key, compile, lock)
        except BaseException:
            lock.close()
            raise

    def entries(self) -> list[Stored]:
        """What it holds, the least recently used first."""
        found = []
        for note in self.folder.glob(f"[!.]*/{NOTE}"):  # not what is on its way in or out
            place = self._place(note.parent.name)
            with suppress(OSError, ValueError, KeyError, TypeError):  # it was removed meanwhile
                if place is not None:
                    found.append(Stored(note.parent.name, place, int(_read_json(note)["bytes"]), note.stat().st_mtime))
        return sorted(found, key=lambda stored: stored.used)

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(stored.bytes for stored in self.entries())

    def sweep(self) -> None:
        """Remove what processes that were ended have left: folders half made or half removed, and locks of nothing."""
        left = {path.name.split(".")[1] for kind in ("part", "gone") for path in self.folder.glob(f".*.{kind}")}
        left |= {path.stem for path in self.folder.glob("*.lock") if not (self.folder / path.stem).is_dir()}
        for key in left:
            with suppress(OSError):
                self._tidy(key)

    def _tidy(self, key: str) -> None:
        path = self.folder / f"{key}.lock"
        lock = _locked(path, exclusive=True)
        if lock is None:
            return  # someone is at work on it
        with lock:
            for kind in ("part", "gone"):
                shutil.rmtree(self.folder / f".{key}.{kind}", ignore_errors=True)
            if not (self.folder / key).exists():
                path.unlink()

    def _lock(self, key: str, until: float) -> tuple[IO[bytes] | None, Path | None]:
        """A held lock with the entry's place: shared where it is there, alone where it is yet to be made; nothing after `until`."""
        path = self.folder / f"{key}.lock"
        while True:
            there = self._place(key) is not None
            lock = _locked(path, exclusive=not there)
            if lock is not None:
                place = self._place(key)
                if (place is not None) == there:
                    return lock, place
                lock.close()
            elif time.monotonic() > until:
                return None, None
            else:
                time.sleep(POLL_SECONDS)

    def _make(self, package: Path, key: str, compile: Compile, lock: IO[bytes]) -> Entry:
        """Compile a package into the cache, its lock being held alone."""
        part, home = self.folder / f".{key}.part", self.folder / key
        made = None
        try:
            try:
                if home.exists():  # damaged, or it would have been found
                    _remove(home)
                shutil.rmtree(part, ignore_errors=True)  # of one who was killed while this process waited for the lock
                part.mkdir()
                made = compile(package, part)
                target = part / f"{package.stem}.mlmodelc"
                if made != target:
                    shutil.move(made, target)
                sizes = _sizes(target)
                note = {"name": target.name, "bytes": sum(sizes.values()), "files": sizes, "sha256": _digest(target, sizes)}
                (part / NOTE).write_text(json.dumps(note), encoding="utf-8")
                os.rename(part, home)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        except OSError as error:
            self._say(error)
            lock.close()
            if made is not None and made.exists():  # it could not be moved
                return Entry(made, fresh=True)
            return compile_alone(package, compile)
        place = self._place(key) if _held(lock, exclusive=False) else None
        if place is None:  # someone removed it between the two locks
            lock.close()
            return compile_alone(package, compile)
        self._evict()
        return Entry(place, lock, fresh=True)

    def _evict(self) -> None:
        entries = self.entries()
        excess = sum(stored.bytes for stored in entries) - self.max_bytes
        for stored in entries:
            if excess <= 0:
                return
            with suppress(OSError):
                path = self.folder / f"{stored.key}.lock"
                lock = _locked(path, exclusive=True)
                if lock is None:
                    continue  # in use
                with lock:
                    _remove(self.folder / stored.key)
                    path.unlink()
                excess -= stored.bytes

    def _place(self, key: str) -> Path | None:
        """Of a whole entry; None where there is none, or a damaged one."""
        try:
            note = _read_json(self.folder / key / NOTE)
            place = self.folder / key / str(note["name"])
            there = all((place / name).stat().st_size == size for name, size in note["files"].items())
            return place if there and place.is_dir() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _content(self, package: Path) -> str:
        """SHA-256 of a package, remembered for as long as its files have their sizes, times and inodes."""
        facts = [
            (str(path.relative_to(package)), status.st_size, status.st_mtime_ns, status.st_ino)
            for path in sorted([package, *package.rglob("*")])
            if (status := path.stat()) and path.is_file()
        ]
        name, fingerprint = str(package.resolve()), hashlib.sha256(repr(facts).encode()).hexdigest()
        known = self._hashes()
        if name in known and known[name][0] == fingerprint:
            return known[name][1]
        settled = all(changed < time.time_ns() - SETTLED_NS for _path, _size, changed, _inode in facts)
        digest = sha256(package)
        if settled:
            with suppress(OSError):
                self._remember(name, fingerprint, digest)
        return digest

    def _hashes(self) -> dict[str, tuple[str, str]]:
        try:
            items = _read_json(self.folder / HASHES).items()
            return {str(name): (str(fingerprint), str(digest)) for name, (fingerprint, digest) in items}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _remember(self, name: str, fingerprint: str, digest: str) -> None:
        path = self.folder / HASHES
        with path.with_suffix(".guard").open("a+b") as guard:
            if not _held(guard, exclusive=True):
                return  # it is hashed again next time
            known = {**self._hashes(), name: (fingerprint, digest)}
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(dict(list(known.items())[-MAX_HASHES:])), encoding="utf-8")
            os.replace(temporary, path)

    def _say(self, error: OSError) -> None:
        if self.notify is not None and not self._said:
            reason = error.strerror or str(error) or type(error).__name__
            self.notify(f"compiled models are not kept in {self.folder}: {reason}; each run compiles them again")
        self._said = True


def compile_alone(package: Path, compile: Compile) -> Entry:
    """A compiled model of this process only."""
    folder = Path(tempfile.mkdtemp(prefix="rvc-coreml-"))
    try:
        made = compile(package, folder)
        if folder not in made.parents:
            folder.rmdir()
            return Entry(made, fresh=True)
        os.rename(made, target := folder.with_name(f"{folder.name}-{made.name}"))
        return Entry(target, fresh=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, *, exclusive: bool) -> IO[bytes] | None:
    """An open lock file that is held; None where another holds it. Raises OSError where files cannot be locked."""
    try:
        lock = path.open("a+b")
    except OSError:
        if exclusive:
            raise
        lock = path.open("rb")  # to read from a folder that cannot be written to
    try:
        if _held(lock, exclusive=exclusive) and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            return lock
    except FileNotFoundError:  # its last user has removed it
        pass
    except BaseException:
        lock.close()
        raise
    lock.close()
    return None


def _held(lock: IO[bytes], *, exclusive: bool) -> bool:
    """Lock an open file, or change how it is locked, without waiting."""
    if fcntl is None:
        raise OSError("this system has no file locks")
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(home: Path) -> None:
    """An entry whose lock is held alone: out of sight at once, then off the disk."""
    gone = home.with_name(f".{home.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        os.rename(home, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path there. Raises OSError where it is none."""
    if not folder.is_dir():
        raise NotADirectoryError(20, "it is no folder")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _digest(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over these files below a folder."""
    return hashlib.sha256("".join(f"{name}\0{sha256(folder / name)}\0" for name in sorted(names)).encode()).hexdigest()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
