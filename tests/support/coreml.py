"""A stand-in for coremltools' MLModel on macOS, which computes through the reference executor and can be made to fail.

Signature and behaviour follow coremltools 9.0 (`coremltools/models/model.py`, class MLModel): the constructor takes the
package's path, `compute_units` and `function_name`, which must be "main" for a package of one function; a package that
Core ML refuses gives a RuntimeWarning and a model whose `__proxy__` is None (`_get_proxy_and_spec`); `predict` takes a
dict of arrays by input name, or a list of such, and returns what it was given; an unknown input is a KeyError, and a
state goes with a single dict only. `make_state` needs macOS 15, and gives an MLState around Core ML's own state. Core ML
reads numpy's memory directly, so arrays have to lie in C order and be writable. How Core ML's own side answers a missing
or a foreign state is not known here: the stand-in raises RuntimeError, as for what else Core ML refuses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime import packages
from rvc_coreml.runtime.backends import choice, coreml_backend
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.executor import ModelState

from .programs import read_specification

Outputs = dict[str, np.ndarray]
Fault = Callable[[Outputs], Outputs]


def scaled(factor: float) -> Fault:
    """Every output too loud, as fp16 vocoders are known to come out."""
    return lambda outputs: {name: value * factor for name, value in outputs.items()}


def not_a_number(outputs: Outputs) -> Outputs:
    return {name: np.full_like(value, np.nan) for name, value in outputs.items()}


def failing(outputs: Outputs) -> Outputs:
    raise RuntimeError("Error computing NN outputs.")


class StandIn:
    """What the patched coremltools was asked, and what is to go wrong."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, ct.ComputeUnit]] = []
        self.predictions: dict[str, int] = {}
        self.faults: dict[str, Fault] = {}
        self.fault_after: dict[str, int] = {}
        self.refused: set[str] = set()
        self.functions: list[str | None] = []
        self.macos = (15, 0)

    def model(
        self,
        model: str,
        is_temp_package: bool = False,
        mil_program: Any = None,
        skip_model_load: bool = False,
        compute_units: ct.ComputeUnit = ct.ComputeUnit.ALL,
        weights_dir: str | None = None,
        function_name: str | None = None,
        optimization_hints: dict[str, Any] | None = None,
    ) -> _Model:
        if not isinstance(model, str):
            raise TypeError("Expected model to be a .mlmodel file, .mlpackage file or a Model_pb2 object")
        if not isinstance(compute_units, ct.ComputeUnit):
            raise TypeError('"compute_units" parameter must be of type: coremltools.ComputeUnit')
        stage = Path(model).stem
        self.functions.append(function_name)
        self.loaded.append((stage, compute_units))
        error = RuntimeError("Error compiling model: Failed to build the model execution plan.") if stage in self.refused else None
        if error is not None:
            message = f"You will not be able to run predict() on this Core ML model. Underlying exception message was: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        described = read_specification(Path(model)).description
        if function_name is not None and not described.functions and function_name != "main":
            raise ValueError('function_name must be "main" for non multifunction model')
        return _Model(self, stage, ReferenceModel(model, function_name), error)


class _State:
    """coremltools' MLState: the framework's own state lies behind `__proxy__`."""

    def __init__(self, proxy: ModelState) -> None:
        self.__proxy__ = proxy

    def read_state(self, name: str) -> np.ndarray:
        return self.__proxy__.read_state(name)

    def write_state(self, name: str, value: np.ndarray) -> None:
        self.__proxy__.write_state(name, value)


class _Model:
    def __init__(self, owner: StandIn, stage: str, model: ReferenceModel, error: RuntimeError | None) -> None:
        self.owner, self.stage, self.reference = owner, stage, model
        self.__proxy__ = None if error is not None else object()
        self._framework_error = error

    def make_state(self) -> _State:
        if self.owner.macos < (15, 0):
            raise Exception("State functionality is only supported on macOS 15+")
        if self.__proxy__ is None:
            raise Exception("This model was not loaded with the Core ML Framework. Cannot get state.")
        return _State(self.reference.make_state())

    def predict(self, data: Any, state: _State | None = None) -> Any:
        if type(data) not in (list, dict):
            raise TypeError(f'"data" parameter must be either a dict or list of dict, but got {type(data)}.')
        if self.__proxy__ is None:
            raise Exception(f"Unable to load the model: {self._framework_error}")
        if isinstance(data, list):
            assert state is None, "State can only be used for unbatched predictions"
            return [self._predict(item, None) for item in data]
        return self._predict(data, None if state is None else state.__proxy__)

    def _predict(self, data: dict[str, Any], state: ModelState | None) -> Outputs:
        for name in data:
            if name not in self.reference.inputs:
                raise KeyError(f"Provided key {name!r} does not match any of the model input name(s)")
        if set(data) != set(self.reference.inputs):
            raise RuntimeError("Feature is required but not specified.")
        for name, array in data.items():
            assert isinstance(array, np.ndarray), name
            assert array.flags.c_contiguous, name
            assert array.flags.writeable, name
            assert array.dtype in (np.float16, np.float32, np.float64, np.int32), name
        owner, stage = self.owner, self.stage
        owner.predictions[stage] = owner.predictions.get(stage, 0) + 1
        try:
            outputs = self.reference.predict(data, state)
        except PackageError as error:
            raise RuntimeError(f"Error computing NN outputs: {error}") from error
        if stage in owner.faults and owner.predictions[stage] > owner.fault_after.get(stage, 0):
            outputs = owner.faults[stage](outputs)
        return outputs


@pytest.fixture
def coreml(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Core ML seems to be here, and it is the stand-in."""
    stand_in = StandIn()
    for module in (coreml_backend, choice, packages):
        monkeypatch.setattr(module, "coreml_available", lambda: True)
    monkeypatch.setattr(ct.models, "MLModel", stand_in.model)
    return stand_in
