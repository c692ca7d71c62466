"""A compiled model's folder, written out of a package the way Core ML's compiler writes ML Programs as text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2

from .programs import WEIGHT_FILE, read_specification

OPSETS = {"CoreML5": "ios15", "CoreML6": "ios16", "CoreML7": "ios17", "CoreML8": "ios18"}
_BYTES = {MIL_pb2.FLOAT16: np.float16, MIL_pb2.INT8: np.int8, MIL_pb2.UINT8: np.uint8}


def compile_package(package: Path, folder: Path, short: bool = False) -> Path:
    """`short`: scalars as newer compilers write them, `fp16(0x1p-1)` instead of `tensor<fp16, []>(0x1p-1)`."""
    folder.mkdir()
    (folder / "coremldata.bin").write_bytes(b"\0")
    if (package / WEIGHT_FILE).exists():
        (folder / "weights").mkdir()
        shutil.copy(package / WEIGHT_FILE, folder / "weights" / "weight.bin")
    (folder / "model.mil").write_text(program_text(read_specification(package).mlProgram, short))
    return folder


def program_text(program: Any, short: bool) -> str:
    lines = ["program(1.0)", '[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3402.4.1"}})]', "{"]
    for name, function in program.functions.items():
        block = function.block_specializations[function.opset]
        inputs = ", ".join(f"{_type(item.type, short)} {item.name}" for item in function.inputs)
        lines.append(f"    func {name}<{OPSETS[function.opset]}>({inputs}) {{")
        lines += [f"            {_operation(operation, short)}" for operation in block.operations]
        lines.append(f"        }} -> ({', '.join(block.outputs)});")
    return "\n".join([*lines, "}", ""])


def _operation(operation: Any, short: bool) -> str:
    outputs = ", ".join(f"{_type(item.type, short)} {item.name}" for item in operation.outputs)
    inputs = ", ".join(f"{name} = {_argument(argument, short)}" for name, argument in sorted(operation.inputs.items()))
    attributes = ", ".join(f"{name} = {_value(value, short)}" for name, value in sorted(operation.attributes.items()))
    return f"{outputs}{' = ' if outputs else ''}{operation.type}({inputs})[{attributes}];"


def _argument(argument: Any, short: bool) -> str:
    shown = [item.name if item.WhichOneof("binding") == "name" else _value(item.value, short) for item in argument.arguments]
    return shown[0] if len(shown) == 1 else f"({', '.join(shown)})"


def _type(kind: Any, short: bool) -> str:
    if kind.WhichOneof("type") == "stateType":
        return f"state<{_type(kind.stateType.wrappedType, short)}>"
    tensor = kind.tensorType
    dtype = MIL_pb2.DataType.Name(tensor.dataType).lower().replace("float", "fp")
    if short and not tensor.dimensions:
        return dtype
    sizes = [str(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else "?" for axis in tensor.dimensions]
    return f"tensor<{dtype}, [{', '.join(sizes)}]>"


def _value(value: Any, short: bool) -> str:
    kind = _type(value.type, short)
    if value.WhichOneof("value") == "blobFileValue":
        text, whole = ("string", "uint64") if short else ("tensor<string, []>", "tensor<uint64, []>")
        return f'{kind}(BLOBFILE(path = {text}("{value.blobFileValue.fileName}"), offset = {whole}({value.blobFileValue.offset})))'
    tensor = value.immediateValue.tensor
    stored = getattr(tensor, tensor.WhichOneof("value")).values
    dtype = value.type.tensorType.dataType
    items = list(np.frombuffer(stored, _BYTES[dtype])) if dtype in _BYTES else list(stored)
    sizes = [axis.constant.size for axis in value.type.tensorType.dimensions]
    return f"{kind}({_nested([_scalar(item) for item in items], sizes)})"


def _nested(items: list[str], sizes: list[int]) -> str:
    if not sizes:
        return items[0]
    step = len(items) // sizes[0] if sizes[0] else 0
    return f"[{', '.join(_nested(items[i * step : (i + 1) * step], sizes[1:]) for i in range(sizes[0]))}]"


def _scalar(item: Any) -> str:
    if isinstance(item, str):
        return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(item, (bool, np.bool_)):
        return "true" if item else "false"
    if isinstance(item, (float, np.floating)):
        value = float(item)
        return value.hex() if np.isfinite(value) else {np.inf: "inf", -np.inf: "-inf"}.get(value, "nan")
    return str(int(item))
