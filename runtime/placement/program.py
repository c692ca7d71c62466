"""Which packages are the same program: what is computed, without the weights and without what only describes it.

Two voices of one shape are one program, and what was found about compute units for one holds for the other as far as the
units' support and speed go; each still has to reproduce its own goldens.

Left out: values in the weight file, floating-point tensors written into the program (small weights lie there; a single
number such as an epsilon or a slope counts), names of operations and values (numbered in their order instead), and what
describes: the model's metadata, `buildInfo`, and the attributes `name`. What counts: the specification's version, the
interface with its types and shapes, every operation with its type, attributes and bindings, all types, and integers,
switches and texts (strides, axes, paddings).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Message = Any  # protobuf classes have no static types
_FLOATS = frozenset({"FLOAT16", "FLOAT32", "FLOAT64"})
_DESCRIBING = frozenset({"name", "buildInfo"})


def program_key(package: Path) -> str:
    """Hex digest of a package's program. Raises PackageError for what cannot be read or is no ML Program."""
    stat = (package / "Manifest.json").stat() if (package / "Manifest.json").is_file() else None
    return _program_key(package, None if stat is None else (stat.st_mtime_ns, stat.st_ino))


@functools.lru_cache(maxsize=64)
def _program_key(package: Path, _version: tuple[int, int] | None) -> str:
    from ..reference.package import open_package
    from ..reference.reader import function_names

    opened = open_package(package)
    names = function_names(opened)
    digest = hashlib.sha256()
    for part in _model(opened.specification, names):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _model(specification: Message, names: list[str]) -> Iterator[str]:
    yield str(specification.specificationVersion)
    description = specification.description
    for side, features in (("input", description.input), ("output", description.output), ("state", description.state)):
        for feature in features:
            yield f"{side} {feature.name} {_bytes(feature.type)}"
    program = specification.mlProgram
    yield f"program {program.version}"
    yield from _attributes(program.attributes)
    for name in names:
        function = program.functions[name]
        known: dict[str, int] = {}
        yield f"function {name} {function.opset}"
        for item in function.inputs:
            known[item.name] = len(known)
            yield f"{item.name} {_bytes(item.type)}"
        yield from _attributes(function.attributes)
        for opset in sorted(function.block_specializations):
            yield f"block {opset}"
            yield from _block(function.block_specializations[opset], dict(known), outputs_named=True)


def _block(block: Message, known: dict[str, int], outputs_named: bool = False) -> Iterator[str]:
    """`known`: the number of every name defined so far. A function's outputs are part of its interface and count by name."""
    for item in block.inputs:
        known[item.name] = len(known)
        yield f"takes {_bytes(item.type)}"
    yield from _attributes(block.attributes)
    for operation in block.operations:
        yield f"operation {operation.type}"
        for parameter in sorted(operation.inputs):
            for argument in operation.inputs[parameter].arguments:
                if argument.WhichOneof("binding") == "name":
                    yield f"{parameter} = {_reference(argument.name, known)}"
                else:
                    yield f"{parameter} = {_value(argument.value)}"
        yield from _attributes(operation.attributes)
        for nested in operation.blocks:
            yield from _block(nested, dict(known))
        for item in operation.outputs:
            known[item.name] = len(known)
            yield f"gives {_bytes(item.type)}"
    for name in block.outputs:
        yield f"returns {_reference(name, known)}" + (f" as {name}" if outputs_named else "")


def _reference(name: str, known: dict[str, int]) -> str:
    return f"#{known[name]}" if name in known else name


def _attributes(attributes: Message) -> Iterator[str]:
    for name in sorted(attributes):
        if name not in _DESCRIBING:
            yield f"attribute {name} = {_value(attributes[name])}"


def _value(value: Message) -> str:
    """Its type, and what it holds where that is no weight."""
    kind = _bytes(value.type)
    if value.WhichOneof("value") == "blobFileValue" or _is_weight(value.type):
        return f"{kind} weight"
    return f"{kind} {_bytes(value.immediateValue)}"


def _is_weight(kind: Message) -> bool:
    """Floating point with at least one axis."""
    if kind.WhichOneof("type") != "tensorType":
        return False
    tensor = kind.tensorType
    return _data_type(tensor.dataType) in _FLOATS and len(tensor.dimensions) > 0


def _data_type(code: int) -> str:
    from ...coremltools_import import MIL_pb2

    return MIL_pb2.DataType.Name(code) if code in MIL_pb2.DataType.values() else str(code)


def _bytes(message: Message) -> str:
    return message.SerializeToString(deterministic=True).hex()
