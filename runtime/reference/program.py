"""An ML Program as plain data: what the reader produces and the executor walks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...coremltools_import import MIL_pb2

# Core ML's name, torch's type for storage, numpy's type at the interface. torch computes little on uint16 and wider
# unsigned integers, so these are held in the next wider signed type; types narrower than a byte in a whole byte.
DTYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "fp16": (torch.float16, np.float16),
    "fp32": (torch.float32, np.float32),
    "fp64": (torch.float64, np.float64),
    "bool": (torch.bool, np.bool_),
    "int4": (torch.int8, np.int8),
    "int8": (torch.int8, np.int8),
    "int16": (torch.int16, np.int16),
    "int32": (torch.int32, np.int32),
    "int64": (torch.int64, np.int64),
    "uint1": (torch.uint8, np.uint8),
    "uint2": (torch.uint8, np.uint8),
    "uint3": (torch.uint8, np.uint8),
    "uint4": (torch.uint8, np.uint8),
    "uint6": (torch.uint8, np.uint8),
    "uint8": (torch.uint8, np.uint8),
    "uint16": (torch.int32, np.uint16),
    "uint32": (torch.int64, np.uint32),
    "uint64": (torch.int64, np.uint64),
}
# The protobuf's codes for data types -> Core ML's names.
DATA_TYPES = {
    getattr(MIL_pb2, name): dtype
    for name, dtype in {
        "FLOAT16": "fp16",
        "FLOAT32": "fp32",
        "FLOAT64": "fp64",
        "BOOL": "bool",
        "STRING": "string",
        "INT4": "int4",
        "INT8": "int8",
        "INT16": "int16",
        "INT32": "int32",
        "INT64": "int64",
        "UINT1": "uint1",
        "UINT2": "uint2",
        "UINT3": "uint3",
        "UINT4": "uint4",
        "UINT6": "uint6",
        "UINT8": "uint8",
        "UINT16": "uint16",
        "UINT32": "uint32",
        "UINT64": "uint64",
    }.items()
}
MAX_IMMEDIATE_VALUES = 1 << 24  # values written into a program itself; larger arrays lie in the weight file
SUB_BYTE_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
FLOATS = frozenset({"fp16", "fp32", "fp64"})
OPSETS = {"CoreML5": "iOS15", "CoreML6": "iOS16", "CoreML7": "iOS17", "CoreML8": "iOS18", "CoreML9": "iOS26"}


@dataclass(frozen=True)
class TensorType:
    """A tensor's declared type: a key of DTYPES (or "string") and its shape, None where an axis is flexible.

    `variadic`: the number of axes is open too, and `shape` says nothing.
    """

    dtype: str
    shape: tuple[int | None, ...]
    variadic: bool = False

    @property
    def count(self) -> int | None:
        """How many values it declares; None where that is open."""
        total = 1
        for size in self.shape:
            if size is None or self.variadic:
                return None
            total *= size
        return None if self.variadic else total


@dataclass(frozen=True)
class ListType:
    """A list of values of one type; `length` is None where it is open."""

    element: ValueType
    length: int | None


@dataclass(frozen=True)
class TupleType:
    items: tuple[ValueType, ...]


@dataclass(frozen=True)
class DictType:
    key: ValueType
    value: ValueType


@dataclass(frozen=True)
class StateType:
    """A tensor that lives from one prediction to the next."""

    tensor: TensorType


ValueType = TensorType | ListType | TupleType | DictType | StateType


@dataclass(frozen=True)
class Constant:
    """A value fixed in the program. `value` is an array for tensors, a str for strings, a list for lists of them."""

    type: ValueType
    value: Any


Binding = str | Constant  # a name defined earlier, or a value written in place


@dataclass(frozen=True)
class Operation:
    """One operation. `inputs` maps parameter names to one or more bindings; `blocks` are those of cond and loops."""

    type: str
    name: str
    inputs: dict[str, tuple[Binding, ...]]
    outputs: tuple[tuple[str, ValueType], ...]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Block:
    """Operations in order with the constants among them. A nested block's inputs are what its operation hands in."""

    inputs: dict[str, ValueType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: dict[str, Constant] = field(repr=False)


@dataclass(frozen=True)
class Function(Block):
    """A function of the program. `opset` is what it declares, such as CoreML7; OPSETS says what that means."""

    opset: str


def value_types(block: Block) -> dict[str, ValueType]:
    """The declared type of every name that a block defines."""
    found: dict[str, ValueType] = {name: kind for operation in block.operations for name, kind in operation.outputs}
    return found | block.inputs | {name: constant.type for name, constant in block.constants.items()}


def all_operations(block: Block) -> Iterator[Operation]:
    """In order, those of nested blocks after the one that holds them."""
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from all_operations(nested)
