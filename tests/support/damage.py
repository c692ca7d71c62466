"""Damage planted in saved packages."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.models.stages import Stage
from rvc_coreml.runtime.library import Component
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.reader import read_function

from .programs import edited_specification, main_block, read_specification

WEIGHT_FILE = Path("Data") / "com.apple.CoreML" / "weights" / "weight.bin"
RECORD = struct.Struct("<IIQQ")  # of the weight file: sentinel, data type, size, start
WEIGHTED = {"conv": ("weight", "bias"), "conv_transpose": ("weight", "bias"), "linear": ("weight", "bias"), "layer_norm": ("gamma", "beta")}


def largest_weight(package: Path) -> np.memmap:
    """The package's largest weight array, writable in place, flat."""
    function = read_function(open_package(package))
    stored = [constant.value for constant in function.constants.values() if isinstance(constant.value, np.memmap)]
    target = max(stored, key=lambda array: array.size)
    file = package / WEIGHT_FILE
    data, wanted = file.read_bytes(), target.tobytes()
    assert data.count(wanted) == 1
    return np.memmap(file, dtype=target.dtype, mode="r+", offset=data.index(wanted), shape=(target.size,))


def operation_of(package: Path, modules: dict[str, str], module: str) -> str:
    """The name of the one operation with weights that a module became; `modules` is the package's map."""
    block = main_block(read_specification(package))
    (name,) = [_name(operation) for operation in block.operations if operation.type in WEIGHTED and modules[_name(operation)] == module]
    return name


def stored_weight(package: Path, operation: str, slot: str = "weight") -> np.memmap:
    """An operation's weight in the weight file, shaped, writable in place."""
    function = read_function(open_package(package))
    (binding,) = next(item for item in function.operations if item.name == operation).inputs[slot]
    block = main_block(read_specification(package))
    (constant,) = [item for item in block.operations if item.type == "const" and item.outputs[0].name == binding]
    file = package / WEIGHT_FILE
    offset = constant.attributes["val"].blobFileValue.offset
    _sentinel, _kind, _size, start = RECORD.unpack(file.read_bytes()[offset : offset + RECORD.size])
    value = np.asarray(function.constants[str(binding)].value)
    return np.memmap(file, dtype=value.dtype, mode="r+", offset=start, shape=value.shape)


def transpose_kernel(package: Path, operation: str) -> None:
    """Exchange the input and output channels of a square convolution."""
    weight = stored_weight(package, operation)
    weight[:] = np.swapaxes(weight, 0, 1).copy()
    weight.flush()


def biases(package: Path) -> list[str]:
    """Names of the operations that have a bias."""
    block = main_block(read_specification(package))
    return [_name(item) for item in block.operations if item.type in WEIGHTED and WEIGHTED[item.type][1] in item.inputs]


def drop_bias(package: Path, operation: str) -> None:
    """Take the bias away from an operation of the package's program."""
    with edited_specification(package) as specification:
        target = next(item for item in main_block(specification).operations if _name(item) == operation)
        del target.inputs[WEIGHTED[target.type][1]]


@contextmanager
def swapped(component: Component, stage: str, package: Path, modules: dict[str, str]) -> Iterator[None]:
    """Another package with its map in the place of a library's own."""
    kept = package.with_suffix(".kept")
    map_file = component.build / component.manifest.stages[stage].operations
    text = map_file.read_text(encoding="utf-8")
    shutil.move(component.package(stage), kept)
    try:
        shutil.copytree(package, component.package(stage))
        map_file.write_text(json.dumps(modules), encoding="utf-8")
        yield
    finally:
        shutil.rmtree(component.package(stage))
        shutil.move(kept, component.package(stage))
        map_file.write_text(text, encoding="utf-8")


def converted(stage: Stage, package: Path, precision: str = "fp16") -> dict[str, str]:
    """Convert a stage as it is, checking nothing; the map of its operations."""
    result = convert_stage(stage, precision)
    result.model.save(str(package))
    return result.operations


def _name(operation: Any) -> str:
    """As the reader names it."""
    if "name" in operation.attributes:
        return str(operation.attributes["name"].immediateValue.tensor.strings.values[0])
    return str(operation.outputs[0].name)
