"""From a package's protobuf to `program.Function`: our own walk, which checks as it goes and computes nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...coremltools_import import MIL_pb2
from ...errors import PackageError
from .package import Package, resolve_in_model_folder
from .program import (
    DATA_TYPES,
    DTYPES,
    MAX_IMMEDIATE_VALUES,
    SUB_BYTE_BITS,
    Binding,
    Block,
    Constant,
    DictType,
    Function,
    ListType,
    Operation,
    StateType,
    TensorType,
    TupleType,
    ValueType,
)
from .weights import WeightFile, stored_bytes, unpack_bits

MAX_RANK = 64  # torch's limit; Core ML's own is far lower
MAX_SIZE = 1 << 59  # values; torch and numpy count bytes in signed 64 bit
Message = Any  # protobuf classes have no static types
_DESCRIBED = frozenset({"name"})  # an operation's attributes that describe it; all others are parameters with fixed values


_OLDER = "a neural network, Core ML's older format"
_KINDS = {
    "neuralNetwork": _OLDER,
    "neuralNetworkClassifier": _OLDER,
    "neuralNetworkRegressor": _OLDER,
    "pipeline": "a pipeline of models",
    "pipelineClassifier": "a pipeline of models",
    "pipelineRegressor": "a pipeline of models",
    "linkedModel": "a link to another model",
    "serializedModel": "an encrypted model",
}
_ADVICE = {_OLDER: "convert the original network with convert_to='mlprogram'", "a pipeline of models": "open its parts one by one"}


def function_names(package: Package) -> list[str]:
    """The functions of a package, the default one first. Raises PackageError for a package that is no ML Program."""
    kind = package.specification.WhichOneof("Type")
    if kind is None:
        raise PackageError(f"{package.path} holds no model: its specification is empty")
    if kind != "mlProgram":
        what = _KINDS.get(kind, "a model")
        advice = f": {_ADVICE[what]}" if what in _ADVICE else ""
        raise PackageError(f"{package.path} holds {what} (kind {kind!r}); only ML Programs can be run here{advice}")
    default = _default_name(package)
    return sorted(package.specification.mlProgram.functions, key=lambda name: (name != default, name))


def _default_name(package: Package) -> str:
    return str(package.specification.description.defaultFunctionName or "main")


def read_function(package: Package, name: str | None = None, files: dict[str, WeightFile] | None = None) -> Function:
    """One function of a package, the default one where none is named; `files` receives the weight files it opened.

    Raises PackageError for other model kinds and for anything out of bounds.
    """
    names = function_names(package)
    name = _default_name(package) if name is None else name
    if name not in names:
        raise PackageError(f"{package.path} has no function {name!r}; it has {', '.join(names) or 'none'}")
    return _Reader(package, {} if files is None else files).function(package.specification.mlProgram.functions[name])


class _Reader:
    """Keeps the open weight files."""

    def __init__(self, package: Package, files: dict[str, WeightFile]) -> None:
        self.package = package
        self.files = files

    def function(self, function: Message) -> Function:
        blocks = function.block_specializations
        opset = function.opset or next(iter(blocks), "")
        if opset not in blocks:
            raise self._error(f"its program has no block for opset {opset!r}")
        inputs = {item.name: self._type(item.type, item.name) for item in function.inputs}
        block = self._block(blocks[opset], inputs, set())
        return Function(block.inputs, block.outputs, block.operations, block.constants, opset)

    def _block(self, block: Message, inputs: dict[str, ValueType], outer: set[str]) -> Block:
        """`outer`: the names that the enclosing blocks have defined so far."""
        known, local = set(outer) | set(inputs), set(inputs)
        constants: dict[str, Constant] = {}
        operations = []
        for operation in block.operations:
            outputs = tuple((item.name, self._type(item.type, item.name)) for item in operation.outputs)
            for name, _kind in outputs:
                if name in local:
                    raise self._error(f"{name!r} is defined twice")
                local.add(name)
            if operation.type == "const":
                name = self._only_name(operation, outputs)
                constants[name] = self._constant(operation, outputs)
            else:
                operations.append(self._operation(operation, outputs, known))
            known |= {name for name, _kind in outputs}
        missing = [output for output in block.outputs if output not in known]
        if missing:
            raise self._error(f"its output {missing[0]!r} is never computed")
        return Block(inputs, tuple(block.outputs), tuple(operations), constants)

    def _operation(self, operation: Message, outputs: tuple[tuple[str, ValueType], ...], known: set[str]) -> Operation:
        name = self._name(operation, outputs)
        inputs = {
            parameter: tuple(self._binding(binding, name, known) for binding in argument.arguments)
            for parameter, argument in operation.inputs.items()
        }
        inputs |= {
            parameter: (self._value(value, name),)
            for parameter, value in operation.attributes.items()
            if parameter not in _DESCRIBED and parameter not in inputs
        }
        blocks = tuple(
            self._block(block, {item.name: self._type(item.type, item.name) for item in block.inputs}, known) for block in operation.blocks
        )
        return Operation(operation.type, name, inputs, outputs, blocks)

    def _binding(self, binding: Message, name: str, known: set[str]) -> Binding:
        if binding.WhichOneof("binding") == "value":
            return self._value(binding.value, name)
        if binding.name not in known:
            raise self._error(f"operation {name} reads {binding.name!r}, which is not defined before it")
        return binding.name

    def _name(self, operation: Message, outputs: tuple[tuple[str, ValueType], ...]) -> str:
        if "name" in operation.attributes:
            for name in operation.attributes["name"].immediateValue.tensor.strings.values:
                return str(name)
        return outputs[0][0] if outputs else str(operation.type)

    def _only_name(self, operation: Message, outputs: tuple[tuple[str, ValueType], ...]) -> str:
        if len(outputs) != 1 or "val" not in operation.attributes:
            raise self._error(f"constant {self._name(operation, outputs)} has no value")
        return outputs[0][0]

    def _constant(self, operation: Message, outputs: tuple[tuple[str, ValueType], ...]) -> Constant:
        constant = self._value(operation.attributes["val"], outputs[0][0])
        declared = outputs[0][1]
        fixed = isinstance(declared, TensorType) and declared.count is not None
        if fixed and constant.type != declared:
            raise self._error(f"constant {outputs[0][0]} is declared {_shown(declared)} and holds {_shown(constant.type)}")
        return constant

    def _type(self, kind: Message, name: str) -> ValueType:
        which = kind.WhichOneof("type")
        if which == "tensorType":
            return self._tensor_type(kind.tensorType, name)
        if which == "listType":
            length = kind.listType.length
            fixed = int(length.constant.size) if length.WhichOneof("dimension") == "constant" else None
            return ListType(self._type(kind.listType.type, name), fixed)
        if which == "tupleType":
            return TupleType(tuple(self._type(item, name) for item in kind.tupleType.types))
        if which == "dictionaryType":
            return DictType(self._type(kind.dictionaryType.keyType, name), self._type(kind.dictionaryType.valueType, name))
        if which == "stateType":
            wrapped = self._type(kind.stateType.wrappedType, name)
            if not isinstance(wrapped, TensorType) or wrapped.count is None or wrapped.dtype not in DTYPES:
                raise self._error(f"the state {name} is no tensor of fixed shape")
            return StateType(wrapped)
        raise self._error(f"{name} is declared with no type")

    def _tensor_type(self, tensor: Message, name: str) -> TensorType:
        if tensor.dataType not in DATA_TYPES:
            known = MIL_pb2.DataType.Name(tensor.dataType) if tensor.dataType in MIL_pb2.DataType.values() else tensor.dataType
            raise self._error(f"{name} has the data type {known}, which is not supported")
        if len(tensor.dimensions) > MAX_RANK:
            raise self._error(f"{name} is declared with {len(tensor.dimensions)} axes")
        sizes = [int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else None for axis in tensor.dimensions]
        if math.prod(max(size or 1, 1) for size in sizes) > MAX_SIZE:  # numpy counts the other axes of empty arrays too
            raise self._error(f"{name} is declared with the shape {tuple(sizes)}")
        return TensorType(DATA_TYPES[tensor.dataType], tuple(sizes), any(axis.unknown.variadic for axis in tensor.dimensions))

    def _value(self, value: Message, name: str) -> Constant:
        kind = self._type(value.type, name)
        if isinstance(kind, ListType):
            return Constant(kind, self._list(value.immediateValue, name))
        if not isinstance(kind, TensorType):
            raise self._error(f"constant {name} is a {_shown(kind)}, which is not supported")
        if kind.count is None:
            raise self._error(f"constant {name} has a flexible shape")
        if value.WhichOneof("value") == "blobFileValue":
            if kind.dtype not in DTYPES:
                raise self._error(f"constant {name} is a {kind.dtype} in the weight file")
            return Constant(kind, self._file(value.blobFileValue.fileName).array(value.blobFileValue.offset, kind, name))
        return Constant(kind, self._immediate(value.immediateValue, kind, name))

    def _list(self, value: Message, name: str) -> list[Any]:
        if value.WhichOneof("value") != "list":
            raise self._error(f"constant {name} is declared a list and holds {value.WhichOneof('value')}")
        return [self._value(item, name).value for item in value.list.values]

    def _file(self, name: str) -> WeightFile:
        if name not in self.files:
            self.files[name] = WeightFile(resolve_in_model_folder(self.package, name))
        return self.files[name]

    def _immediate(self, value: Message, kind: TensorType, name: str) -> np.ndarray | str:
        if value.WhichOneof("value") != "tensor":
            raise self._error(f"constant {name} is declared a tensor and holds {value.WhichOneof('value')}")
        field = value.tensor.WhichOneof("value")
        if field is None:
            raise self._error(f"constant {name} has no value")
        stored: Any = getattr(value.tensor, field).values
        if field == "strings":
            if kind.dtype != "string" or len(stored) != 1:
                raise self._error(f"constant {name} holds {len(stored)} strings where one is declared")
            return str(stored[0])
        if kind.dtype == "string":
            raise self._error(f"constant {name} is declared a string and holds {field}")
        count = kind.count or 0
        if count > MAX_IMMEDIATE_VALUES:
            raise self._error(f"constant {name} declares {count} values within the specification")
        shape = [int(axis or 0) for axis in kind.shape]
        dtype = DTYPES[kind.dtype][1]
        if field == "bytes":
            if len(stored) != stored_bytes(kind.dtype, count):
                raise self._error(f"constant {name} holds {len(stored)} bytes and {kind.shape} needs {stored_bytes(kind.dtype, count)}")
            if kind.dtype in SUB_BYTE_BITS:
                return unpack_bits(np.frombuffer(stored, dtype=np.uint8), kind.dtype, count).reshape(shape)
            return np.frombuffer(stored, dtype=dtype).reshape(shape)
        if len(stored) != count:
            raise self._error(f"constant {name} holds {len(stored)} values and {kind.shape} needs {count}")
        try:
            return np.array(stored, dtype=dtype).reshape(shape)
        except (OverflowError, ValueError, TypeError) as error:
            raise self._error(f"constant {name} holds {field} that are no {kind.dtype}") from error

    def _error(self, message: str) -> PackageError:
        return PackageError(f"{self.package.path}: {message}")


def _shown(kind: ValueType) -> str:
    """A type as a message shows it: `fp16 (1, 2)`, `list`, `tuple`, `dict`, `state`."""
    if isinstance(kind, TensorType):
        return f"{kind.dtype} {kind.shape}"
    return type(kind).__name__.removesuffix("Type").lower()
