"""Limits of the Neural Engine that no operation of an arranged package may exceed (D1, D2, D4, D11), and operations it may not hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.program import Constant, Function, Operation, TensorType
from rvc_coreml.runtime.reference.reader import read_function

LONGEST, TAPS, HEIGHT, RANK = 16384, 13, 29, 5
FORBIDDEN = {"conv_transpose", "gather", "gather_along_axis", "gather_nd", "tile", "squeeze", "expand_dims", "layer_norm", "linear", "gru"}


def broken_limits(path: Path) -> list[str]:
    """Operations of a package that exceed a limit, in words."""
    return list(limits_broken(read_function(open_package(path))))


def limits_broken(function: Function) -> Iterator[str]:
    """Operations of a package that exceed a limit, in words."""
    for operation in function.operations:
        for name, kind in operation.outputs:
            shape = tuple(int(size or 0) for size in kind.shape) if isinstance(kind, TensorType) else ()
            if len(shape) > RANK or any(size > LONGEST for size in shape[2:]):
                yield f"{operation.type} {name} is {shape}"
        if operation.type in FORBIDDEN:
            yield f"{operation.type} {operation.name}"
        if operation.type == "conv":
            height, width = constant(function, operation, "weight").shape[2:]
            if height > HEIGHT or width > TAPS:
                yield f"{operation.name} has {height} by {width} taps"
        if operation.type == "slice_by_index" and sliced_inside(function, operation):
            yield f"{operation.name} begins inside the last axis"


def constant(function: Function, operation: Operation, slot: str) -> Any:
    binding = operation.inputs[slot][0]
    found = binding if isinstance(binding, Constant) else function.constants[binding]
    return found.value


def sliced_inside(function: Function, operation: Operation) -> bool:
    masked = "begin_mask" in operation.inputs and constant(function, operation, "begin_mask")[-1]
    return not masked and int(constant(function, operation, "begin")[-1]) != 0
