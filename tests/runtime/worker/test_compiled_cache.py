from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.runtime.worker import compiled_cache
from rvc_coreml.runtime.worker.compiled_cache import HASHES, CompiledCache

OLD = time.time() - 3600


class Compiler:
    """Writes a compiled model of so many bytes, in the folder or elsewhere, and counts."""

    def __init__(self, size: int = 1000, elsewhere: Path | None = None, seconds: float = 0.0) -> None:
        self.size, self.elsewhere, self.seconds = size, elsewhere, seconds
        self.count = 0

    def __call__(self, package: Path, folder: Path) -> Path:
        self.count += 1
        time.sleep(self.seconds)
        made = (self.elsewhere or folder) / f"made{self.count}.mlmodelc"
        (made / "weights").mkdir(parents=True)
        (made / "coremldata.bin").write_bytes(sorted(package.rglob("*"))[0].read_bytes())
        (made / "weights" / "weight.bin").write_bytes(bytes(self.size))
        return made


@pytest.fixture
def cache(tmp_path: Path) -> CompiledCache:
    return CompiledCache(tmp_path / "cache")


def package(folder: Path, name: str = "flow", content: bytes = b"model") -> Path:
    path = folder / f"{name}.mlpackage"
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.mlmodel").write_bytes(content)
    os.utime(path / "model.mlmodel", (OLD, OLD))
    return path


def names(cache: CompiledCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix != ".lock" and path.name not in (HASHES, "hashes.guard"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_package_is_compiled_once_and_lies_where_it_lay(tmp_path: Path, elsewhere: bool) -> None:
    compiler = Compiler(elsewhere=tmp_path / "temporary" if elsewhere else None)
    paths = set()
    for fresh in (True, False, False):
        with CompiledCache(tmp_path / "cache").open(package(tmp_path), "26A1", compiler) as entry:
            assert (entry.fresh, entry.cached) == (fresh, True)
            assert (entry.path / "coremldata.bin").read_bytes() == b"model"
            paths.add(entry.path)
    assert compiler.count == 1
    assert len(paths) == 1
    assert paths.pop().name == "flow.mlmodelc"
    assert not elsewhere or list((tmp_path / "temporary").iterdir()) == []


def test_content_name_and_toolchain_each_make_another_entry_and_a_copy_does_not(tmp_path: Path, cache: CompiledCache) -> None:
    compiler = Compiler()
    first = package(tmp_path)
    for path, toolchain in [
        (first, "26A1"),
        (package(tmp_path / "copy"), "26A1"),
        (first, "26A2"),
        (package(tmp_path, "decoder"), "26A1"),
        (package(tmp_path / "other", content=b"other"), "26A1"),
    ]:
        cache.open(path, toolchain, compiler).close()
    assert compiler.count == 4
    assert len(cache.entries()) == 4


def test_a_package_that_changed_is_compiled_anew_and_one_that_did_not_is_not_read_again(
    tmp_path: Path, cache: CompiledCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    hashed = compiled_cache.sha256

    def counted(path: Path) -> str:
        read.append(path)
        return hashed(path)

    monkeypatch.setattr(compiled_cache, "sha256", counted)
    compiler, path = Compiler(), package(tmp_path)
    for _ in range(3):
        cache.open(path, "", compiler).close()
    assert read.count(path) == 1
    package(tmp_path, content=b"mOdel")  # as large, as old
    replaced = path / "replaced"
    (path / "model.mlmodel").rename(replaced)
    replaced.rename(path / "model.mlmodel")
    os.utime(path / "model.mlmodel", (OLD + 1, OLD + 1))
    cache.open(path, "", compiler).close()
    assert compiler.count == 2
    assert read.count(path) == 2


def test_a_package_written_just_now_is_read_each_time(tmp_path: Path, cache: CompiledCache) -> None:
    compiler, path = Compiler(), package(tmp_path)
    for content in (b"aaaaa", b"bbbbb"):
        (path / "model.mlmodel").write_bytes(content)
        now = time.time()
        os.utime(path / "model.mlmodel", (now, now))
        with cache.open(path, "", compiler) as entry:
            assert (entry.path / "coremldata.bin").read_bytes() == content
    assert not (cache.folder / HASHES).exists()


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(tmp_path: Path, cache: CompiledCache) -> None:
    compiler = Compiler(1000)
    used = cache.open(package(tmp_path, "used"), "", compiler)
    for age, name in ((30, "old"), (20, "older"), (10, "oldest")):
        with cache.open(package(tmp_path, name), "", compiler) as entry:
            os.utime(entry.path.parent / "entry.json", (OLD - 50 + age, OLD - 50 + age))
    os.utime(used.path.parent / "entry.json", (OLD - 100, OLD - 100))
    cache.open(package(tmp_path, "older"), "", compiler).close()  # is recent now
    assert compiler.count == 4
    cache.max_bytes = 3500
    cache.open(package(tmp_path, "new"), "", compiler).close()
    assert [stored.path.stem for stored in cache.entries()] == ["used", "older", "new"]
    assert used.path.is_dir()
    used.close()
    assert len(list(cache.folder.glob("*.lock"))) == 3


def test_an_entry_larger_than_the_cache_can_be_used(tmp_path: Path, cache: CompiledCache) -> None:
    cache.max_bytes = 10
    with cache.open(package(tmp_path), "", Compiler()) as entry:
        assert entry.path.is_dir()
    cache.open(package(tmp_path, "next"), "", Compiler()).close()
    assert [stored.path.stem for stored in cache.entries()] == ["next"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=12), st.integers(0, 8))
@settings(max_examples=15, deadline=None)
def test_closed_entries_never_take_more_than_the_limit_and_the_newest(requests: list[tuple[int, int]], limit: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cache = CompiledCache(Path(folder) / "cache", max_bytes=limit * 1000)
        for number, size in requests:
            path = package(Path(folder), f"p{number}-{size}")
            with cache.open(path, "", Compiler(size * 1000 - 5)) as entry:
                assert (entry.path / "coremldata.bin").is_file()
            assert cache.size() <= max(limit * 1000, size * 1000)


@pytest.mark.parametrize("error", [RuntimeError("Error compiling model"), KeyboardInterrupt(), SystemExit()])
def test_what_a_compiler_raises_is_passed_on_and_leaves_nothing(tmp_path: Path, cache: CompiledCache, error: BaseException) -> None:
    def failing(_package: Path, folder: Path) -> Path:
        (folder / "half.mlmodelc").mkdir()
        raise error

    with pytest.raises(type(error)):
        cache.open(package(tmp_path), "", failing)
    assert names(cache) == []
    with cache.open(package(tmp_path), "", Compiler()) as entry:
        assert entry.fresh


def test_threads_that_want_the_same_package_compile_it_once(tmp_path: Path) -> None:
    compiler, path = Compiler(seconds=0.2), package(tmp_path)
    entries: list[Any] = []
    threads = [
        threading.Thread(target=lambda: entries.append(CompiledCache(tmp_path / "cache").open(path, "", compiler))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiler.count == 1
    assert len({entry.path for entry in entries}) == 1
    assert sorted(entry.fresh for entry in entries) == [False] * 5 + [True]
    for entry in entries:
        entry.close()


def test_one_that_waits_too_long_compiles_for_itself(tmp_path: Path, cache: CompiledCache) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(source: Path, folder: Path) -> Path:
        begun.set()
        go_on.wait(10)
        return Compiler()(source, folder)

    path = package(tmp_path)
    thread = threading.Thread(target=lambda: cache.open(path, "", slow).close())
    thread.start()
    begun.wait(10)
    with CompiledCache(cache.folder).open(path, "", Compiler(), wait=0.05) as entry:
        assert (entry.cached, entry.fresh) == (False, True)
        place = entry.path
        assert place.is_dir()
        assert (place.name.endswith(".mlmodelc"), cache.folder in place.parents) == (True, False)
    assert not place.exists()
    go_on.set()
    thread.join()
    assert len(cache.entries()) == 1


PROCESS = """
    import sys, time
    from pathlib import Path
    from rvc_coreml.runtime.worker.compiled_cache import CompiledCache

    def compiled(package, folder):
        with open(sys.argv[3], "a") as log:
            log.write("compiled\\n")
        time.sleep(0.3)
        made = folder / "x.mlmodelc"
        made.mkdir()
        (made / "coremldata.bin").write_bytes(b"0" * 100_000)
        return made

    if len(sys.argv) > 4:
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    said = []
    cache = CompiledCache(Path(sys.argv[1]), notify=said.append)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        entry = cache.open(Path(sys.argv[2]), "26A1", compiled)
        print(entry.path, (entry.path / "coremldata.bin").stat().st_size, entry.cached, said)
        entry.close()
    except OSError as error:
        print("full", error.errno, said)
    assert not [name for name in ("numpy", "torch", "coremltools") if name in sys.modules]
"""


def process(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [str(tmp_path / "cache"), str(package(tmp_path)), str(tmp_path / "log"), *more]
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), *arguments]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def test_processes_that_want_the_same_package_compile_it_once(tmp_path: Path) -> None:
    racing = [process(tmp_path) for _ in range(3)]
    for each in racing:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    answers = [each.communicate(timeout=20)[0] for each in racing]
    assert (tmp_path / "log").read_text() == "compiled\n"
    assert len(set(answers)) == 1
    assert "100000 True []" in answers[0]


def test_a_disk_that_is_full_leaves_no_torn_entry_and_the_lock_free(tmp_path: Path) -> None:
    answer = process(tmp_path, "full").communicate("\n", timeout=20)[0]
    assert f"full {errno.EFBIG}" in answer
    assert answer.count("compiled models are not kept") == 1
    assert names(CompiledCache(tmp_path / "cache")) == []
    with CompiledCache(tmp_path / "cache").open(package(tmp_path), "26A1", Compiler(), wait=0.0) as entry:
        assert entry.cached


def test_a_model_that_cannot_be_moved_into_the_cache_is_used_where_it_is(
    tmp_path: Path, cache: CompiledCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache.notify = said.append

    def full(source: Path, target: Path) -> None:
        shutil.copytree(source / "weights", target)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    compiler = Compiler(elsewhere=tmp_path / "temporary")
    for _ in range(2):
        with cache.open(package(tmp_path), "", compiler) as entry:
            assert (entry.path.parent, entry.cached) == (tmp_path / "temporary", False)
            assert (entry.path / "weights" / "weight.bin").stat().st_size == 1000
        assert not entry.path.exists()
    assert said == [f"compiled models are not kept in {cache.folder}: No space left on device; each run compiles them again"]
    assert names(cache) == []


def unusable(tmp_path: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")


def read_only(_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *_arguments: Any, **_options: Any) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)


def without_locks(_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(compiled_cache.fcntl, "flock", refused)


def without_lock_module(_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "fcntl", None)


@pytest.mark.parametrize("fault", [unusable, read_only, without_locks, without_lock_module])
def test_without_a_usable_folder_packages_are_compiled_each_time_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    said: list[str] = []
    cache = CompiledCache(tmp_path / "cache", notify=said.append)
    (tmp_path / "elsewhere" / "made1.mlmodelc" / "weights").mkdir(parents=True)
    path = package(tmp_path)
    fault(tmp_path, monkeypatch)
    made: list[Path] = []

    def compiled(_package: Path, folder: Path) -> Path:
        os.mkdir(folder / "made.mlmodelc")
        made.append(folder / "made.mlmodelc")
        return made[-1]

    for _ in range(2):
        with cache.open(path, "", compiled) as entry:
            assert (entry.cached, entry.fresh) == (False, True)
            assert entry.path.is_dir()
        assert not entry.path.exists()
    assert len(made) == 2
    assert len(said) == 1
    assert said[0].startswith(f"compiled models are not kept in {tmp_path / 'cache'}: ")
    assert not any(path.parent.exists() for path in made)


def test_an_entry_in_a_folder_that_cannot_be_written_to_is_still_used(
    tmp_path: Path, cache: CompiledCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, path = Compiler(), package(tmp_path)
    cache.open(path, "", compiler).close()
    opened = Path.open

    def read_only_open(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wa+"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_only_open)
    with cache.open(path, "", compiler) as entry:
        assert entry.cached
    assert compiler.count == 1


@pytest.mark.parametrize("damage", ["a file short", "a file gone", "no note", "half a note", "another note"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, cache: CompiledCache, damage: str) -> None:
    with cache.open(package(tmp_path), "", Compiler()) as entry:
        place, note = entry.path, entry.path.parent / "entry.json"
    if damage == "a file short":
        (place / "weights" / "weight.bin").write_bytes(b"x")
    elif damage == "a file gone":
        (place / "coremldata.bin").unlink()
    elif damage == "no note":
        note.unlink()
    else:
        note.write_text(note.read_text()[:20] if damage == "half a note" else json.dumps(["entry"]))
    assert cache.entries() == []
    with cache.open(package(tmp_path), "", Compiler()) as entry:
        assert (entry.fresh, entry.cached, entry.path) == (True, True, place)
        assert entry.intact()
    assert len(names(cache)) == 1


def test_flipped_bytes_are_seen_when_asked_and_a_dropped_entry_is_gone(tmp_path: Path, cache: CompiledCache) -> None:
    entry = cache.open(package(tmp_path), "", Compiler())
    assert entry.intact()
    (entry.path / "weights" / "weight.bin").write_bytes(b"\x01" + bytes(999))
    assert not entry.intact()
    other = cache.open(package(tmp_path), "", Compiler())
    other.drop()
    assert entry.path.is_dir()  # it is in use here
    entry.close()
    last = cache.open(package(tmp_path), "", Compiler())
    last.drop()
    assert names(cache) == []
    assert cache.open(package(tmp_path), "", Compiler()).fresh


def test_what_ended_processes_left_is_swept_and_what_is_being_made_is_not(tmp_path: Path, cache: CompiledCache) -> None:
    cache.open(package(tmp_path), "", Compiler()).close()
    for kind in ("part", "gone"):
        (cache.folder / f".{'a' * 32}.{kind}" / "flow.mlmodelc").mkdir(parents=True)
    (cache.folder / f"{'b' * 32}.lock").touch()

    def sweeping(source: Path, folder: Path) -> Path:
        made = Compiler()(source, folder)
        CompiledCache(cache.folder).sweep()
        assert made.is_dir()
        return made

    with cache.open(package(tmp_path, "other"), "", sweeping) as entry:
        assert entry.cached
    assert len(names(cache)) == 2
    assert len(list(cache.folder.glob("*.lock"))) == 2


def test_a_lock_file_that_was_removed_and_made_anew_while_it_was_opened_is_not_held(
    tmp_path: Path, cache: CompiledCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.open(package(tmp_path), "", Compiler()).close()
    (path,) = cache.folder.glob("*.lock")
    held = compiled_cache._held
    removed: list[Path] = []

    def removing(lock: Any, *, exclusive: bool) -> bool:
        if Path(lock.name) == path and len(removed) < 2:  # first a new file, then none
            path.unlink()
            if not removed:
                path.touch()
            removed.append(path)
        return held(lock, exclusive=exclusive)

    monkeypatch.setattr(compiled_cache, "_held", removing)
    with cache.open(package(tmp_path), "", Compiler()) as entry:
        assert len(removed) == 2
        with path.open("rb") as other:
            assert not held(other, exclusive=True)
        assert entry.cached


def test_a_damaged_list_of_hashes_is_no_hindrance(tmp_path: Path, cache: CompiledCache) -> None:
    cache.folder.mkdir()
    compiler = Compiler()
    for content in ("", "[1]", '{"a": 1}', '{"a": ["b"]}', "\xff"):
        (cache.folder / HASHES).write_text(content, encoding="latin-1")
        cache.open(package(tmp_path), "", compiler).close()
    assert compiler.count == 1
    assert len(json.loads((cache.folder / HASHES).read_text())) == 1
