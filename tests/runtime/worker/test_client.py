"""The client with the stand-in for Core ML, on a thread of this process where a test does not say otherwise."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import BackendError, PackageError, UsageError, WorkerFailure
from rvc_coreml.runtime.backends.coreml_backend import CoreMLBackend
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.worker import CompiledCache, CoreMLWorker, Limits, in_thread, shared_worker
from rvc_coreml.runtime.worker.client import close_shared_worker
from rvc_coreml.runtime.worker.protocol import MINIMUM
from rvc_coreml.runtime.worker.remote import COMPUTE_UNITS
from rvc_coreml.runtime.worker.server import Server
from support.coreml import StandIn, coreml
from support.networks import convert_torch
from support.programs import normal, save_package

__all__ = ["coreml"]
X = normal(2, 3)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_package(tmp_path_factory.mktemp("package"), lambda x: mb.relu(x=x, name="y"), X)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds its input to a state, and gives that."""
    import torch

    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(3, dtype=torch.float16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x)
            return self.total * 1.0

    options = {
        "inputs": [ct.TensorType("x", (3,), np.float16)],
        "outputs": [ct.TensorType("y", dtype=np.float16)],
        "states": [ct.StateType(ct.TensorType(shape=(3,), dtype=np.float16), name="total")],
    }
    folder = tmp_path_factory.mktemp("counter")
    return convert_torch(folder, Counter(), [torch.zeros(3, dtype=torch.float16)], "iOS18", "fp16", **options)


def test_names_of_compute_units_are_coremltools_own() -> None:
    assert tuple(ct.ComputeUnit.__members__) == COMPUTE_UNITS


@pytest.mark.parametrize("units", COMPUTE_UNITS)
def test_a_model_gives_what_the_reference_executor_gives(coreml: StandIn, package: Path, units: str) -> None:
    model = shared_worker().load(package, units)
    np.testing.assert_array_equal(model.predict({"x": X})["y"], ReferenceModel(package).predict({"x": X})["y"])
    assert coreml.loaded == [(package.stem, units)]
    assert (model.compute_units, model.compiled_from_cache) == (units, False)
    assert model.load_seconds > 0
    assert model.inputs["x"].describe() == "fp32 (2, 3)"


@pytest.mark.parametrize("value", [X.astype(np.float64), np.asfortranarray(X), X[::-1], X.tolist(), X.astype(">f4")])
def test_inputs_are_handed_over_in_the_declared_type_and_order(coreml: StandIn, package: Path, value: Any) -> None:
    got = shared_worker().load(package).predict({"x": value})["y"]
    np.testing.assert_array_equal(got, np.maximum(np.asarray(value), 0).astype(np.float32))


@pytest.mark.parametrize(
    ("inputs", "reason"), [({}, "needs the input 'x'"), ({"x": X, "z": X}, "has no input 'z'"), (X, "takes a dict of arrays")]
)
def test_wrong_names_are_refused_before_the_worker_is_asked(coreml: StandIn, package: Path, inputs: Any, reason: str) -> None:
    model = shared_worker().load(package)
    with pytest.raises(PackageError, match=reason):
        model.predict(inputs)
    assert coreml.predictions == {}


def test_what_is_wrong_with_a_package_or_an_option_is_told_without_a_worker(coreml: StandIn, package: Path, tmp_path: Path) -> None:
    worker = CoreMLWorker(start=in_thread())
    with pytest.raises(UsageError, match="no compute units 'NPU'; choose ALL"):
        worker.load(package, "NPU")
    with pytest.raises(PackageError):
        worker.load(tmp_path / "none.mlpackage")
    with pytest.raises(PackageError, match="has no function 'other'"):
        worker.load(package, function="other")
    assert worker.pid is None


def test_large_arrays_make_the_memory_grow(coreml: StandIn, tmp_path: Path) -> None:
    x = normal(MINIMUM // 2)
    path = save_package(tmp_path, lambda x: (mb.relu(x=x, name="y"), mb.mul(x=x, y=2.0, name="z")), x)
    model = shared_worker().load(path)
    for _ in range(2):
        got = model.predict({"x": x})
        np.testing.assert_array_equal(got["y"], np.maximum(x, 0))
        np.testing.assert_array_equal(got["z"], 2 * x)


def test_the_second_load_finds_the_compiled_model_and_one_that_is_not_to_does_not(coreml: StandIn, package: Path) -> None:
    found = [shared_worker().load(package, units).compiled_from_cache for units in ("ALL", "ALL", "CPU_ONLY")]
    assert found == [False, True, True]
    assert not shared_worker().load(package, cached=False).compiled_from_cache
    assert not CoreMLWorker(start=in_thread(), cache=None).load(package).compiled_from_cache
    assert [call["call"] for call in coreml.calls()].count("compile") == 3
    coreml.pretend(build="26Z9")
    close_shared_worker()
    assert not shared_worker().load(package).compiled_from_cache


def entries(coreml: StandIn) -> list[Path]:
    return [stored.path for stored in CompiledCache(coreml.folder / "cache" / "compiled").entries()]


def test_a_damaged_compiled_model_is_made_anew_and_a_refused_one_is_not(coreml: StandIn, package: Path) -> None:
    shared_worker().load(package)
    close_shared_worker()
    (compiled,) = entries(coreml)
    for file in compiled.rglob("*"):
        if file.is_file():
            file.write_bytes(bytes(file.stat().st_size))
    model = shared_worker().load(package)
    assert not model.compiled_from_cache
    np.testing.assert_array_equal(model.predict({"x": X})["y"], np.maximum(X, 0))
    assert [call["call"] for call in coreml.calls()].count("compile") == 2
    coreml.fault("load_error")
    with pytest.raises(WorkerFailure) as caught:
        shared_worker().load(package)
    assert caught.value.kind == "refused"
    assert str(caught.value).startswith("Core ML could not load model.mlpackage: ")
    assert [call["call"] for call in coreml.calls()].count("compile") == 2
    assert entries(coreml) == [compiled]


def test_a_damaged_compiled_model_that_another_uses_is_left_alone(coreml: StandIn, package: Path) -> None:
    first = shared_worker().load(package)
    (compiled,) = entries(coreml)
    for file in compiled.rglob("*"):
        if file.is_file():
            file.write_bytes(bytes(file.stat().st_size))
    second = shared_worker().load(package)
    for model in (first, second):
        np.testing.assert_array_equal(model.predict({"x": X})["y"], np.maximum(X, 0))
    assert entries(coreml) == [compiled]


def test_a_cache_that_cannot_be_used_is_told_once(coreml: StandIn, package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    worker = CoreMLWorker(start=in_thread(), cache=CompiledCache(tmp_path / "file"))
    said: list[str] = []
    worker.notify = said.append
    for _ in range(2):
        np.testing.assert_array_equal(worker.load(package).predict({"x": X})["y"], np.maximum(X, 0))
    assert len(said) == 1
    assert said[0].startswith(f"compiled models are not kept in {tmp_path / 'file'}: ")
    worker.close()


def test_an_exception_of_core_ml_leaves_the_worker_as_it_is(coreml: StandIn, package: Path) -> None:
    model = shared_worker().load(package)
    coreml.fault("exception")
    with pytest.raises(WorkerFailure, match=r"^Core ML failed while running model\.mlpackage: ") as caught:
        model.predict({"x": X})
    assert caught.value.kind == "failed"
    assert isinstance(caught.value, BackendError)
    coreml.clear()
    life = shared_worker().life
    model.predict({"x": X})
    assert shared_worker().life == life


@pytest.mark.parametrize("kind", ["crash_predict", "hang"])
def test_models_of_a_lost_worker_load_themselves_again(coreml: StandIn, package: Path, kind: str) -> None:
    one, two = shared_worker().load(package, "ALL"), shared_worker().load(package, "CPU_ONLY")
    one.prediction_limit = 0.2
    coreml.fault(kind)
    with pytest.raises(WorkerFailure) as caught:
        one.predict({"x": X})
    assert caught.value.kind == ("died" if kind == "crash_predict" else "timeout")
    coreml.clear()
    one.prediction_limit = None
    for model in (two, one, two):
        np.testing.assert_array_equal(model.predict({"x": X})["y"], np.maximum(X, 0))
    assert [units for _stage, units in coreml.loaded] == ["ALL", "CPU_ONLY", "CPU_ONLY", "ALL"]
    assert one.compiled_from_cache
    assert [call["call"] for call in coreml.calls()].count("compile") == 1


def test_a_second_load_has_more_time_than_a_first_one_that_was_given_little(
    coreml: StandIn, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = shared_worker()
    limits: list[float] = []
    call = worker.call

    def noted(name: str, arguments: dict[str, Any], doing: str, limit: float, *others: Any, **named: Any) -> Any:
        if name == "load":
            limits.append(limit)
        return call(name, arguments, doing, limit, *others, **named)

    monkeypatch.setattr(worker, "call", noted)
    model = worker.load(package, limit=2.0)
    worker.close()
    model.predict({"x": X})
    model.load_seconds = 9000.0
    worker.close()
    model.predict({"x": X})
    assert limits == [2.0, 10.0, worker.limits.load_seconds]


@pytest.mark.parametrize("kind", ["crash_load", "endless_compile"])
def test_a_load_that_kills_or_hangs_ends_at_its_limit(coreml: StandIn, package: Path, kind: str) -> None:
    coreml.fault(kind, units="ALL")
    start = time.monotonic()
    with pytest.raises(WorkerFailure, match=r"loading model\.mlpackage with ALL") as caught:
        shared_worker().load(package, "ALL", limit=0.3)
    assert caught.value.kind == ("died" if kind == "crash_load" else "timeout")
    assert time.monotonic() - start < 3
    assert shared_worker().load(package, "CPU_ONLY").compiled_from_cache


def test_limits_come_from_the_call_then_the_model_then_the_worker(coreml: StandIn, package: Path) -> None:
    worker = CoreMLWorker(Limits(load_seconds=20, prediction_seconds=0.1), in_thread(), None)
    model = worker.load(package)
    coreml.fault("slow", seconds=0.6)
    with pytest.raises(WorkerFailure, match=r"longer than 0\.1 s"):
        model.predict({"x": X})
    model.prediction_limit = 0.2
    with pytest.raises(WorkerFailure, match=r"longer than 0\.2 s"):
        model.predict({"x": X})
    assert model.predict({"x": X}, limit=20)["y"].shape == (2, 3)
    worker.close()


def test_states_live_in_the_worker_and_are_lost_with_it(coreml: StandIn, counter: Path) -> None:
    model = shared_worker().load(counter)
    one, two = model.make_state(), model.make_state()
    x = np.ones(3, np.float16)
    assert [model.predict({"x": x}, state)["y"][0] for state in (one, one, two, one)] == [1, 2, 1, 3]
    one.write_state("total", np.full(3, 10, np.float16))
    assert one.read_state("total").tolist() == [10, 10, 10]
    assert model.predict({"x": x}, one)["y"].tolist() == [11, 11, 11]
    with pytest.raises(WorkerFailure, match="reading a state") as caught:
        one.read_state("none")
    assert caught.value.kind == "failed"
    close_shared_worker()
    shared = model._worker
    shared.close()
    for lost in (lambda: model.predict({"x": x}, one), lambda: one.read_state("total")):
        with pytest.raises(WorkerFailure, match="lost") as caught:
            lost()
        assert caught.value.kind == "died"
    assert model.predict({"x": x}, model.make_state())["y"][0] == 1
    shared.close()


def test_models_and_states_that_are_dropped_are_freed(coreml: StandIn, counter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[Server] = []
    begin = Server.__init__

    def noted(self: Server, *arguments: Any, **options: Any) -> None:
        servers.append(self)
        begin(self, *arguments, **options)

    monkeypatch.setattr(Server, "__init__", noted)
    worker = shared_worker()
    kept, model = worker.load(counter), worker.load(counter)
    state = model.make_state()
    (server,) = servers
    assert (len(server._models), len(server._states)) == (2, 1)
    del state, model
    gc.collect()
    worker.tidy()
    assert (len(server._models), len(server._states)) == (1, 0)
    kept.unload()
    assert len(server._models) == 0
    assert kept.predict({"x": np.ones(3)}, kept.make_state())["y"][0] == 1


def test_threads_take_turns(coreml: StandIn, package: Path) -> None:
    model = shared_worker().load(package)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
        for _ in range(15):
            if not np.array_equal(model.predict({"x": x})["y"], np.maximum(x, 0)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert coreml.predictions == {package.stem: 90}


def test_ctrl_c_in_a_call_does_not_mix_its_answer_into_the_next(coreml: StandIn, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = shared_worker()
    model = worker.load(package)
    life = worker._life
    assert life is not None

    def interrupted(_seconds: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(life.running.channel, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.predict({"x": X})
    np.testing.assert_array_equal(model.predict({"x": -X})["y"], np.maximum(-X, 0))
    assert worker.life == life.number + 1


def test_a_copy_of_the_process_by_fork_leaves_the_worker_to_its_owner(coreml: StandIn, package: Path) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    model = shared_worker().load(package)
    pid = os.fork()
    if pid == 0:
        worker = shared_worker()
        code = int(worker.pid is not None)
        worker.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    np.testing.assert_array_equal(model.predict({"x": X})["y"], np.maximum(X, 0))
    assert model._worker.life == model._life


def test_a_list_of_inputs_gives_a_list_of_results(coreml: StandIn, package: Path) -> None:
    model = shared_worker().load(package)
    got = model.predict([{"x": X}, {"x": -X}])
    np.testing.assert_array_equal([item["y"] for item in got], [np.maximum(X, 0), np.maximum(-X, 0)])
    with pytest.raises(PackageError, match="has no states"):
        model.make_state()


def test_system_facts_are_the_workers(coreml: StandIn) -> None:
    coreml.pretend(macos=(15, 2), build="24C101", chip="Apple M9")
    expected = {"chip": "Apple M9", "os": "macOS 15.2", "os_build": "24C101", "coremltools": ct.__version__}
    assert shared_worker().system() == expected


def test_the_backend_loads_with_its_own_units_or_the_recorded_ones(coreml: StandIn, package: Path) -> None:
    component: Any = SimpleNamespace(
        package=lambda _stage: package,
        parts=lambda _stage: None,
        compute_units=lambda _stage: "CPU_AND_NE",
        window=lambda _stage: 7,
        function=lambda _stage: None,
        arrangement=lambda _stage: None,
    )
    assert CoreMLBackend().load(component, "flow").window == 7
    assert CoreMLBackend("CPU_ONLY").load(component, "flow", limit=30).window == 7
    assert coreml.loaded == [("model", "CPU_AND_NE"), ("model", "CPU_ONLY")]
    assert (CoreMLBackend("CPU_ONLY").detail, CoreMLBackend().detail) == ("CPU_ONLY", "compute units as recorded, ALL by default")


def test_a_package_that_is_not_called_one_goes_to_core_ml_uncompiled(coreml: StandIn, package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "model.folder")
    model = shared_worker().load(tmp_path / "model.folder")
    np.testing.assert_array_equal(model.predict({"x": X})["y"], np.maximum(X, 0))
    assert not model.compiled_from_cache
    assert entries(coreml) == []
    coreml.fault("load_error")
    with pytest.raises(WorkerFailure, match=r"could not load model\.folder: ") as caught:
        shared_worker().load(tmp_path / "model.folder")
    assert caught.value.kind == "refused"


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML would load it here")
def test_a_real_worker_off_a_mac_says_so(package: Path) -> None:
    worker = CoreMLWorker(cache=None)
    with pytest.raises(
        WorkerFailure, match=r"could not load model\.mlpackage: Compiling a Core ML models is only support on macOS"
    ) as caught:
        worker.load(package)
    assert caught.value.kind == "refused"
    assert worker.pid not in (None, os.getpid())
    worker.close()
