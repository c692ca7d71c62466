"""Containers: torch's zip and legacy formats and safetensors, opened so that no file can run code.

torch files go through `torch.load(weights_only=True)` always. Where a file is known to carry objects of libraries that
are not needed here (fairseq's own classes in `hubert_base.pt`), every class it names is replaced by an inert stub that
swallows its arguments; torch's block list of modules still applies.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import UnreadableCheckpoint, UnsafeCheckpoint

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
MAX_EXPANSION = 20  # torch stores without compression; repacked files stay far below this ratio
MAX_UNPACKED_BYTES = 16 << 30
MAX_SAFETENSORS_HEADER = 100 << 20  # the format's own limit
LEGACY_PICKLES = 5  # magic number, protocol, system info, the object, storage keys
_PLAIN_BUILTINS = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "str", "tuple")
_GLOBAL_IN_MESSAGE = re.compile(r"GLOBAL ([\w.]+)|reduce for unrecognized function ([^\n]+)")


# Names of Python's own that harmless files carry. Any other has no business in a weight file, inert or not.
_PLAIN_CLASSES = {
    "argparse.Namespace",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "datetime.datetime",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "typing.Any",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN_BUILTINS),
}


class _Inert:
    """Stands for any class of a library that is not needed; accepts and forgets whatever it is given."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def __setstate__(self, state: object) -> None:
        del state


def _ordered(*args: object) -> OrderedDict[Any, Any]:
    """Stands for collections.defaultdict, whose items the unpickler sets afterwards."""
    del args
    return OrderedDict()


def is_safetensors(path: Path) -> bool:
    """Whether the content is safetensors: a small length, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_SAFETENSORS_HEADER


def is_onnx(path: Path) -> bool:
    """Whether a file may be ONNX: by its suffix, or by the version number that every one begins with."""
    with path.open("rb") as file:
        start = file.read(3)
    return path.suffix.lower() == ".onnx" or (start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] in (b"\x12", b"\x3a"))


def require_file(path: Path) -> None:
    """Raises UnreadableCheckpoint for what is not a readable, non-empty file."""
    if not path.exists():
        raise UnreadableCheckpoint(f"{path} does not exist")
    if not path.is_file():
        raise UnreadableCheckpoint(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UnreadableCheckpoint(f"{path} cannot be opened: {error.strerror or error}") from error
    if empty:
        raise UnreadableCheckpoint(f"{path} is empty; download or copy it again")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Raises UnreadableCheckpoint where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UnreadableCheckpoint(f"{path} is a damaged or truncated safetensors file ({error})") from error


def read_torch(path: Path, *, stub_unknown: bool = False) -> Any:
    """The object in a torch file, on the CPU. `stub_unknown` replaces unknown classes by inert stubs.

    Raises UnsafeCheckpoint where the file names code to run or unpacks to far more than its size, and
    UnreadableCheckpoint where it is damaged, truncated or of another format.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start == ZIP_MAGIC:
        pickles = [_pickle_of_zip(path)]
    elif start[:1] == PICKLE_MAGIC:
        pickles = _pickles_of_legacy(path)
    else:
        raise UnreadableCheckpoint(f"{path} is neither a torch checkpoint nor safetensors (its first bytes are {start!r})")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # protocol and storage notices that say nothing to a user
        try:
            with _stubs(pickles if stub_unknown else []):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refusal(path, str(error)) from error
        except MemoryError as error:
            raise UnsafeCheckpoint(f"{path} asks for more memory than this machine has") from error
        except Exception as error:
            raise UnreadableCheckpoint(f"{path} is damaged or truncated; download or copy it again ({_first_line(error)})") from error


def _refusal(path: Path, message: str) -> UnsafeCheckpoint | UnreadableCheckpoint:
    found = _GLOBAL_IN_MESSAGE.search(message)
    if found:
        name = found[1] or found[2]
        return UnsafeCheckpoint(f"{path} wants to call {name} while loading, which no weight file needs: it was not loaded")
    return UnreadableCheckpoint(f"{path} is damaged or not a weight file ({message.splitlines()[0]})")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


def _pickle_of_zip(path: Path) -> bytes:
    """The `data.pkl` of a torch zip, after checking that the archive is whole and no bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            size = path.stat().st_size
            if unpacked > MAX_UNPACKED_BYTES or unpacked > MAX_EXPANSION * size:
                raise UnsafeCheckpoint(f"{path} has {size} bytes and claims to unpack to {unpacked}: it was not unpacked")
            names = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(names) != 1:
                raise UnreadableCheckpoint(f"{path} is a zip archive but not a torch checkpoint (it holds no data.pkl)")
            return archive.read(names[0])
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnreadableCheckpoint(f"{path} is a damaged or truncated torch checkpoint; download or copy it again") from error


def _pickles_of_legacy(path: Path) -> list[bytes]:
    """The leading pickles of a file from before torch 1.6, whose raw tensors follow them."""
    pickles = []
    with path.open("rb") as file:
        try:
            for _ in range(LEGACY_PICKLES):
                start = file.tell()
                for _opcode, _argument, _position in pickletools.genops(file):
                    pass
                stop = file.tell()
                file.seek(start)
                pickles.append(file.read(stop - start))
        except Exception as error:
            if not pickles:
                raise UnreadableCheckpoint(f"{path} is damaged, truncated or not a torch checkpoint") from error
    return pickles


@contextmanager
def _stubs(pickles: list[bytes]) -> Iterator[None]:
    """Within it, every class that the pickles name and torch does not know is inert."""
    names = sorted({name for data in pickles for name in _globals_of(data)})
    harmful = [name for name in names if _is_standard(name) and name not in _PLAIN_CLASSES]
    if harmful:
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {harmful[0]}")
    stubs: list[Any] = []
    for name in names:
        replacement: Any = _ordered if name == "collections.defaultdict" else type("Inert", (_Inert,), {})
        stubs.append((replacement, name))
    with torch.serialization.safe_globals(stubs):
        yield


def _is_standard(name: str) -> bool:
    """Whether a name belongs to Python itself, under its present name or the one that protocol 2 writes for it."""
    module = name.rpartition(".")[0]
    return IMPORT_MAPPING.get(module, module).partition(".")[0] in sys.stdlib_module_names


def _globals_of(data: bytes) -> Iterator[str]:
    for opcode, argument, _position in pickletools.genops(io.BytesIO(data)):
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
            if not name.startswith(("torch.", "torch_", "collections.OrderedDict")):
                yield name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file. Raises UnreadableCheckpoint."""
    require_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UnreadableCheckpoint(f"{path} is not readable JSON ({_first_line(error)})") from error
    if not isinstance(value, dict):
        raise UnreadableCheckpoint(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value
