"""What the stand-in and Core ML itself both have to do. The second half is skipped off macOS; not yet run on a Mac."""

from __future__ import annotations

import gc
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.models.compute_plan import MLComputePlan, MLModelStructure
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime.backends.base import predict_arrays
from rvc_coreml.runtime.backends.coreml_backend import CoreMLBackend
from rvc_coreml.runtime.goldens import gate_golden
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.worker import CoreMLWorker
from support.coreml import coreml
from support.networks import convert_torch
from support.programs import normal, save_package

__all__ = ["coreml"]
UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")
X = normal(1, 4, 16)


@pytest.fixture(params=["stand-in", "Core ML"])
def native(request: pytest.FixtureRequest) -> str:
    """Which of the two is under coremltools."""
    if request.param == "stand-in":
        request.getfixturevalue("coreml")
    elif sys.platform != "darwin":
        pytest.skip("Core ML can run only on macOS")
    return request.param


@pytest.fixture
def macos_15(native: str) -> str:
    if ct.models.utils._macos_version() < (15, 0):
        pytest.skip("states and named functions need macOS 15")
    return native


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = tanh(2 x) in float32."""
    return save_package(tmp_path_factory.mktemp("plain"), lambda x: mb.tanh(x=mb.mul(x=x, y=np.float32(2)), name="y"), X)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer whose input and output are of half precision."""
    options = {"inputs": [ct.TensorType("x", (1, 4), np.float16)], "outputs": [ct.TensorType("y", dtype=np.float16)]}
    torch.manual_seed(0)
    return convert_torch(tmp_path_factory.mktemp("half"), torch.nn.Linear(4, 3), [torch.zeros(1, 4)], "iOS17", "fp16", **options)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds its input to the state `total`, and gives twice that."""

    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(2, 3, dtype=torch.float16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x)
            return self.total * 2.0

    options = {
        "inputs": [ct.TensorType("x", (2, 3), np.float16)],
        "outputs": [ct.TensorType("y", dtype=np.float16)],
        "states": [ct.StateType(ct.TensorType(shape=(2, 3), dtype=np.float16), name="total")],
    }
    zeros = torch.zeros(2, 3, dtype=torch.float16)
    return convert_torch(tmp_path_factory.mktemp("counter"), Counter(), [zeros], "iOS18", "fp16", **options)


def load(package: Path, units: str = "ALL", **options: Any) -> Any:
    return ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[units], **options)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """As close as half precision on any unit."""
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


@pytest.fixture
def compiled(native: str, package: Path, tmp_path: Path) -> str:
    return ct.utils.compile_model(str(package), str(tmp_path / "kept.mlmodelc"))


# ---- predictions ----


@pytest.mark.parametrize("units", UNITS)
def test_every_unit_computes_what_the_reference_executor_does(native: str, package: Path, compiled: str, units: str) -> None:
    expected = ReferenceModel(package).predict({"x": X})["y"]
    for model in (load(package, units), ct.models.CompiledMLModel(compiled, ct.ComputeUnit[units])):
        assert model.compute_unit is ct.ComputeUnit[units]
        found = model.predict({"x": X.copy()})
        assert list(found) == ["y"]
        assert found["y"].dtype == np.float32
        assert_close(found["y"], expected)


def test_half_precision_goes_in_and_comes_out_as_float32(native: str, half: Path) -> None:
    x = np.array([[0.5, -1, 2, 0.25]], np.float16)
    found = load(half).predict({"x": x.copy()})["y"]
    assert found.dtype == np.float32
    assert_close(found, ReferenceModel(half).predict({"x": x})["y"])


def test_inputs_that_are_lists_or_tensors_become_arrays_in_a_model_of_a_package(native: str, half: Path) -> None:
    expected = ReferenceModel(half).predict({"x": np.ones((1, 4), np.float16)})["y"]
    for x in ([[1.0, 1.0, 1.0, 1.0]], torch.ones(1, 4)):
        assert_close(load(half).predict({"x": x})["y"], expected)


def test_a_list_gives_a_list_and_goes_without_a_state(native: str, package: Path) -> None:
    model = load(package)
    found = model.predict([{"x": X.copy()}, {"x": -X}])
    assert_close(found[0]["y"], -found[1]["y"])
    with pytest.raises(AssertionError, match="State can only be used for unbatched predictions"):
        model.predict([{"x": X.copy()}], state=object())


@pytest.mark.parametrize("data", [np.zeros(3), None, [1], "x"])
def test_what_is_no_dict_is_a_type_error(native: str, package: Path, data: Any) -> None:
    with pytest.raises(TypeError):
        load(package).predict(data)


def test_an_unknown_input_is_a_key_error(native: str, package: Path) -> None:
    with pytest.raises(KeyError, match="does not match any of the model input name"):
        load(package).predict({"z": X.copy()})


@pytest.mark.parametrize(
    "data",
    [{}, {"x": normal(1, 4, 15)}, {"x": normal(4, 16)}, {"x": np.zeros((1, 4, 16), np.int64)}, {"x": np.zeros((1, 4, 16), np.complex64)}],
    ids=["missing", "other size", "other rank", "int64", "complex"],
)
def test_a_wrong_input_is_a_runtime_error(native: str, package: Path, compiled: str, data: dict[str, Any]) -> None:
    for model in (load(package), ct.models.CompiledMLModel(compiled)):
        with pytest.raises(RuntimeError):
            model.predict(dict(data))


def test_an_array_that_cannot_be_written_to_is_a_runtime_error(native: str, package: Path) -> None:
    x = X.copy()
    x.flags.writeable = False
    with pytest.raises(RuntimeError, match="not convertible"):
        load(package).predict({"x": x})


def test_durations_are_measured(native: str, package: Path) -> None:
    model = load(package)
    assert model.load_duration_in_nano_seconds > 0
    assert model.last_predict_duration_in_nano_seconds is None
    model.predict({"x": X.copy()})
    assert (model.last_predict_duration_in_nano_seconds or 0) > 0


# ---- compiling and loading ----


def test_a_compiled_model_lies_where_it_was_asked_to_and_outlives_what_loads_it(native: str, compiled: str, tmp_path: Path) -> None:
    assert compiled == str(tmp_path / "kept.mlmodelc")
    assert (Path(compiled) / "coremldata.bin").is_file()
    del_me = ct.models.CompiledMLModel(compiled)
    del del_me
    gc.collect()
    assert (Path(compiled) / "coremldata.bin").is_file()


def test_without_a_destination_every_compilation_has_a_new_place(native: str, package: Path) -> None:
    places = [Path(ct.utils.compile_model(str(package))) for _ in range(2)]
    assert places[0] != places[1]
    for place in places:
        assert place.suffix == ".mlmodelc"
        assert (place / "coremldata.bin").is_file()
        shutil.rmtree(place)


def test_a_model_of_a_package_removes_what_it_compiled_when_it_goes(native: str, package: Path) -> None:
    model = load(package)
    place = Path(model.get_compiled_model_path())
    assert place.is_dir()
    assert place.suffix == ".mlmodelc"
    del model
    gc.collect()
    assert not place.exists()


@pytest.mark.parametrize(
    ("model", "destination", "error"),
    [
        ("model.txt", None, ValueError),
        (None, None, TypeError),
        (3, None, TypeError),
        ("missing.mlpackage", None, RuntimeError),
        ("package", "place.txt", Exception),
    ],
)
def test_compiling_refuses_wrong_arguments(native: str, package: Path, tmp_path: Path, model: Any, destination: Any, error: type) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error):
        ct.utils.compile_model(str(package) if model == "package" else model, destination and str(tmp_path / destination))
    assert sorted(tmp_path.iterdir()) == before


def test_a_loaded_model_cannot_be_compiled(native: str, package: Path) -> None:
    with pytest.raises(TypeError, match="already been compiled"):
        ct.utils.compile_model(load(package))


@pytest.mark.parametrize(
    "options",
    [{"path": Path("a.mlmodelc")}, {"path": "a.mlmodelc", "compute_units": "ALL"}, {"path": "a.mlmodelc", "function_name": 3}],
    ids=["path", "units", "function"],
)
def test_a_compiled_model_refuses_arguments_of_other_types(native: str, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be of"):
        ct.models.CompiledMLModel(**options)


def test_a_model_refuses_units_that_are_text(native: str, package: Path) -> None:
    with pytest.raises(TypeError, match="compute_units"):
        ct.models.MLModel(str(package), compute_units="ALL")


def test_a_compiled_model_that_is_missing_is_a_runtime_error(native: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.mlmodelc")
    for read in (ct.models.CompiledMLModel, MLModelStructure.load_from_path, MLComputePlan.load_from_path):
        with pytest.raises(RuntimeError):
            read(missing)


# ---- states and functions ----


def test_states_keep_their_values_between_predictions(macos_15: str, counter: Path, tmp_path: Path) -> None:
    compiled = ct.utils.compile_model(str(counter), str(tmp_path / "counter.mlmodelc"))
    for model in (load(counter), ct.models.CompiledMLModel(compiled)):
        state, other = model.make_state(), model.make_state()
        assert type(state) is ct.models.model.MLState
        ones = {"x": np.ones((2, 3), np.float32)}
        assert [model.predict(dict(ones), state)["y"][0, 0] for _ in range(3)] == [2, 4, 6]
        assert model.predict(dict(ones), other)["y"][0, 0] == 2
        assert state.read_state("total").dtype == np.float32
        assert state.read_state("total").tolist() == [[3, 3, 3]] * 2
        state.write_state("total", np.full((2, 3), 10, np.float32))
        assert model.predict(dict(ones), state)["y"][0, 0] == 22


def test_a_state_of_another_name_or_type_is_a_runtime_error(macos_15: str, counter: Path) -> None:
    state = load(counter).make_state()
    with pytest.raises(RuntimeError):
        state.read_state("sum")
    with pytest.raises(RuntimeError, match="not convertible"):
        state.write_state("total", np.ones((2, 3), np.float16))


def test_the_only_function_is_called_main(macos_15: str, package: Path) -> None:
    assert load(package, function_name="main").predict({"x": X.copy()})["y"].shape == X.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(ValueError, match='must be "main"'):
            load(package, function_name="other")


# ---- structure and plan ----


def operations(structure: Any) -> list[Any]:
    assert structure.neuralnetwork is None
    assert structure.pipeline is None
    assert list(structure.program.functions) == ["main"]
    return structure.program.functions["main"].block.operations


def test_a_structure_names_the_operations_with_their_inputs_and_outputs(native: str, compiled: str) -> None:
    found = [item for item in operations(MLModelStructure.load_from_path(compiled)) if item.operator_name.split(".")[-1] != "const"]
    assert [item.operator_name.split(".")[-1] for item in found] == ["mul", "tanh"]  # macOS says ios17.mul
    assert [output.name for output in found[-1].outputs] == ["y"]
    assert found[1].inputs["x"].bindings[0].name == found[0].outputs[0].name


@pytest.mark.parametrize("units", ["ALL", "CPU_ONLY"])
def test_a_plan_tells_devices_and_costs_of_all_but_constants(native: str, compiled: str, units: str) -> None:
    plan = MLComputePlan.load_from_path(compiled, ct.ComputeUnit[units])
    shares = []
    for operation in operations(plan.model_structure):
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        if operation.operator_name.split(".")[-1] == "const":
            assert usage is None
            continue
        assert usage is not None
        assert cost is not None
        kinds = [type(device).__name__ for device in usage.supported_compute_devices]
        assert type(usage.preferred_compute_device).__name__ in kinds
        assert "MLCPUComputeDevice" in kinds
        if units == "CPU_ONLY":
            assert type(usage.preferred_compute_device).__name__ == "MLCPUComputeDevice"
        shares.append(cost.weight)
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1, abs=0.01)


def test_the_devices_of_the_machine_have_a_cpu_among_them(native: str) -> None:
    kinds = [type(device).__name__ for device in ct.models.MLModel.get_available_compute_devices()]
    assert "MLCPUComputeDevice" in kinds
    assert set(kinds) <= {"MLCPUComputeDevice", "MLGPUComputeDevice", "MLNeuralEngineComputeDevice"}


# ---- this project on top of it ----


@pytest.fixture
def worker(native: str) -> Iterator[CoreMLWorker]:
    """A process of its own with Core ML; with the stand-in a thread, which costs no import."""
    from rvc_coreml.runtime.worker import in_thread, spawn_process

    found = CoreMLWorker(start=in_thread() if native == "stand-in" else spawn_process, cache=None)
    yield found
    found.close()


@pytest.mark.parametrize("stage", ["content_encoder", "text_encoder", "flow", "decoder"])
def test_every_stage_gives_its_golden_outputs(native: str, worker: CoreMLWorker, small_library: Path, stage: str) -> None:
    library = Library.open(small_library)
    component = library.content_encoder() if stage == "content_encoder" else library.voice("v2")
    golden = gate_golden(component, stage)
    runner = CoreMLBackend("CPU_ONLY", worker).load(component, stage)
    for name, comparison in golden.compare(predict_arrays(runner, golden.inputs)).items():
        assert comparison.snr_db > 30, name


def test_the_worker_gives_what_coremltools_gives_here(native: str, worker: CoreMLWorker, package: Path) -> None:
    expected = load(package, "CPU_ONLY").predict({"x": X.copy()})["y"]
    found = worker.load(package, "CPU_ONLY").predict({"x": X})["y"]
    assert compare(expected, found).max_error < 1e-5
    assert set(worker.system()) >= {"chip", "os_build", "coremltools"}
