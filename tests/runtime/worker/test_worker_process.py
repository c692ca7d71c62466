"""The worker as a process of its own, with a coremltools that starts at once (light_core_ml)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rvc_coreml.errors import WorkerFailure
from rvc_coreml.runtime.worker.client import CoreMLWorker
from rvc_coreml.runtime.worker.compiled_cache import CompiledCache

LIGHT = Path(__file__).parent / "light_core_ml"
SHARED_MEMORY = Path("/dev/shm")  # where Linux shows shared memory that has a name
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(LIGHT))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[CoreMLWorker]:
    worker = CoreMLWorker(cache=CompiledCache(tmp_path / "cache"))
    yield worker
    worker.close()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "Manifest.json").write_text("{}")
    return path


def load(worker: CoreMLWorker, package: Path, number: int = 1) -> dict[str, Any]:
    cache = worker.cache
    arguments = {
        "model": number,
        "path": str(package),
        "compute_units": "ALL",
        "function": None,
        "cache": None if cache is None else (str(cache.folder), cache.max_bytes),
        "wait": 5.0,
    }
    return worker.call("load", arguments, "loading", 30.0)[0]


def predict(worker: CoreMLWorker, limit: float = 20.0, **inputs: Any) -> dict[str, Any]:
    arrays = {**X, **{name: np.float32(value).reshape(1) for name, value in inputs.items()}}
    return worker.call("predict", {"model": 1, "state": None}, "running", limit, arrays)[1]


def gone(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_worker_computes_without_pytorch_and_prints_nothing_here(
    worker: CoreMLWorker, package: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert load(worker, package)["from_cache"] is False
    got = predict(worker, say=1)
    np.testing.assert_array_equal(got["y"], 2 * X["x"])
    np.testing.assert_array_equal(got["again"], X["x"])
    assert Path(got["place"]).is_relative_to(tmp_path / "cache")
    assert predict(worker, modules=1) == {"torch": 0, "transformers": 0, "sklearn": 0, "scipy": 0}
    assert worker.pid is not None
    assert os.getsid(worker.pid) != os.getsid(0)  # Ctrl-C in a terminal goes to a session
    assert worker.system()["coremltools"] == "9.0"
    assert capfd.readouterr() == ("", "")


def test_outputs_that_do_not_fit_make_the_memory_grow(worker: CoreMLWorker, package: Path) -> None:
    load(worker, package)
    for size in (10, 300_000, 50, 900_000):
        x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
        got = worker.call("predict", {"model": 1, "state": None}, "running", 20.0, {"x": x})[1]
        np.testing.assert_array_equal(got["y"], 2 * x)
        np.testing.assert_array_equal(got["again"], x)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("crash", "died while running: it was ended by SIGSEGV, its last words were: ANE compiler gave up"),
        ("exit", "it ended with status 3"),
    ],
)
def test_a_crash_is_told_with_its_reason_and_the_next_call_has_a_new_worker(
    worker: CoreMLWorker, package: Path, how: str, reason: str
) -> None:
    load(worker, package)
    first = worker.pid
    with pytest.raises(WorkerFailure, match=reason) as caught:
        predict(worker, **{how: 1})
    assert caught.value.kind == "died"
    assert load(worker, package)["from_cache"] is True
    assert worker.pid != first
    assert predict(worker)["y"][1, 2] == 10


@pytest.mark.parametrize("how", ["hang", "hold"])
def test_a_call_that_hangs_is_ended_at_its_limit(worker: CoreMLWorker, package: Path, how: str) -> None:
    load(worker, package)
    pid = worker.pid
    start = time.monotonic()
    with pytest.raises(WorkerFailure, match=r"took longer than 0\.3 s for running; its process was ended") as caught:
        predict(worker, 0.3, **{how: 1})
    assert caught.value.kind == "timeout"
    assert time.monotonic() - start < 2
    assert pid is not None
    assert gone(pid)


def test_a_worker_that_was_stopped_is_ended_too(worker: CoreMLWorker, package: Path) -> None:
    load(worker, package)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    pid = worker.pid
    with pytest.raises(WorkerFailure, match="took longer"):
        predict(worker, 0.3)
    assert gone(pid)


def test_a_worker_that_was_ended_between_calls_is_replaced(worker: CoreMLWorker, package: Path) -> None:
    load(worker, package)
    assert worker.pid is not None
    first = worker.pid
    os.kill(first, signal.SIGKILL)
    life = worker._life
    assert life is not None
    while life.running.alive():
        time.sleep(0.01)
    load(worker, package)
    assert worker.pid != first
    assert predict(worker)["y"][0, 1] == 2


def test_what_a_worker_says_is_kept_within_bounds(worker: CoreMLWorker, package: Path) -> None:
    load(worker, package)
    for _ in range(4):
        predict(worker, chatter=1)  # 2 MB each
    life = worker._life
    assert life is not None
    assert os.fstat(life.running._log).st_size < 3 << 20  # pyright: ignore[reportAttributeAccessIssue]


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{LIGHT}")
    with pytest.raises(WorkerFailure, match="its last words were: ImportError: numpy is broken") as caught:
        CoreMLWorker(cache=None).system()
    assert caught.value.kind == "unstarted"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(WorkerFailure, match="could not be started: No such file or directory") as caught:
        CoreMLWorker(cache=None).system()
    assert caught.value.kind == "unstarted"


def test_a_module_of_the_current_folder_is_not_taken_for_a_library(
    worker: CoreMLWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no safe path")
    (tmp_path / "numpy.py").write_text("raise ImportError('this is not numpy')")
    monkeypatch.chdir(tmp_path)
    assert worker.system()["coremltools"] == "9.0"


PARENT = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from rvc_coreml.runtime.worker.client import shared_worker

    assert "torch" not in sys.modules and "coremltools" not in sys.modules
    cache, package, what = sys.argv[1:]
    worker = shared_worker()

    def load():
        arguments = {"path": package, "compute_units": "ALL", "function": None, "cache": (cache, 1 << 30), "wait": 5.0}
        worker.call("load", {"model": 1, **arguments}, "loading", 30.0)

    def predict(limit, *names):
        arrays = {name: np.zeros(400_000, np.float32) for name in ("x", *names)}
        worker.call("predict", {"model": 1, "state": None}, "running", limit, arrays)

    load()
    print(worker.pid, flush=True)
    try:
        while what == "busy":
            predict(20.0)
        if what == "hang":
            predict(20.0, "hang")
        if what == "hold":
            predict(0.5, "hold")
        if what == "idle":
            time.sleep(60)
    except KeyboardInterrupt:
        load()
        print("usable", flush=True)
"""


def parent(tmp_path: Path, package: Path, what: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has a worker, and the worker's number."""
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path / "cache"), str(package), what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}, start_new_session=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the parent did not come up"
    return process, int(line)


def left_behind(tmp_path: Path) -> list[str]:
    """Named shared memory, and temporary files of ours."""
    named = [path.name for path in SHARED_MEMORY.iterdir()] if SHARED_MEMORY.is_dir() else []
    return sorted(named) + sorted(path.name for path in (tmp_path / "temporary").glob("rvc-coreml*"))


@pytest.mark.parametrize(
    ("first", "what"),
    [("parent", "idle"), ("parent", "hang"), ("worker", "busy"), ("worker", "hang"), ("both", "busy"), ("parent, then worker", "busy")],
)
def test_nothing_is_left_whichever_process_is_killed(tmp_path: Path, package: Path, first: str, what: str) -> None:
    before = left_behind(tmp_path)
    process, worker = parent(tmp_path, package, what)
    time.sleep(0.05)
    if first == "worker":
        os.kill(worker, signal.SIGKILL)
        assert gone(worker)
        time.sleep(0.1)
        process.kill()
    elif first == "both":
        process.kill()
        os.kill(worker, signal.SIGKILL)
    else:
        process.kill()
        if first != "parent":
            time.sleep(0.02)
            if psutil.pid_exists(worker):
                os.kill(worker, signal.SIGKILL)
    process.wait(5)
    assert gone(worker)
    assert left_behind(tmp_path) == before


@pytest.mark.slow
def test_a_worker_whose_parent_is_gone_ends_even_while_core_ml_lets_no_thread_run(tmp_path: Path, package: Path) -> None:
    process, worker = parent(tmp_path, package, "hold")
    time.sleep(0.1)
    process.kill()
    process.wait(5)
    assert gone(worker, 12.0)


@pytest.mark.parametrize("what", ["hang", "busy"])
def test_ctrl_c_leaves_a_worker_that_can_be_asked(tmp_path: Path, package: Path, what: str) -> None:
    process, worker = parent(tmp_path, package, what)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()  # where the signal was ignored
    assert out.strip() == "usable"
    assert gone(worker)
    assert process.returncode == 0


def test_the_shared_worker_ends_with_its_process(tmp_path: Path, package: Path) -> None:
    process, worker = parent(tmp_path, package, "nothing")
    assert process.wait(10) == 0
    assert gone(worker)


def test_another_process_stands_by_and_takes_over_from_one_that_is_ended(worker: CoreMLWorker, package: Path) -> None:
    others = {child.pid for child in psutil.Process().children()}
    load(worker, package)
    first = worker.pid
    assert first is not None
    with worker.standing_by():
        (spare,) = {child.pid for child in psutil.Process().children()} - {first} - others
        os.kill(first, signal.SIGKILL)
        psutil.Process(first).wait(10)
    load(worker, package, 2)
    assert worker.pid == spare
    with worker.standing_by():
        (unused,) = {child.pid for child in psutil.Process().children()} - {spare} - others
    assert worker.pid == spare
    assert not psutil.pid_exists(unused)
