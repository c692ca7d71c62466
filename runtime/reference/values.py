"""Who hands out a program's values: an execution of a package under some policy, or tensors recorded by an earlier run.

A value knows its place in the program, so that `compare` can find its partner in another source. Half-precision
conversion appends `_cast_fp16` and the like to names and renames some results; that is overlooked.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ...errors import UsageError
from .executor import Executed, ModelState, ReferenceModel
from .program import all_operations

INDEX_FILE = "index.json"
RECORDED = "recorded"  # stands for an operation's type where only its values are known
MAX_RECORDED_BYTES = 8 << 30  # one value
_PRECISION_SUFFIX = re.compile(r"(_cast_fp(16|32)|_to_fp(16|32))+$")
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)

Origin = tuple[str, str]


class Source(Protocol):
    """Hands out values in program order.

    `names` are the plain names of all that may come, `origins` the plain names and types of their operations.
    """

    names: frozenset[str]
    origins: frozenset[Origin]

    def __iter__(self) -> Iterator[Value]: ...


@dataclass(frozen=True)
class Value:
    """One result: where in the program, what computed it, what it is called and from which values it was made.

    `scope` names the loops around it, each with its round (`loop[2]/`); it is empty in the program's main block.
    `source` is the operation's name and `operation` its type.
    """

    scope: str
    source: str
    operation: str
    name: str
    array: np.ndarray
    parents: tuple[str, ...] = ()

    @property
    def origin(self) -> Origin:
        return plain_name(self.source), self.operation

    def key(self, other: Source) -> tuple[str, ...] | None:
        """What it shares with its partner among another source's values; None where it has none."""
        if plain_name(self.name) in other.names:
            return self.scope, plain_name(self.name)
        if self.operation != "cast" and self.origin in other.origins:  # casts are numbered, and precision adds some
            return self.scope, *self.origin
        return None


def plain_name(name: str) -> str:
    """A name without what precision conversion appends to it."""
    return _PRECISION_SUFFIX.sub("", name)


class Execution:
    """A package run on some inputs, as a source of values. `outputs` has its outputs once all values were handed out."""

    def __init__(self, model: ReferenceModel, inputs: Mapping[str, Any]) -> None:
        self.model, self.inputs = model, inputs
        self.outputs: dict[str, Any] = {}
        operations = list(all_operations(model.program))
        self.names = frozenset(plain_name(name) for operation in operations for name, _kind in operation.outputs)
        self.origins = frozenset((plain_name(operation.name), operation.type) for operation in operations)

    def __iter__(self) -> Iterator[Value]:
        state: ModelState | None = self.model.make_state() if self.model.states else None
        run = self.model.trace(self.inputs, state)
        while True:
            try:
                executed = next(run)
            except StopIteration as finished:
                self.outputs = finished.value
                return
            yield from values_of(executed)
            del executed  # it holds the values


def values_of(executed: Executed) -> Iterator[Value]:
    """The tensors among an operation's results, as arrays."""
    operation = executed.step.operation
    parents = tuple(binding for bindings in operation.inputs.values() for binding in bindings if isinstance(binding, str))
    scope = executed.place.removesuffix(operation.name)
    for name, result in executed.results.items():
        if isinstance(result, Tensor):
            yield Value(scope, operation.name, operation.type, name, result.numpy(), parents)


class Recording:
    """Values in an .npz file by name, or in a folder that `write_intermediates` made; read one at a time.

    Raises UsageError for anything else, here or when an array that cannot be read is reached.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.is_dir():
                index = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))
                fields = ("scope", "source", "operation", "name")
                self._entries = [(*(str(item[field]) for field in fields), self._loader(item)) for item in index["values"]]
            else:
                archive = np.load(path, allow_pickle=False)
                self._entries = [("", name, RECORDED, name, lambda name=name: _from_archive(archive, name)) for name in archive.files]
        except (*_UNREADABLE, RecursionError) as error:
            raise UsageError(f"{path} holds no recorded values (an .npz file, or a folder from 'run --intermediates')") from error
        self.names = frozenset(plain_name(name) for _scope, _source, _operation, name, _load in self._entries)
        self.origins = frozenset((plain_name(source), operation) for _scope, source, operation, _name, _load in self._entries)

    def _loader(self, item: Mapping[str, Any]) -> Callable[[], np.ndarray]:
        file = self.path / str(item["file"])
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise UsageError(f"{self.path / INDEX_FILE} points outside its folder ({item['file']})")
        return lambda: np.load(file, allow_pickle=False)

    def __iter__(self) -> Iterator[Value]:
        for scope, source, operation, name, load in self._entries:
            try:
                array = load()
                if array.dtype.kind not in "fiub":
                    raise ValueError(f"it holds {array.dtype}, not numbers")
            except _UNREADABLE as error:
                raise UsageError(f"{self.path}: the recorded value {name} cannot be read ({error})") from error
            yield Value(scope, source, operation, name, array)


def _from_archive(archive: Any, name: str) -> np.ndarray:
    """Raises ValueError for what would unpack to more than any value takes."""
    size = max((entry.file_size for entry in archive.zip.infolist() if entry.filename.removesuffix(".npy") == name), default=0)
    if size > MAX_RECORDED_BYTES:
        raise ValueError(f"it claims to unpack to {size} bytes")
    return archive[name]


def write_intermediates(values: Iterable[Value], folder: Path) -> int:
    """Every value as a numbered .npy file in an existing empty folder, with an index; how many there were.

    File names are numbers, because names in a package can be anything.
    """
    entries = []
    for number, value in enumerate(values):
        file = f"{number:05d}.npy"
        np.save(folder / file, value.array, allow_pickle=False)
        entries.append(
            {
                "file": file,
                "scope": value.scope,
                "source": value.source,
                "operation": value.operation,
                "name": value.name,
                "dtype": value.array.dtype.name,
                "shape": list(value.array.shape),
            }
        )
    (folder / INDEX_FILE).write_text(json.dumps({"values": entries}, indent=1), encoding="utf-8")
    return len(entries)
