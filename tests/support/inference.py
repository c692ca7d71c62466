"""Two more references for operations: coremltools' own value inference, and results before an output rounds them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.runtime.reference import ReferenceModel

from .programs import build_program, note_executed, write_program


def infer(operation: str, opset: str = "iOS17", **arguments: Any) -> np.ndarray:
    """The value that coremltools gives to an operation on constants."""
    found = []

    def build(x: Any) -> Any:
        found.append(getattr(mb, operation)(**arguments))
        return x

    build_program(build, [np.zeros(1, np.float32)], opset)
    assert found[0].val is not None, f"coremltools infers no value for {operation}"
    return np.asarray(found[0].val)


def run_unrounded(build: Callable[..., Any], *inputs: np.ndarray, opset: str = "iOS17") -> np.ndarray:
    """What a package's last operation gives under the float64 policy; an output would have its declared type."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_program(build_program(build, inputs, opset), Path(folder) / "model.mlpackage", opset)
        model = ReferenceModel(path, numerics="float64")
        *_, last = model.trace(dict(zip(model.inputs, inputs, strict=True)))
        note_executed(model)
        (result,) = last.results.values()
        return np.array(result.numpy())
