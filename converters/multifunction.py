"""Windows of one stage as functions of one package, which share its weights. Needs iOS 18 or macOS 15; not yet run on a Mac.

coremltools lets functions share a constant of one type and shape. Windows in different layouts hold the same numbers in other
shapes, a linear layer's (out, in) and a 1x1 convolution's (out, in, 1, 1), which are the same bytes: these are stored once too.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..coremltools_import import ct
from ..errors import ConversionError
from ..runtime.reference.weights import SENTINEL
from .quiet import quiet

ALIGNMENT = 64  # bytes, of records and of what they point at (MIL's blob storage, version 2)
_HEADER = struct.Struct("<II")  # number of records, version
_RECORD = struct.Struct("<IIQQQ")  # sentinel, data type, bytes, where they begin, bits of padding
_MODEL, _WEIGHTS = Path("Data/com.apple.CoreML/model.mlmodel"), Path("Data/com.apple.CoreML/weights/weight.bin")


def function_name(window: int) -> str:
    """Of a window's function."""
    return f"frames_{window}"


def merge_windows(packages: Mapping[str, Path], target: Path) -> None:
    """Packages of one function each, by the name that it gets, into one at `target`; the first is what runs by default.

    Raises ConversionError where coremltools cannot.
    """
    wanted = ct.utils.MultiFunctionDescriptor()
    for name, path in packages.items():
        wanted.add_function(str(path), "main", name)
    wanted.default_function_name = next(iter(packages))
    with quiet():
        try:
            ct.utils.save_multifunction(wanted, str(target))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ConversionError(f"coremltools could not put the windows {', '.join(packages)} into one package ({said})") from error
    specification: Any = ct.utils.load_spec(str(target))  # protobuf classes have no static types
    described: Any = ct.utils.load_spec(str(next(iter(packages.values()))))
    specification.description.metadata.CopyFrom(described.description.metadata)  # what coremltools drops
    if (target / _WEIGHTS).is_file():
        _share(specification, target / _WEIGHTS)
    (target / _MODEL).write_bytes(specification.SerializeToString())


def _share(specification: Any, path: Path) -> None:
    """Keep of equal weights one, whatever their shapes. Raises ConversionError for a weight file that is not as expected."""
    stored = path.read_bytes()
    count, version = _HEADER.unpack_from(stored)
    references = list(_references(specification.mlProgram))
    written = path.with_name("shared.bin")
    moved: dict[int, int] = {}  # where a record lay -> where it lies
    known: dict[tuple[int, int, bytes], int] = {}
    with written.open("wb") as file:
        file.write(bytes(ALIGNMENT))
        for offset in sorted({reference.offset for reference in references}):
            sentinel, code, size, start, padding = _RECORD.unpack_from(stored, offset)
            if sentinel != SENTINEL or start + size > len(stored):
                raise ConversionError(f"the weight file of a package with several windows has no record at {offset}")
            data = memoryview(stored)[start : start + size]
            key = (code, padding, hashlib.sha256(data).digest())
            if key not in known:
                known[key] = file.tell()
                file.write(_RECORD.pack(sentinel, code, size, file.tell() + ALIGNMENT, padding).ljust(ALIGNMENT, b"\0"))
                file.write(data)
                file.write(bytes(-size % ALIGNMENT))
            moved[offset] = known[key]
        file.seek(0)
        file.write(_HEADER.pack(len(known), version))
    if len(known) == count:
        written.unlink()
        return
    for reference in references:
        reference.offset = moved[reference.offset]
    written.replace(path)


def _references(program: Any) -> Iterator[Any]:
    """Every place in a program that points into its weight file."""
    for function in program.functions.values():
        for block in function.block_specializations.values():
            yield from _in_block(block)


def _in_block(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        values = [*operation.attributes.values()]
        values += [argument.value for item in operation.inputs.values() for argument in item.arguments]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                yield value.blobFileValue
        for nested in operation.blocks:
            yield from _in_block(nested)
