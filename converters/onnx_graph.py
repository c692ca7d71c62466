"""A small hand for building ONNX graphs: names, shared constants, weights under their checkpoint names.

Graphs are built operation by operation and not traced by torch.onnx, whose TorchScript exporter is deprecated and whose
successor needs another library; what is written then does not change with torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

PRODUCER = "rvc-coreml"
MIN_OPSET, MAX_OPSET = 13, 21  # axes of Squeeze and Unsqueeze are inputs from 13 on; 21 is the newest that was run
LAYER_NORM_OPSET = 17  # the first with LayerNormalization
Dimension = int | str


class GraphBuilder:
    """Collects nodes and constants; values go by the names of their ONNX tensors."""

    def __init__(self, opset: int, half_weights: bool = False) -> None:
        self.opset = opset
        self.half_weights = half_weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._weights: dict[str, str] = {}
        self._names: dict[str, int] = {}

    def __call__(self, operation: str, *inputs: str, scope: str = "", name: str | None = None, **attributes: Any) -> str:
        """Append a node in front of which all its inputs stand; returns its only output, called `name` where given."""
        output = self._unique(f"{scope}/{operation}" if scope else operation) if name is None else name
        self._nodes.append(helper.make_node(operation, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def weight(self, name: str, tensor: Tensor) -> str:
        """A checkpoint entry under its own name; stored in half precision it is cast back before its first use."""
        if name not in self._weights:
            array = tensor.detach().cpu().float().contiguous().numpy()
            stored = array.astype(np.float16) if self.half_weights else array
            self._initializers[name] = numpy_helper.from_array(stored, name)
            self._weights[name] = self("Cast", name, scope=name, to=TensorProto.FLOAT) if self.half_weights else name
        return self._weights[name]

    def constant(self, values: ArrayLike, dtype: type[np.generic]) -> str:
        """An initialiser of these values; equal ones are one."""
        array: NDArray[Any] = np.array(values, dtype=dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(list(values), np.int64)

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(value, np.float32)

    def cut(self, x: str, start: int | str, stop: int | str, axis: int, step: int = 1, scope: str = "") -> str:
        """Slice along one axis; a bound may be the name of an int64 vector of one."""
        first, last = (self.integers(bound) if isinstance(bound, int) else bound for bound in (start, stop))
        return self("Slice", x, first, last, self.integers(axis), self.integers(step), scope=scope)

    def model(
        self,
        title: str,
        inputs: Sequence[tuple[str, int, Sequence[Dimension]]],
        outputs: Sequence[tuple[str, int, Sequence[Dimension]]],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The finished model; inputs and outputs are name, element type and shape."""
        graph = helper.make_graph(
            self._nodes,
            title,
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            list(self._initializers.values()),
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, producer_name=PRODUCER, ir_version=helper.find_min_ir_version_for(imports))
        helper.set_model_props(model, metadata)
        return model

    def _unique(self, stem: str) -> str:
        count = self._names.get(stem, 0)
        self._names[stem] = count + 1
        return f"{stem}_{count}" if count else stem
