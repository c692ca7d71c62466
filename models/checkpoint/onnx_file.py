"""ONNX files as data: a checked graph and the constants in it. Nothing of the graph is run.

What is read is protobuf and numbers. Constants that are computed from other constants (weight norm, transposed or cast
weights) are computed here by a handful of numpy functions, each of which refuses to grow beyond a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...errors import IncompleteCheckpoint, UnreadableCheckpoint, UnsafeCheckpoint, WrongCheckpointKind

MAX_NODES = 50_000  # a traced synthesizer has some thousands
MAX_FILE = (1 << 31) - 1  # protobuf's own limit
MAX_ELEMENTS = 1 << 28  # of one constant; the largest that a voice holds has 2^22
OWN_DOMAINS = ("", "ai.onnx")
Array = NDArray[Any]
PASSING = ("Identity", "Cast", "Dropout")  # the value itself, in whatever type


@dataclass(frozen=True)
class OnnxInput:
    """`shape` has a name, or "" for none, where a length is open."""

    name: str
    element: int
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        kind = TensorProto.DataType.Name(self.element).lower() if self.element in TensorProto.DataType.values() else "unknown"
        return f"{self.name} {kind} ({', '.join(str(size) or '?' for size in self.shape)})"


class OnnxFile:
    """The graph of an ONNX file: inputs that a caller gives, nodes in order, constants, metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        model = self._model = _parse(path)
        graph = model.graph
        self.producer = model.producer_name
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name: _input(value) for value in graph.input if value.name not in self._stored}
        self.outputs = [value.name for value in graph.output]
        self.nodes = list(graph.node)
        self._check_nodes(model)
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self._values: dict[str, Array] = {}

    @property
    def initializers(self) -> frozenset[str]:
        """The names of all stored tensors."""
        return frozenset(self._stored)

    @property
    def has_half(self) -> bool:
        """Whether a stored tensor is of half precision."""
        return any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in self._stored.values())

    def _check_nodes(self, model: onnx.ModelProto) -> None:
        if len(self.nodes) > MAX_NODES:
            raise WrongCheckpointKind(f"{self.path} has {len(self.nodes)} operations, more than any voice")
        known = {*self._stored, *self.inputs}
        for node in self.nodes:
            if node.domain not in OWN_DOMAINS:
                raise WrongCheckpointKind(
                    f"{self.path} holds {node.domain}'s operation {node.op_type}, which only one runtime knows:"
                    " use the file from before it was optimised for that runtime"
                )
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise WrongCheckpointKind(
                    f"{self.path} holds branches or loops ({node.op_type}), which no voice's graph needs:"
                    " simplify it with onnxsim, or export it anew"
                )
            early = [name for name in node.input if name and name not in known]
            if early:
                raise IncompleteCheckpoint(f"{self.path} is damaged: {early[0]} is used before anything makes it")
            twice = [name for name in node.output if name in known]
            if twice:
                raise IncompleteCheckpoint(f"{self.path} is damaged: {twice[0]} is made twice")
            known.update(name for name in node.output if name)
        if model.functions:
            raise WrongCheckpointKind(
                f"{self.path} holds functions of its own: inline them with onnx.inliner, or export it with an older exporter"
            )

    def whole_model(self) -> onnx.ModelProto:
        """The file's model, with the weights that lie beside it."""
        if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in self._stored.values()):
            return self._model
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.raw_data = _external(self.path, tensor)
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
        return model

    def constant(self, name: str) -> Array | None:
        """The value of what depends on nothing but the file, floats as float32; None for what does not, or is not understood."""
        if name in self._values:
            return self._values[name]
        pending = [name]
        while pending:
            current = pending[-1]
            if current in self._values:
                pending.pop()
                continue
            if current in self._stored:
                self._values[current] = self._load(self._stored[current])
                continue
            node = self.producers.get(current)
            if node is None or (node.op_type != "Constant" and node.op_type not in _FOLDED):
                return None
            missing = [wanted for wanted in node.input if wanted and wanted not in self._values]
            if missing:
                pending += missing
                continue
            value = self._fold(node)
            if value is None:
                return None
            self._values[current] = value
        return self._values[name]

    def _fold(self, node: onnx.NodeProto) -> Array | None:
        given = attributes(node)
        if node.op_type == "Constant":
            return self._load(given["value"]) if isinstance(given.get("value"), TensorProto) else _literal(given)
        inputs = [self._values[name] if name else None for name in node.input]
        result = _FOLDED[node.op_type](inputs, given)
        if result is not None and result.size > MAX_ELEMENTS:
            raise UnsafeCheckpoint(
                f"{self.path}: {node.name or node.op_type} would make {result.size} numbers, far more than a voice holds"
            )
        return result

    def _load(self, tensor: onnx.TensorProto) -> Array:
        if math.prod(tensor.dims) > MAX_ELEMENTS or any(size < 0 for size in tensor.dims):
            raise UnsafeCheckpoint(f"{self.path}: {tensor.name} claims the shape {tuple(tensor.dims)}, far more than a voice holds")
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                array = np.frombuffer(_external(self.path, tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(
                    tuple(tensor.dims)
                )
            else:
                array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise IncompleteCheckpoint(f"{self.path}: {tensor.name} does not hold what its shape {tuple(tensor.dims)} asks for") from error
        return array.astype(np.float32) if array.dtype.kind not in "iub" else array

    def leaf(self, name: str) -> tuple[Array, bool] | None:
        """The stored values that reach `name` through cutting, padding and turning alone, and whether the last two axes were swapped."""
        turned = False
        while True:
            value = self.constant(name)
            if value is not None:
                return value, turned
            node = self.producers.get(name)
            if node is None or node.op_type not in _CARRYING:
                return None
            if node.op_type == "Transpose":
                order = attributes(node).get("perm")
                turned ^= order is None or list(order[-2:]) == [len(order) - 1, len(order) - 2]
            name = node.input[0]

    def leaves(self, name: str) -> set[str]:
        """The names of the stored tensors that a constant is made of."""
        seen, pending = set(), [name]
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            if current not in self._stored and current in self.producers:
                pending += [wanted for wanted in self.producers[current].input if wanted]
        return seen & self._stored.keys()

    def following(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes that read a value, through those that pass it on."""
        pending = list(self.consumers.get(name, []))
        while pending:
            node = pending.pop(0)
            if node.op_type in PASSING:
                pending[:0] = self.consumers.get(node.output[0], [])
            else:
                yield node


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _parse(path: Path) -> onnx.ModelProto:
    if path.stat().st_size > MAX_FILE:
        raise UnreadableCheckpoint(f"{path} is larger than an ONNX file can be")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RecursionError) as error:
        raise UnreadableCheckpoint(f"{path} is damaged, truncated or no ONNX file; download or copy it again") from error
    if not model.ir_version or not model.graph.node:
        raise UnreadableCheckpoint(f"{path} is truncated or no ONNX file: it holds no graph; download or copy it again")
    return model


def _input(value: onnx.ValueInfoProto) -> OnnxInput:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param for size in tensor.shape.dim)
    return OnnxInput(value.name, tensor.elem_type, shape)


def files_beside(path: Path) -> list[Path]:
    """The files that hold weights of an ONNX file, in a fixed order; none for a file that cannot be read."""
    try:
        tensors = _parse(path).graph.initializer
    except UnreadableCheckpoint:
        return []
    named = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / name for name in sorted(named) if Path(name).name == name and (path.parent / name).is_file()]


def _external(path: Path, tensor: onnx.TensorProto) -> bytes:
    """Values that lie in a file beside the ONNX file. Raises UnsafeCheckpoint for a file elsewhere, IncompleteCheckpoint for a lost one."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.absolute().parent
    file = folder / location
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or file.resolve().parent != folder.resolve():
        raise UnsafeCheckpoint(f"{path} wants to read {location!r}, outside its own folder: it was not read")
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    expected = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if not file.is_file():
        raise IncompleteCheckpoint(f"{path} keeps its weights in {location!r}, which does not lie beside it: copy both")
    if offset < 0 or length not in (-1, expected) or offset + expected > file.stat().st_size:
        raise IncompleteCheckpoint(f"{path}: {location!r} beside it is too short for {tensor.name}; copy it again")
    with file.open("rb") as handle:
        handle.seek(offset)
        return handle.read(expected)


def _literal(given: Mapping[str, Any]) -> Array | None:
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64)):
        if name in given:
            return np.asarray(given[name], dtype)
    return None


def _axes(inputs: list[Array | None], given: Mapping[str, Any]) -> tuple[int, ...] | None:
    """An attribute in older operation sets, an input in newer ones."""
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(int(axis) for axis in inputs[1].reshape(-1))
    return tuple(given["axes"]) if "axes" in given else None


def _pairwise(function: Callable[[Array, Array], Array]) -> Callable[[list[Array | None], Mapping[str, Any]], Array | None]:
    def folded(inputs: list[Array | None], given: Mapping[str, Any]) -> Array | None:
        del given
        one, other = inputs
        if one is None or other is None or math.prod(np.broadcast_shapes(one.shape, other.shape)) > max(one.size, other.size):
            return None
        return np.asarray(function(one, other))

    return folded


def _single(function: Callable[..., Any]) -> Callable[[list[Array | None], Mapping[str, Any]], Array | None]:
    def folded(inputs: list[Array | None], given: Mapping[str, Any]) -> Array | None:
        return None if not inputs or inputs[0] is None else np.asarray(function(inputs[0], inputs, given))

    return folded


def _cast(x: Array, _inputs: list[Array | None], given: Mapping[str, Any]) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(given["to"])
    return x.astype(np.float32 if dtype.kind not in "iub" else dtype)


def _unsqueeze(x: Array, inputs: list[Array | None], given: Mapping[str, Any]) -> Array:
    return np.expand_dims(x, _axes(inputs, given) or (0,))


def _norm(x: Array, inputs: list[Array | None], given: Mapping[str, Any]) -> Array:
    return np.sqrt(_sum(np.square(x), inputs, given))


def _sum(x: Array, inputs: list[Array | None], given: Mapping[str, Any]) -> Array:
    return np.sum(x, axis=_axes(inputs, given), keepdims=bool(given.get("keepdims", 1)), dtype=x.dtype)


def _reshape(x: Array, inputs: list[Array | None], _given: Mapping[str, Any]) -> Array:
    shape = [] if inputs[1] is None else [int(size) for size in inputs[1].reshape(-1)]
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


# What constants may be computed by: weight norm and changes of form.
_FOLDED: dict[str, Callable[[list[Array | None], Mapping[str, Any]], Array | None]] = {
    "Identity": _single(lambda x, _inputs, _given: x),
    "Dropout": _single(lambda x, _inputs, _given: x),
    "Cast": _single(_cast),
    "Transpose": _single(lambda x, _inputs, given: np.transpose(x, given.get("perm"))),
    "Squeeze": _single(lambda x, inputs, given: np.squeeze(x, _axes(inputs, given))),
    "Unsqueeze": _single(_unsqueeze),
    "Reshape": _single(_reshape),
    "Sqrt": _single(lambda x, _inputs, _given: np.sqrt(x)),
    "Abs": _single(lambda x, _inputs, _given: np.abs(x)),
    "Reciprocal": _single(lambda x, _inputs, _given: np.reciprocal(x)),
    "ReduceL2": _single(_norm),
    "ReduceSum": _single(_sum),
    "Mul": _pairwise(np.multiply),
    "Div": _pairwise(np.divide),
    "Add": _pairwise(np.add),
    "Sub": _pairwise(np.subtract),
    "Pow": _pairwise(np.power),
}
_CARRYING = ("Identity", "Cast", "Unsqueeze", "Squeeze", "Transpose", "Pad", "Slice")
