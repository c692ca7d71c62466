"""The module `coremltools.libcoremlpython`, computing through the reference executor.

Names, arguments and behaviour are those of coremltools 9.0's coremlpython/CoreMLPython.mm (the bindings at its end, class
Model above), CoreMLPythonUtils.mm (values to and from Core ML, `handleError`) and CoreMLPythonArray.mm (which arrays
it takes, with their strides); the function is named beside each. What Core ML itself says inside an error is
its own: the texts here are those seen in coremltools' issues, and nothing should read more than words from them.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import faults
from .compiled import compile_package, guarded, is_compiled, load_compiled, planned, read_note
from .faults import Fault


class _State:
    """`State`: what lies behind MLState. Raises RuntimeError for what Core ML refuses (`readState`, `writeState`)."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def read_state(self, name: str, /) -> np.ndarray:
        return _array(guarded(self.state.read_state, name))

    def write_state(self, name: str, value: Any, /) -> None:
        guarded(self.state.write_state, name, _taken(value))


class _MLModelAssetProxy:
    """`ModelAsset`: the path that it was made from."""

    def __init__(self, path: str) -> None:
        self.path = path


class _MLModelProxy:
    """`Model`: a package compiled and loaded, or a compiled model loaded."""

    def __init__(
        self,
        path: str,
        compute_units: str,
        function_name: str,
        optimization_hints: dict[str, str],
        asset: _MLModelAssetProxy | None = None,
        /,
    ) -> None:
        self._temporary: str | None = None
        self._compiled = path if asset is None else asset.path
        if not is_compiled(self._compiled):  # Model::Model, through Utils::isCompiledModelPath
            try:
                self._compiled = self._temporary = compile_package(self._compiled)
            except RuntimeError as failure:
                raise RuntimeError(f'Error compiling model: "{failure}".') from failure
        if compute_units not in ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"):
            raise AssertionError(f"setComputeUnit: {compute_units}")
        macos = faults.active.machine().macos
        if optimization_hints and macos < (15, 0):
            raise RuntimeError(f"Setting '{next(iter(optimization_hints))}' is only available on macOS >= 15.0")
        if function_name and macos < (15, 0):
            raise RuntimeError("The 'functionName' property can only be set on macOS >= 15.0")
        started = time.perf_counter_ns()
        self._stage, self._sizes, self._model = load_compiled(Path(self._compiled), compute_units, function_name)
        self._units = compute_units
        self._load_duration = time.perf_counter_ns() - started
        self._last_predict_duration: int | None = None

    def __del__(self) -> None:
        temporary = getattr(self, "_temporary", None)
        if temporary is not None and shutil is not None:
            shutil.rmtree(temporary, ignore_errors=True)

    def predict(self, inputs: dict[str, Any], state: _State | None = None, /) -> dict[str, Any]:
        if state is not None and faults.active.machine().macos < (15, 0):
            raise RuntimeError("Stateful predictions using MLState are only supported on macOS >= 15.0")
        started = time.perf_counter_ns()
        outputs = self._predict(inputs, state)
        self._last_predict_duration = time.perf_counter_ns() - started
        return outputs

    def batchPredict(self, batch: list[dict[str, Any]], /) -> list[dict[str, Any]]:  # noqa: N802 - bound so
        started = time.perf_counter_ns()
        outputs = [self._predict(inputs, None) for inputs in batch]
        self._last_predict_duration = time.perf_counter_ns() - started
        return outputs

    def _predict(self, inputs: dict[str, Any], state: _State | None) -> dict[str, Any]:
        """`predictionFromFeatures`: features that the model does not have are not looked at."""
        given = {name: _taken(value) for name, value in inputs.items()}
        for name, feature in self._model.inputs.items():
            if name not in given and not feature.optional:
                raise faults.error(f"Feature {name} is required but not specified.")
            if name in given and feature.image is None and not isinstance(given[name], np.ndarray):
                raise faults.error("MultiArrayConstraint only allows MultiArrays")
        struck = faults.active.called("predict", self._stage, self._units, self._model.function, self._sizes)
        for fault in struck:
            faults.strike(fault)
        known = {name: value for name, value in given.items() if name in self._model.inputs}
        outputs = guarded(self._model.predict, known, None if state is None else state.state)
        return {name: _spoiled(_array(value), struck) for name, value in outputs.items()}

    def get_compiled_model_path(self) -> str:
        return self._compiled

    def get_load_duration_in_nano_seconds(self) -> int | None:
        return self._load_duration

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        return self._last_predict_duration

    def newState(self) -> _State:  # noqa: N802 - bound so
        if faults.active.machine().macos < (15, 0):
            raise RuntimeError("Stateful model is only available on macOS >= 15.0")
        return _State(self._model.make_state())

    @staticmethod
    def auto_set_specification_version(model_bytes: bytes, /) -> bytes:
        return model_bytes

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return faults.active.machine().specification_version

    @staticmethod
    def compileModel(path: str, /) -> str:  # noqa: N802 - bound so
        return compile_package(path)

    @staticmethod
    def create_model_asset_from_path(path: str, /) -> Any:
        from coremltools.models.model import MLModelAsset

        if faults.active.machine().macos < (15, 0):
            raise RuntimeError("Creating an MLModelAsset from a file path is only available on macOS >= 15.0")
        return MLModelAsset(_MLModelAssetProxy(path))

    @staticmethod
    def create_model_asset_from_memory(specification: bytes, blobs: dict[str, bytes], /) -> Any:
        raise RuntimeError("the stand-in makes no assets from memory")

    @staticmethod
    def get_model_structure(path: str, /) -> Any:
        from .plan import model_structure

        if faults.active.machine().macos < (14, 4):
            raise RuntimeError("MLModelStructure is only available on macOS >= 14.4")
        return model_structure(planned(Path(path)))

    @staticmethod
    def get_compute_plan(path: str, compute_units: str, /) -> Any:
        from coremltools.models.compute_plan import MLComputePlan

        from .plan import model_structure

        if faults.active.machine().macos < (14, 4):
            raise RuntimeError("MLComputePlan is only available on macOS >= 14.4")
        source = planned(Path(path))
        faults.active.called("plan", read_note(Path(path))["stage"], compute_units)
        return MLComputePlan(_MLComputePlanProxy(model_structure(source), compute_units))

    @staticmethod
    def get_available_compute_devices() -> list[Any]:
        from .plan import devices

        return devices("ALL")

    @staticmethod
    def get_all_compute_devices() -> list[Any]:
        from .plan import devices

        return devices("ALL")


class _MLCPUComputeDeviceProxy:
    pass


class _MLGPUComputeDeviceProxy:
    pass


class _MLNeuralEngineComputeDeviceProxy:
    def get_total_core_count(self) -> int:
        return 16


class _MLModelStructureProgramOperationProxy:
    """An operation of a compiled model, with what the plan goes by."""

    def __init__(self, operation: Any) -> None:
        self.operation = operation


class _MLComputePlanProxy:
    """`ComputePlan`: which device each operation of a program would take, and its share of the work."""

    def __init__(self, structure: Any = None, compute_units: str = "ALL") -> None:
        self._structure, self._units = structure, compute_units

    @property
    def model_structure(self) -> Any:
        return self._structure

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any, /) -> Any:
        from .plan import usage

        return usage(operation.__proxy__.operation, self._units)

    def get_compute_device_usage_for_neuralnetwork_layer(self, layer: Any, /) -> None:
        return None

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any, /) -> Any:
        from .plan import cost

        return cost(operation.__proxy__.operation, self._structure)


# ---- values ----


def _taken(value: Any) -> Any:
    """`Utils::convertValueToObjC`: arrays are read where they lie, so they have to be writable and of types that it knows.

    What an array is refused for is caught there, and the value is said to be of no known kind. Half precision is such a
    kind: coremltools makes float32 of it in `predict`, and not in `write_state`.
    """
    if not isinstance(value, np.ndarray):
        return value
    lies_well = value.flags.writeable and value.ndim and all(stride >= 0 and stride % value.itemsize == 0 for stride in value.strides)
    if not lies_well or value.dtype not in (np.int32, np.float32, np.float64):
        print("Error: value type not convertible:")
        print(value)
        raise RuntimeError("value type not convertible")
    return value


def _array(value: Any) -> Any:
    """`Utils::convertArrayValueToPython`: half precision comes out as float32."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value


def _spoiled(value: Any, struck: list[Fault]) -> Any:
    """Wrong numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        for fault in struck:
            if fault.kind == "scale":
                value = value * value.dtype.type(fault.factor)
            elif fault.kind == "nan":
                value = np.full_like(value, np.nan)
    return value
