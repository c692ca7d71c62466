"""A stand-in for coremltools' MLModel on macOS, which computes through the reference executor and can be made to fail.

Signature and behaviour follow coremltools 9.0 (`coremltools/models/model.py`, class MLModel): the constructor takes the
package's path and `compute_units`, `predict` takes a dict of arrays by input name and returns a dict of arrays, an
unknown or missing input is a RuntimeError, and `predict` off macOS raises a bare Exception.
"""

from __future__ import annotations

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
        if stage in self.refused:
            raise RuntimeError("Error compiling model: Failed to build the model execution plan.")
        return _Model(self, stage, ReferenceModel(model))


class _Model:
    def __init__(self, owner: StandIn, stage: str, model: ReferenceModel) -> None:
        self.owner, self.stage, self.reference = owner, stage, model

    def predict(self, data: dict[str, Any], state: Any = None) -> Outputs:
        if set(data) != set(self.reference.inputs):
            raise RuntimeError(f"Provided keys {sorted(data)} do not match the required inputs {sorted(self.reference.inputs)}.")
        owner, stage = self.owner, self.stage
        owner.predictions[stage] = owner.predictions.get(stage, 0) + 1
        outputs = self.reference.predict({name: np.asarray(value) for name, value in data.items()})
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
