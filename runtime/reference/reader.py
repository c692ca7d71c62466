"""From a package's protobuf to `program.Function`: our own walk, which checks as it goes and computes nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...coremltools_import import MIL_pb2
from ...errors import PackageError
from .package import Package, resolve_in_model_folder
from .program import DTYPES, Binding, Constant, Function, Operation, TensorType
from .weights import WeightFile

MAX_IMMEDIATE_VALUES = 1 << 24  # values written into the specification itself; larger arrays lie in the weight file
Message = Any  # protobuf classes have no static types
_DATA_TYPES = {
    MIL_pb2.FLOAT16: "fp16",
    MIL_pb2.FLOAT32: "fp32",
    MIL_pb2.FLOAT64: "fp64",
    MIL_pb2.BOOL: "bool",
    MIL_pb2.STRING: "string",
    MIL_pb2.INT8: "int8",
    MIL_pb2.INT16: "int16",
    MIL_pb2.INT32: "int32",
    MIL_pb2.INT64: "int64",
    MIL_pb2.UINT8: "uint8",
    MIL_pb2.UINT16: "uint16",
}


def read_function(package: Package, name: str = "main") -> Function:
    """One function of a package. Raises PackageError for other model kinds and for anything out of bounds."""
    kind = package.specification.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageError(f"{package.path} holds a model of kind {kind!r}; only ML Programs can be run by the reference executor")
    functions = package.specification.mlProgram.functions
    if name not in functions:
        raise PackageError(f"{package.path} has no function {name!r}; it has {', '.join(sorted(functions)) or 'none'}")
    return _Reader(package).function(functions[name])


class _Reader:
    """Keeps the open weight files and the names defined so far."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.files: dict[str, WeightFile] = {}

    def function(self, function: Message) -> Function:
        blocks = function.block_specializations
        opset = function.opset or next(iter(blocks), "")
        if opset not in blocks:
            raise self._error(f"its program has no block for opset {opset!r}")
        block = blocks[opset]
        inputs = {item.name: self._tensor_type(item.type, item.name) for item in function.inputs}
        known = set(inputs)
        constants: dict[str, Constant] = {}
        operations = []
        for operation in block.operations:
            outputs = tuple((item.name, self._tensor_type(item.type, item.name)) for item in operation.outputs)
            if operation.type == "const":
                constants[outputs[0][0]] = self._constant(operation, outputs)
            else:
                operations.append(self._operation(operation, outputs, known))
            known.update(output for output, _kind in outputs)
        missing = [output for output in block.outputs if output not in known]
        if missing:
            raise self._error(f"its output {missing[0]!r} is never computed")
        return Function(inputs, tuple(block.outputs), opset, tuple(operations), constants)

    def _operation(self, operation: Message, outputs: tuple[tuple[str, TensorType], ...], known: set[str]) -> Operation:
        name = self._name(operation, outputs)
        if len(operation.blocks):
            raise self._error(f"operation {name} ({operation.type}) has nested blocks, which are not supported yet")
        inputs = {
            parameter: tuple(self._binding(binding, name, known) for binding in argument.arguments)
            for parameter, argument in operation.inputs.items()
        }
        return Operation(operation.type, name, inputs, outputs)

    def _binding(self, binding: Message, name: str, known: set[str]) -> Binding:
        if binding.WhichOneof("binding") == "value":
            return self._value(binding.value, name)
        if binding.name not in known:
            raise self._error(f"operation {name} reads {binding.name!r}, which is not defined before it")
        return binding.name

    def _name(self, operation: Message, outputs: tuple[tuple[str, TensorType], ...]) -> str:
        if "name" in operation.attributes:
            for name in operation.attributes["name"].immediateValue.tensor.strings.values:
                return str(name)
        return outputs[0][0] if outputs else str(operation.type)

    def _constant(self, operation: Message, outputs: tuple[tuple[str, TensorType], ...]) -> Constant:
        if len(outputs) != 1 or "val" not in operation.attributes:
            raise self._error(f"constant {self._name(operation, outputs)} has no value")
        return self._value(operation.attributes["val"], outputs[0][0])

    def _tensor_type(self, kind: Message, name: str) -> TensorType:
        if kind.WhichOneof("type") != "tensorType":
            raise self._error(f"{name} is a {kind.WhichOneof('type')}, which is not supported yet")
        tensor = kind.tensorType
        if tensor.dataType not in _DATA_TYPES:
            raise self._error(f"{name} has the data type {tensor.dataType}, which is not supported yet")
        shape = tuple(int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else None for axis in tensor.dimensions)
        return TensorType(_DATA_TYPES[tensor.dataType], shape)

    def _value(self, value: Message, name: str) -> Constant:
        kind = self._tensor_type(value.type, name)
        if None in kind.shape:
            raise self._error(f"constant {name} has a flexible shape")
        if value.WhichOneof("value") == "blobFileValue":
            if kind.dtype not in DTYPES:
                raise self._error(f"constant {name} is a {kind.dtype} in the weight file")
            return Constant(kind, self._file(value.blobFileValue.fileName).array(value.blobFileValue.offset, kind, name))
        return Constant(kind, self._immediate(value.immediateValue, kind, name))

    def _file(self, name: str) -> WeightFile:
        if name not in self.files:
            self.files[name] = WeightFile(resolve_in_model_folder(self.package, name))
        return self.files[name]

    def _immediate(self, value: Message, kind: TensorType, name: str) -> np.ndarray | str:
        if value.WhichOneof("value") != "tensor":
            raise self._error(f"constant {name} is a {value.WhichOneof('value')}, which is not supported yet")
        field = value.tensor.WhichOneof("value")
        if field is None:
            raise self._error(f"constant {name} has no value")
        stored: Any = getattr(value.tensor, field).values
        if field == "strings":
            if kind.dtype != "string" or len(stored) != 1:
                raise self._error(f"constant {name} is a list of strings, which is not supported yet")
            return str(stored[0])
        if kind.dtype == "string":
            raise self._error(f"constant {name} is declared a string and holds {field}")
        dtype = DTYPES[kind.dtype][1]
        shape = [int(axis or 0) for axis in kind.shape]
        count = math.prod(shape)
        if count > MAX_IMMEDIATE_VALUES:
            raise self._error(f"constant {name} declares {count} values within the specification")
        array = np.frombuffer(stored, dtype=dtype) if field == "bytes" and len(stored) == count * np.dtype(dtype).itemsize else None
        if array is None:
            if field == "bytes" or len(stored) != count:
                raise self._error(f"constant {name} holds {len(stored)} values and {kind.shape} needs {count}")
            array = np.array(stored, dtype=dtype)
        return array.reshape(shape)

    def _error(self, message: str) -> PackageError:
        return PackageError(f"{self.package.path}: {message}")
