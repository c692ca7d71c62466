"""Single ONNX operations run by ONNX Runtime: an implementation that shares nothing with torch or coremltools."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest


def run_onnx(operation: str, *inputs: np.ndarray | None, opset: int = 19, **attributes: Any) -> np.ndarray:
    """The first output of an operation; None for an input left out. Skips the test where ONNX Runtime is missing."""
    runtime = pytest.importorskip("onnxruntime")
    given = {f"in{index}": array for index, array in enumerate(inputs) if array is not None}
    names = [f"in{index}" if array is not None else "" for index, array in enumerate(inputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operation, names, ["out"], **attributes)],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given.items()
        ],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]
