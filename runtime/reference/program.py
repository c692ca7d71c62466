"""An ML Program as plain data: what the reader produces and the executor walks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

# Core ML's name, torch's type, numpy's type. Types that torch or this executor lacks are refused by the reader.
DTYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "fp16": (torch.float16, np.float16),
    "fp32": (torch.float32, np.float32),
    "fp64": (torch.float64, np.float64),
    "bool": (torch.bool, np.bool_),
    "int8": (torch.int8, np.int8),
    "int16": (torch.int16, np.int16),
    "int32": (torch.int32, np.int32),
    "int64": (torch.int64, np.int64),
    "uint8": (torch.uint8, np.uint8),
    "uint16": (torch.uint16, np.uint16),
}


@dataclass(frozen=True)
class TensorType:
    """A tensor's declared type: a key of DTYPES (or "string") and its shape, None where an axis is flexible."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Constant:
    """A value fixed in the program. `value` is an array for tensors and a str for strings."""

    type: TensorType
    value: np.ndarray | str


Binding = str | Constant  # a name defined earlier, or a value written in place


@dataclass(frozen=True)
class Operation:
    """One operation. `inputs` maps parameter names to one or more bindings."""

    type: str
    name: str
    inputs: dict[str, tuple[Binding, ...]]
    outputs: tuple[tuple[str, TensorType], ...]


@dataclass(frozen=True)
class Function:
    """A function's inputs, constants by name, operations in order and the names of its outputs."""

    inputs: dict[str, TensorType]
    outputs: tuple[str, ...]
    opset: str
    operations: tuple[Operation, ...]
    constants: dict[str, Constant] = field(repr=False)
