"""What the kill tests kill: processes that compile, load, decide and evict for as long as they live.

`python -m support.killed FOLDER` is a nursery: it imports the caches once and forks a process for every line `SEED` on
its input, so that a new one costs milliseconds; it prints the process's number. Neither torch nor coremltools is needed.
What a process finds wrong it writes to FOLDER/wrong, one line each.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rvc_coreml.runtime.placement import decisions
from rvc_coreml.runtime.placement.decisions import Decisions
from rvc_coreml.runtime.worker.compiled_cache import CompiledCache

PACKAGES = 5
FILES = 4
MAX_BYTES = 40_000
LARGEST = 4 * 6000  # what one compiled model takes at most
COUNTED, BOUNDED = 3, 12
MAX_RECORDS = 8
TOOLCHAINS = ("24A335", "24B83")
WAIT = 10.0  # seconds for a lock: a process holds one for some milliseconds


def write_packages(folder: Path) -> None:
    for index in range(PACKAGES):
        package = folder / "packages" / f"stage{index}.mlpackage"
        (package / "Data").mkdir(parents=True)
        (package / "Data" / "model").write_bytes(random.Random(index).randbytes(300))
        (package / "Manifest.json").write_text("{}")
        for file in package.rglob("*"):
            os.utime(file, (1, 1))  # as settled as files of a library are


def compiled_cache(folder: Path) -> CompiledCache:
    return CompiledCache(folder / "compiled", MAX_BYTES, lambda line: wrong(folder, line))


def counted(folder: Path) -> Decisions:
    return Decisions(folder / "counted", lambda line: wrong(folder, line))


def bounded(folder: Path) -> Decisions:
    return Decisions(folder / "bounded", lambda line: wrong(folder, line))


def compile_slowly(package: Path, folder: Path) -> Path:
    """A compiled model of some files, each ending in its own digest; half of the time elsewhere, as Core ML does it."""
    chance = random.Random(time.time_ns())
    place = folder if chance.random() < 0.5 else folder.parent.parent / "elsewhere" / f"{os.getpid()}-{time.time_ns()}"
    made = place / f"{package.stem}.mlmodelc"
    made.mkdir(parents=True)
    source = hashlib.sha256((package / "Data" / "model").read_bytes()).digest()
    for index in range(FILES):
        content = source + chance.randbytes(chance.randrange(100, 5900))
        (made / f"part{index}").write_bytes(content + hashlib.sha256(content).digest())
        time.sleep(chance.random() * 0.001)
    return made


def whole(compiled: Path, package: Path | None = None) -> bool:
    """Whether every file of a compiled model is there to its end, and of this package."""
    files = sorted(path for path in compiled.iterdir() if path.name.startswith("part"))
    contents = [path.read_bytes() for path in files]
    digests = [content[-32:] == hashlib.sha256(content[:-32]).digest() for content in contents]
    source = hashlib.sha256((package / "Data" / "model").read_bytes()).digest() if package else contents[0][:32] if contents else b""
    return len(files) == FILES and all(digests) and all(content[:32] == source for content in contents)


def new_record(old: dict[str, Any]) -> dict[str, Any]:
    count = old.get("count", 0) + 1
    return {"count": count, "filler": "x" * (count * 37 % 900), "digest": hashlib.sha256(str(count).encode()).hexdigest()}


def sound(record: dict[str, Any]) -> bool:
    return record["digest"] == hashlib.sha256(str(record["count"]).encode()).hexdigest()


def wrong(folder: Path, line: str) -> None:
    append(folder / "wrong", line + "\n")


def append(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, text.encode())
    os.close(handle)


def live(folder: Path, seed: int) -> None:
    """Until it is killed. An updated count is written down when the update has returned."""
    chance = random.Random(seed)
    while True:
        package = folder / "packages" / f"stage{chance.randrange(PACKAGES)}.mlpackage"
        began = time.monotonic()
        entry = compiled_cache(folder).open(package, chance.choice(TOOLCHAINS), compile_slowly, WAIT)
        if not whole(entry.path, package):
            wrong(folder, f"a torn entry was handed out: {entry.path}")
        if time.monotonic() - began > WAIT:  # without a lock's trouble it may be out of the cache: removed as soon as it was made
            wrong(folder, f"a lock was held for {WAIT} s: {entry.path}")
        time.sleep(chance.random() * 0.001)
        if not whole(entry.path, package):
            wrong(folder, f"an entry was removed under its user: {entry.path}")
        entry.drop() if chance.random() < 0.1 else entry.close()
        key = f"key{chance.randrange(COUNTED)}"
        if not sound(counted(folder).update(key, new_record)):
            wrong(folder, f"a torn record was read: {key}")
        append(folder / "updated", f"{key}\n")
        other = f"other{chance.randrange(BOUNDED)}"
        bounded(folder).store(other, new_record({}))
        found = bounded(folder).load(other)  # the other process may have tidied it away
        if found is not None and not sound(found):
            wrong(folder, f"a torn record was read: {other}")


def nursery(folder: Path) -> None:
    decisions.MAX_RECORDS = MAX_RECORDS
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                live(folder, int(line))
            except BaseException as error:  # noqa: BLE001 - it is reported
                wrong(folder, f"{type(error).__name__}: {error}")
            finally:
                os._exit(1)
        print(child, flush=True)
    shutil.rmtree(folder / "elsewhere", ignore_errors=True)


if __name__ == "__main__":
    nursery(Path(sys.argv[1]))
