"""A stand-in for coremltools' MLModel on macOS, which computes through the reference executor and can be made to fail.

Signature and behaviour follow coremltools 9.0 (`coremltools/models/model.py`, class MLModel): the constructor takes the
package's path and `compute_units`; a package that Core ML refuses gives a RuntimeWarning and a model whose `__proxy__`
is None (`_get_proxy_and_spec`); `predict` takes a dict of arrays by input name and returns a dict of arrays, and an
unknown input is a KeyError. Core ML reads numpy's memory directly, so arrays have to lie in C order and be writable.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from rvc_coreml.runtime import packages
from rvc_coreml.runtime.backends import choice, coreml_backend
from rvc_coreml.runtime.reference import ReferenceModel

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

    def model(self, model: str, *_args: Any, compute_units: ct.ComputeUnit = ct.ComputeUnit.ALL, **_kwargs: Any) -> _Model:
        stage = Path(model).stem
        self.loaded.append((stage, compute_units))
        error = RuntimeError("Error compiling model: Failed to build the model execution plan.") if stage in self.refused else None
        if error is not None:
            message = f"You will not be able to run predict() on this Core ML model. Underlying exception message was: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return _Model(self, stage, ReferenceModel(model), error)


class _Model:
    def __init__(self, owner: StandIn, stage: str, model: ReferenceModel, error: RuntimeError | None) -> None:
        self.owner, self.stage, self.reference = owner, stage, model
        self.__proxy__ = None if error is not None else object()
        self._framework_error = error

    def predict(self, data: dict[str, Any], state: Any = None) -> Outputs:
        if self.__proxy__ is None:
            raise Exception(f"Unable to load the model: {self._framework_error}")
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
        outputs = self.reference.predict(data)
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
