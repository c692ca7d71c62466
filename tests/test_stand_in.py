"""The stand-in for Core ML: coremltools' own Python runs on it as on macOS, and every fault strikes where it should and nowhere else.

What holds for Core ML too is in tests/runtime/worker/test_against_core_ml.py, which runs against both.
"""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from support.coreml import StandIn, coreml
from support.programs import build_program, convert_program, normal, save_package
from support.stand_in import native
from support.stand_in.faults import KINDS, Crash, Fault, Record

__all__ = ["coreml"]
COREMLTOOLS = Path(inspect.getfile(ct)).parent
# What CoreMLPython.mm binds at its end (coremltools 9.0), with the number of arguments; coremltools' Python calls no other.
BOUND = {
    "_MLModelProxy": {
        "__init__": 5,
        "predict": 2,
        "batchPredict": 1,
        "get_compiled_model_path": 0,
        "get_load_duration_in_nano_seconds": 0,
        "get_last_predict_duration_in_nano_seconds": 0,
        "auto_set_specification_version": 1,
        "maximum_supported_specification_version": 0,
        "newState": 0,
        "create_model_asset_from_path": 1,
        "create_model_asset_from_memory": 2,
        "get_model_structure": 1,
        "get_available_compute_devices": 0,
        "get_all_compute_devices": 0,
        "get_compute_plan": 2,
        "compileModel": 1,
    },
    "_State": {"read_state": 1, "write_state": 2},
    "_MLNeuralEngineComputeDeviceProxy": {"get_total_core_count": 0},
    "_MLCPUComputeDeviceProxy": {},
    "_MLGPUComputeDeviceProxy": {},
    "_MLComputePlanProxy": {
        "get_compute_device_usage_for_mlprogram_operation": 1,
        "get_compute_device_usage_for_neuralnetwork_layer": 1,
        "get_estimated_cost_for_mlprogram_operation": 1,
    },
    "_MLModelStructureProgramOperationProxy": {},
    "_MLModelAssetProxy": {},
}
X = np.array([-1.0, 0.25, 0.5], np.float32)


def relu(x: Any) -> Any:
    return mb.relu(x=x, name="y")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`decoder`: y = relu(x) of 3."""
    return save_package(tmp_path_factory.mktemp("narrow"), relu, X).rename(tmp_path_factory.mktemp("named") / "decoder.mlpackage")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of 5, in half precision."""
    path = tmp_path_factory.mktemp("wide") / "decoder.mlpackage"
    program = build_program(relu, [normal(5).astype(np.float16)], "iOS18")
    convert_program(program, opset="iOS18").save(str(path))
    return path


def load(package: Path, units: str = "ALL") -> Any:
    return ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[units])


def predict(model: Any, x: np.ndarray = X) -> np.ndarray:
    return model.predict({"x": x.copy()})["y"]


# ---- faithful ----


@pytest.mark.parametrize("name", BOUND)
def test_the_native_classes_have_the_methods_that_are_bound_and_take_as_many_arguments(name: str) -> None:
    cls = getattr(native, name)
    for method, arguments in BOUND[name].items():
        static = isinstance(inspect.getattr_static(cls, method), staticmethod)
        parameters = list(inspect.signature(getattr(cls, method)).parameters.values())[0 if static else 1 :]
        assert len(parameters) == arguments, method
        assert all(item.kind is inspect.Parameter.POSITIONAL_ONLY for item in parameters), method
    public = {key for key in vars(cls) if not key.startswith("_") and callable(getattr(cls, key))} - {"state", "path"}
    assert public <= set(BOUND[name])


@pytest.mark.parametrize("file", ["model.py", "_compiled_model.py", "compute_plan.py", "compute_device.py", "utils.py"])
def test_coremltools_asks_the_native_side_for_nothing_that_is_not_there(file: str) -> None:
    """Read from the source of the coremltools that is installed: a newer one that asks for more fails here."""
    tree = ast.parse((COREMLTOOLS / "models" / file).read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "libcoremlpython"
        for alias in node.names
    }
    assert imported
    for name in imported:
        assert hasattr(native, name), name
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        owner = ast.unparse(node.value)
        if owner in ("_MLModelProxy", "proxy", "self.__proxy__", "self._proxy"):
            assert any(hasattr(getattr(native, cls), node.attr) for cls in BOUND), f"{owner}.{node.attr}"
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "_MLModelProxy":
            assert len(call.args) == BOUND["_MLModelProxy"]["__init__"]


def test_nothing_of_coremltools_own_python_is_replaced(coreml: StandIn) -> None:
    """So every signature is coremltools' own."""
    from coremltools.models import compute_plan, utils

    for item in (
        ct.models.MLModel,
        ct.models.CompiledMLModel,
        compute_plan.MLComputePlan,
        compute_plan.MLModelStructure,
        utils.compile_model,
    ):
        assert inspect.getfile(item).startswith(str(COREMLTOOLS))
    assert ct.utils.compile_model is utils.compile_model


def test_without_the_fixture_coremltools_is_as_it_was(package: Path) -> None:
    from rvc_coreml.runtime.backends.choice import default_backend_name

    assert "coremltools.libcoremlpython" not in sys.modules or sys.platform == "darwin"
    if sys.platform != "darwin":
        assert default_backend_name() == "torch"
        with pytest.raises(Exception, match="only supported on macOS"):
            predict(load(package))


def test_names_of_the_product_follow_the_fixture(coreml: StandIn) -> None:
    from rvc_coreml.runtime.backends import choice, coreml_backend

    assert choice.default_backend_name() == "coreml"
    assert coreml_backend.coreml_available()


# ---- machines ----


def test_an_older_machine_refuses_what_it_does_not_know(coreml: StandIn, package: Path, wide: Path) -> None:
    coreml.pretend(macos=(14, 5), specification_version=8)
    newer = load(wide)
    assert newer.__proxy__ is None
    with pytest.raises(Exception, match="specification has version 9 but the Core ML framework version installed only supports"):
        predict(newer)
    with pytest.warns(RuntimeWarning, match="'functionName' property can only be set on macOS >= 15.0"):
        ct.models.MLModel(str(package), function_name="main")
    with pytest.raises(Exception, match="State functionality is only supported on macOS 15"):
        load(package).make_state()
    coreml.pretend(macos=(12, 6))
    with pytest.raises(ValueError, match=r"CPU_AND_NE is only available on macOS >= 13\.0"):
        load(package, "CPU_AND_NE")


def test_the_machine_answers_as_macos_programs_do(coreml: StandIn) -> None:
    def ask(*command: str) -> str:
        return subprocess.run(command, env=coreml.environment(), capture_output=True, text=True, check=True).stdout.strip()

    assert ask("sw_vers", "-buildVersion") == "24A335"
    coreml.pretend(macos=(15, 1), build="24B83", chip="Apple M3 Max")
    assert ask("sw_vers", "-buildVersion") == "24B83"
    assert ask("sw_vers", "-productVersion") == "15.1"
    assert ask("sysctl", "-n", "machdep.cpu.brand_string") == "Apple M3 Max"
    assert ct.models.utils._macos_version() == (15, 1)


@pytest.mark.parametrize("piece", ["coremldata.bin", "package.mlpackage/Manifest.json"])
def test_a_compiled_model_in_pieces_is_refused(coreml: StandIn, package: Path, tmp_path: Path, piece: str) -> None:
    """How Core ML takes it is not known: it may raise or crash, so this is not asked of it."""
    compiled = ct.utils.compile_model(str(package), str(tmp_path / "decoder.mlmodelc"))
    (Path(compiled) / piece).unlink()
    with pytest.raises(RuntimeError, match="valid manifest does not exist"):
        ct.models.CompiledMLModel(compiled)


def test_a_plan_of_a_package_that_is_not_compiled_crashes_as_core_ml_does(coreml: StandIn, package: Path) -> None:
    """coremltools issue 2757."""
    from coremltools.models.compute_plan import MLComputePlan

    with pytest.raises(Crash):
        MLComputePlan.load_from_path(str(package))


# ---- faults ----


def test_wrong_scale_strikes_the_stage_and_units_it_is_set_for(coreml: StandIn, package: Path) -> None:
    coreml.fault("scale", stage="decoder", units="ALL")
    np.testing.assert_allclose(predict(load(package)), np.maximum(X, 0) * 4.25)
    np.testing.assert_allclose(predict(load(package, "CPU_ONLY")), np.maximum(X, 0))
    coreml.clear()
    coreml.fault("scale", stage="flow")
    np.testing.assert_allclose(predict(load(package)), np.maximum(X, 0))
    coreml.fault("scale", units="CPU_AND_GPU", factor=0.5)
    np.testing.assert_allclose(predict(load(package, "CPU_AND_GPU")), np.maximum(X, 0) / 2)


def test_a_fault_of_one_window_spares_the_others(coreml: StandIn, package: Path, wide: Path) -> None:
    coreml.fault("nan", window=5)
    assert np.isfinite(predict(load(package))).all()
    assert np.isnan(predict(load(wide), normal(5))).all()


def test_a_fault_after_so_many_calls_counts_from_when_it_was_set(coreml: StandIn, package: Path) -> None:
    model = load(package)
    predict(model)
    coreml.fault("nan", after=2)
    assert [bool(np.isnan(predict(model)).any()) for _ in range(4)] == [False, False, True, True]
    other = load(package, "CPU_ONLY")
    coreml.clear()
    coreml.fault("scale", units="CPU_ONLY", after=1)
    assert [float(predict(each).max()) for each in (model, other, model, other)] == [0.5, 0.5, 0.5, 2.125]
    assert coreml.predictions == {"decoder": 9}


def test_an_exception_is_one_as_core_ml_raises_it(coreml: StandIn, package: Path) -> None:
    model = load(package)
    coreml.fault("exception")
    with pytest.raises(RuntimeError, match=r'^\{\n    NSLocalizedDescription = "Error computing NN outputs\.";\n\}$'):
        predict(model)


@pytest.mark.parametrize("kind", ["load_error", "compile_error"])
def test_a_package_that_core_ml_refuses(coreml: StandIn, package: Path, tmp_path: Path, kind: str) -> None:
    compiled = ct.utils.compile_model(str(package), str(tmp_path / "decoder.mlmodelc"))
    coreml.fault(kind)
    with pytest.warns(RuntimeWarning, match=r"You will not be able to run predict\(\) on this Core ML model"):
        model = load(package)
    assert model.__proxy__ is None
    with pytest.raises(RuntimeError, match="Error compiling model" if kind == "compile_error" else "execution plan"):
        predict(model)
    if kind == "compile_error":
        with pytest.raises(RuntimeError, match="Unable to parse"):
            ct.utils.compile_model(str(package))
        assert predict(ct.models.CompiledMLModel(compiled)).shape == (3,)
    else:
        with pytest.raises(RuntimeError, match="execution plan"):
            ct.models.CompiledMLModel(compiled)


def test_a_slow_compilation_for_some_units_is_paid_once_for_a_place(coreml: StandIn, package: Path, tmp_path: Path) -> None:
    compiled = ct.utils.compile_model(str(package), str(tmp_path / "decoder.mlmodelc"))
    coreml.fault("slow_compile", units="ALL", seconds=0.3)

    def seconds(path: str, units: str) -> float:
        began = time.perf_counter()
        ct.models.CompiledMLModel(path, ct.ComputeUnit[units])
        return time.perf_counter() - began

    assert seconds(compiled, "CPU_ONLY") < 0.2
    assert seconds(compiled, "ALL") >= 0.3
    assert seconds(compiled, "ALL") < 0.2
    moved = Path(compiled).rename(tmp_path / "elsewhere.mlmodelc")
    assert seconds(str(moved), "ALL") >= 0.3


def test_a_slow_compilation_for_no_units_in_particular_is_the_compilers(coreml: StandIn, package: Path, tmp_path: Path) -> None:
    coreml.fault("slow_compile", seconds=0.2)
    began = time.perf_counter()
    compiled = ct.utils.compile_model(str(package), str(tmp_path / "decoder.mlmodelc"))
    assert time.perf_counter() - began >= 0.2
    began = time.perf_counter()
    ct.models.CompiledMLModel(compiled)
    assert time.perf_counter() - began < 0.2


def test_slow_predictions_come_out_right(coreml: StandIn, package: Path) -> None:
    model = load(package)
    coreml.fault("slow", seconds=0.2)
    began = time.perf_counter()
    np.testing.assert_allclose(predict(model), np.maximum(X, 0))
    assert time.perf_counter() - began >= 0.2
    assert model.last_predict_duration_in_nano_seconds >= 2e8


@pytest.mark.parametrize("kind", ["hang", "endless_compile"])
def test_what_never_ends_ends_with_the_test(coreml: StandIn, package: Path, kind: str) -> None:
    model = load(package)
    coreml.fault(kind)
    ended = threading.Event()

    def work() -> None:
        try:
            predict(model) if kind == "hang" else load(package)
        except Crash:
            ended.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert not ended.wait(0.2)
    coreml.record.released.set()
    thread.join(5)
    assert ended.is_set()


@pytest.mark.parametrize("kind", ["crash_load", "crash_predict"])
def test_a_crash_in_a_thread_passes_everything_that_catches_exceptions(coreml: StandIn, package: Path, kind: str) -> None:
    model = load(package)
    coreml.fault(kind)
    with pytest.raises(Crash, match="Core ML crashed"), suppress(Exception):
        predict(model) if kind == "crash_predict" else load(package)


def test_an_unknown_fault_is_refused_and_a_slow_one_needs_seconds(coreml: StandIn) -> None:
    with pytest.raises(ValueError, match="no fault is called 'slwo'"):
        coreml.fault("slwo")
    with pytest.raises(ValueError, match="how many seconds"):
        coreml.fault("slow")
    assert coreml.record.faults() == []


def test_every_kind_of_fault_is_tried_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for kind in KINDS:
        assert f'"{kind}"' in source, kind


# ---- across processes ----

CHILD = """
import sys, json
assert "coremltools" not in sys.modules and "torch" not in sys.modules and "numpy" not in sys.modules
from rvc_coreml.runtime.worker.model import import_coremltools
ct = import_coremltools(whole=False)
from rvc_coreml.runtime.backends.coreml_backend import coreml_available
assert coreml_available()
model = ct.models.CompiledMLModel(sys.argv[1], ct.ComputeUnit.CPU_AND_NE)
for _ in range(int(sys.argv[2])):
    print(json.dumps(model.predict({"x": ct.models.model._np.array([-1.0, 0.25, 0.5], "float32")})["y"].tolist()), flush=True)
"""


def child(coreml: StandIn, compiled: str, rounds: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, compiled, str(rounds)]
    return subprocess.run(command, env=coreml.environment(), capture_output=True, text=True, check=False)


def test_a_subprocess_is_under_the_same_faults_and_crashes_for_good(coreml: StandIn, package: Path, tmp_path: Path) -> None:
    compiled = ct.utils.compile_model(str(package), str(tmp_path / "decoder.mlmodelc"))
    predict(ct.models.CompiledMLModel(compiled, ct.ComputeUnit.CPU_AND_NE))
    coreml.fault("scale", units="CPU_AND_NE", after=1)
    coreml.fault("crash_predict", stage="decoder", after=2)
    ran = child(coreml, compiled, 5)
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [[0, 0.25, 0.5], [0, 1.0625, 2.125]], ran.stderr
    assert ran.returncode == -11
    calls = coreml.calls()
    assert [call["call"] for call in calls] == ["compile", "load", "predict", "load", *["predict"] * 3]
    assert len({call["pid"] for call in calls}) == 2
    assert coreml.loaded == [("decoder", "CPU_AND_NE")] * 2


def test_the_hook_imports_nothing_heavy_and_is_not_there_without_the_variable(coreml: StandIn) -> None:
    show = (
        "import sys; print([name for name in ('torch', 'numpy', 'coremltools', 'rvc_coreml') if name in sys.modules], len(sys.meta_path))"
    )

    def run(**changes: str) -> str:
        environment = coreml.environment() | changes
        return subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True).stdout

    with_hook, without = run(), run(RVC_STAND_IN="")
    assert with_hook.startswith("[] ")
    assert without.startswith("[] ")
    assert int(with_hook.split()[-1]) == int(without.split()[-1]) + 1


def test_two_processes_writing_calls_at_once_lose_none(tmp_path: Path) -> None:
    write = (
        "import sys; from pathlib import Path; from support.stand_in.faults import Record\n"
        "record = Record(Path(sys.argv[1]))\n"
        "for _ in range(300): record.called('predict', 'decoder', 'ALL')"
    )
    tests = str(Path(__file__).resolve().parent)
    writers = [subprocess.Popen([sys.executable, "-c", write, str(tmp_path)], cwd=tests) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    calls = list(Record(tmp_path).calls())
    assert len(calls) == 900
    assert len({call.pid for call in calls}) == 3


def test_faults_are_read_back_as_they_were_set(tmp_path: Path) -> None:
    record = Record(tmp_path)
    faults = [Fault("scale", "flow", "ALL", 100, 3, None, 0.5, 7), Fault("hang")]
    record.set_faults(faults)
    assert Record(tmp_path).faults() == faults
    assert [path.name for path in tmp_path.iterdir()] == ["faults.json"]
