"""Killing a process at any moment leaves caches that still work: two at once on the same caches, SIGKILLed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rvc_coreml.runtime.placement import decisions
from support import killed

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


class Nursery:
    """Starts the processes that are to be killed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def new(self, seed: int) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(seed, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    tests = str(Path(__file__).resolve().parent)
    command = [sys.executable, "-m", "support.killed", str(folder)]
    with subprocess.Popen(command, cwd=tests, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Nursery(process)


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    while True:  # it is gone when the nursery, its parent, ignores it and its number is free
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.0005)


def opened(folder: Path, index: int) -> Path:
    """The entry of a package, closed again."""
    package = folder / "packages" / f"stage{index}.mlpackage"
    cache = killed.compiled_cache(folder)
    cache.max_bytes = 1 << 20
    with cache.open(package, "24A335", killed.compile_slowly) as entry:
        assert entry.cached
        return entry.path.parent


def test_what_is_on_its_way_in_or_out_is_no_entry_and_is_not_evicted(tmp_path: Path) -> None:
    """`.key.part` holds a whole entry for a moment before it is renamed, and so does `.key.gone` after."""
    killed.write_packages(tmp_path)
    homes = [opened(tmp_path, index) for index in range(3)]
    halves = [home.rename(home.with_name(f".{home.name}.{kind}")) for home, kind in zip(homes[:2], ("part", "gone"), strict=True)]
    cache = killed.compiled_cache(tmp_path)
    assert [stored.key for stored in cache.entries()] == [homes[2].name]
    cache.max_bytes = 0
    cache._evict()
    assert not homes[2].exists()
    assert all(half.exists() for half in halves)
    cache.sweep()
    assert [path.name for path in cache.folder.iterdir() if not path.name.startswith("hashes")] == []


def test_what_a_killed_process_left_while_this_one_waited_for_it_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed.write_packages(tmp_path)
    home = opened(tmp_path, 0)
    left = home.rename(home.with_name(f".{home.name}.part"))
    (left / "rest").write_text("half")
    monkeypatch.setattr(killed.CompiledCache, "sweep", lambda _self: None)  # it was swept before the other one was killed
    assert opened(tmp_path, 0) == home
    assert not left.exists()
    assert failures(tmp_path) == []


def test_the_caches_work_after_every_one_of_25_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, kills=25, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_the_caches_work_after_every_one_of_200_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    run(tmp_path, monkeypatch, kills=200, seed=seed)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(decisions, "MAX_RECORDS", killed.MAX_RECORDS)
    killed.write_packages(folder)
    alive: list[int] = []
    cached: list[bool] = []
    with nursery(folder) as children:
        try:
            done = 0
            while done < kills:
                while len(alive) < 2:
                    alive.append(children.new(chance.randrange(1 << 30)))
                time.sleep(chance.uniform(0.002, 0.06))
                for _ in range(chance.choice((1, 1, 2))):
                    kill(alive.pop(chance.randrange(len(alive))))
                    done += 1
                cached.append(check_that_they_work(folder, chance))
                if not alive:
                    check_what_lies_there(folder)
        finally:
            for process in alive:
                kill(process)
    check_what_lies_there(folder)
    check_the_counts(folder, kills + 2)
    assert cached.count(False) <= len(cached) // 10  # an entry may be removed as soon as it is made


def failures(folder: Path) -> list[str]:
    path = folder / "wrong"
    return path.read_text().splitlines() if path.exists() else []


def check_that_they_work(folder: Path, chance: random.Random) -> bool:
    """The survivor, if there is one, goes on at the same time. Whether the compiled model lies in the cache."""
    package = folder / "packages" / f"stage{chance.randrange(killed.PACKAGES)}.mlpackage"
    started = time.monotonic()
    with killed.compiled_cache(folder).open(package, chance.choice(killed.TOOLCHAINS), killed.compile_slowly, killed.WAIT) as entry:
        cached = entry.cached
        assert killed.whole(entry.path, package)
    assert time.monotonic() - started < killed.WAIT / 2
    started = time.monotonic()
    assert killed.sound(killed.counted(folder).update("key0", killed.new_record))
    assert time.monotonic() - started < decisions.LOCK_SECONDS / 2
    killed.append(folder / "updated", "key0\n")
    assert failures(folder) == []
    return cached


def check_what_lies_there(folder: Path) -> None:
    """Nobody is at work now: nothing is torn, and what was left half done goes at the next use."""
    compiled = folder / "compiled"
    cache = killed.compiled_cache(folder)
    homes = [path for path in compiled.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for home in homes:
        (model,) = home.glob("*.mlmodelc")
        assert killed.whole(model), home
    assert {stored.key for stored in cache.entries()} == {home.name for home in homes}
    cache.sweep()
    names = {path.name for path in compiled.iterdir()}
    expected = {home.name for home in homes} | {f"{home.name}.lock" for home in homes}
    assert names - expected <= {"hashes.json", "hashes.guard", "hashes.tmp"}  # one each, however many were killed
    assert cache.size() <= killed.MAX_BYTES + 2 * killed.LARGEST  # killed before it could evict; the next one does
    for records in (killed.counted(folder), killed.bounded(folder)):
        records.folder.mkdir(exist_ok=True)  # where all were killed before they came to it
        names = {path.name for path in records.folder.iterdir()}
        whole = {name for name in names if name.endswith(".json") and not name.startswith(".")}
        for name in whole:
            found = records.load(name.removesuffix(".json"))
            assert found is not None, name
            assert killed.sound(found), name
        records.update("key0", killed.new_record)
        if records.folder.name == "counted":
            killed.append(folder / "updated", "key0\n")
        names = {path.name for path in records.folder.iterdir()}
        assert len([name for name in names if name.endswith(".json")]) <= killed.MAX_RECORDS
        assert {name for name in names if name.startswith(".")} <= {".lock"}
    assert failures(folder) == []


def check_the_counts(folder: Path, most: int) -> None:
    """No update that had returned is lost; an update may have been written and its process killed before it said so."""
    updated = (folder / "updated").read_text().splitlines()
    for index in range(killed.COUNTED):
        key = f"key{index}"
        found = killed.counted(folder).load(key)
        assert found is not None
        assert updated.count(key) <= found["count"] <= updated.count(key) + most
    assert len(updated) > most
