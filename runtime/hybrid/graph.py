"""A network's operations as data: names of ATen operations, their arguments, and which value goes where.

    {"inputs": ["x"], "declared": {"x": [[1, 4], "float32"], "p_weight": [[4, 4], "float32"]}, "given": {},
     "constants": {"p_weight": "linear.weight"},
     "nodes": [["sinc", "aten.sinc.default", [{"value": "x"}], {}]],
     "outputs": [{"value": "sinc"}], "buffers": {}, "written": {}, "subgraphs": {}}

Reading makes plain objects and nothing else: no name is looked up, imported or called here. `operations` decides which
operations may run, `execute` runs them; docs/hybrid.md says what that protects from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import PackageError

MAX_BYTES = 64 << 20  # of a graph's file; a network of 10,000 operations takes two million
MAX_NODES = 200_000  # sub-graphs included
MAX_NAME = 500
MAX_TEXT = 10_000  # of an argument
MAX_ITEMS = 100_000  # of an argument's list
MAX_DEPTH = 8  # of lists in lists, and of sub-graphs in sub-graphs
MAX_RANK = 64  # torch's own limit
_INT64 = 1 << 63
_PLAIN = (bool, int, float, str, type(None))
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}


@dataclass(frozen=True)
class Ref:
    """A value by name."""

    value: str


@dataclass(frozen=True)
class SubgraphRef:
    """A sub-graph by name."""

    name: str


class Here:
    """In place of every device: the one that the graph runs on."""

    def __repr__(self) -> str:
        return "here"


HERE = Here()


@dataclass(frozen=True)
class Declared:
    """What a tensor from outside has to be."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


@dataclass(frozen=True)
class Node:
    """One operation. `name` is what its result is called; arguments hold Ref, SubgraphRef, HERE and torch's own constants."""

    name: str
    operation: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def references(self) -> Iterator[str]:
        """The values that it reads, as often as it does."""
        yield from references((*self.args, *self.kwargs.values()))

    def subgraphs(self) -> Iterator[str]:
        return (item.name for item in _leaves((*self.args, *self.kwargs.values())) if isinstance(item, SubgraphRef))


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can run.

    `given` has the inputs that are no tensors with the value that the graph was made for, `constants` a tensor's name for
    values that come with the network, `buffers` the new value of each constant that the network changes, and `written` that
    of each input that it changes.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Any, ...]
    declared: Mapping[str, Declared] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, str] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    subgraphs: Mapping[str, Graph] = field(default_factory=dict)

    def wanted(self) -> tuple[str, ...]:
        """Every value that is read at the end, each once."""
        return tuple(dict.fromkeys([*references(self.outputs), *self.buffers.values(), *self.written.values()]))

    def operations(self) -> Iterator[str]:
        """Names of all operations, those of sub-graphs included."""
        for node in self.nodes:
            yield node.operation
        for graph in self.subgraphs.values():
            yield from graph.operations()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "inputs": list(self.inputs),
            "declared": {name: [list(facts.shape), facts.dtype] for name, facts in self.declared.items()},
            "given": {name: encoded(value) for name, value in self.given.items()},
            "constants": dict(self.constants),
            "nodes": [
                [node.name, node.operation, encoded(node.args), {name: encoded(value) for name, value in node.kwargs.items()}]
                for node in self.nodes
            ],
            "outputs": encoded(self.outputs),
            "buffers": dict(self.buffers),
            "written": dict(self.written),
            "subgraphs": {name: graph.to_json() for name, graph in self.subgraphs.items()},
        }


def references(arguments: Any) -> Iterator[str]:
    """The values that arguments name."""
    return (item.value for item in _leaves(arguments) if isinstance(item, Ref))


def _leaves(arguments: Any) -> Iterator[Any]:
    if isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from _leaves(item)
    else:
        yield arguments


# ------------------------------------------------------------ writing


def encoded(value: Any) -> Any:
    """An argument as JSON. Raises ValueError for what has no such form."""
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if type(value) in _PLAIN:
        return value
    if isinstance(value, complex):
        return {"complex": [encoded(value.real), encoded(value.imag)]}
    if isinstance(value, Ref):
        return {"value": value.value}
    if isinstance(value, SubgraphRef):
        return {"graph": value.name}
    if isinstance(value, (Here, torch.device)):
        return {"device": "here"}
    tables: tuple[tuple[str, type, Mapping[str, Any]], ...] = (
        ("dtype", torch.dtype, DTYPES),
        ("layout", torch.layout, LAYOUTS),
        ("memory_format", torch.memory_format, MEMORY_FORMATS),
    )
    for kind, type_, table in tables:
        if isinstance(value, type_):
            for name, known in table.items():
                if known == value:
                    return {kind: name}
    raise ValueError(f"{value!r} ({type(value).__name__}) has no stored form")


# ------------------------------------------------------------ reading


def load_graph(path: Path) -> Graph:
    """As `read_graph`, of a file of which no more is read than a graph may have. Raises OSError too."""
    with path.open("rb") as file:
        return read_graph(file.read(MAX_BYTES + 1), str(path))


def read_graph(text: str | bytes, where: str) -> Graph:
    """A graph from its JSON, checked as `graph_from_json` does. `where` names the file in errors."""
    if len(text) > MAX_BYTES:
        raise PackageError(f"{where} is larger than any graph (more than {MAX_BYTES >> 20} MiB): convert the network again")
    return graph_from_json(parsed(text, where), where)


def parsed(text: str | bytes, where: str) -> Any:
    """JSON without what JSON has not (NaN), as one PackageError where it cannot be read."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{where} is damaged ({_line(error)}): convert the network again") from error


def graph_from_json(content: Any, where: str) -> Graph:
    """Checked: every name is well formed, every value is defined before it is read and only once, sizes are sane. Raises PackageError."""
    try:
        return _graph(content, [0], 0)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise PackageError(f"{where} is damaged ({_line(error)}): convert the network again") from error


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{'no entry ' if isinstance(error, KeyError) else ''}{text or type(error).__name__}"[:300]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _graph(content: Any, counted: list[int], depth: int) -> Graph:
    if depth > MAX_DEPTH:
        raise ValueError("its sub-graphs lie too deep in each other")
    fields = ("inputs", "declared", "given", "constants", "nodes", "outputs", "buffers", "written", "subgraphs")
    _require(isinstance(content, dict) and set(content) == set(fields), f"a graph has the entries {', '.join(fields)}")
    inputs = tuple(_name(item) for item in _list(content["inputs"]))
    constants = _names(content["constants"])
    subgraphs = {_name(name): _graph(graph, counted, depth + 1) for name, graph in _dict(content["subgraphs"]).items()}
    known: set[str] = set()
    for name in (*inputs, *constants):
        _define(name, known)
    nodes = tuple(_node(item, known, subgraphs, counted) for item in _list(content["nodes"]))
    declared = {_name(name): _declared(facts) for name, facts in _dict(content["declared"]).items()}
    given = {_name(name): _argument(value, known, {}, 0) for name, value in _dict(content["given"]).items()}
    outputs = tuple(_argument(item, known, {}, 0) for item in _list(content["outputs"]))
    buffers, written = _names(content["buffers"]), _names(content["written"])
    _require(not set(declared) - set(inputs) - set(constants), "what is declared is neither an input nor a constant")
    _require(set(given) <= set(inputs) and not set(given) & set(declared), "what is given is no input, or a tensor too")
    _require(not any(True for value in given.values() for _ in references(value)), "a given value refers to another")
    _require(set(buffers) <= set(constants.values()), "a buffer that is changed is no constant")
    _require(set(written) <= set(inputs) - set(given), "an input that is changed is none")
    for value in (*buffers.values(), *written.values()):
        _require(value in known, f"{value!r} is not defined")
    if depth == 0:
        _require(set(inputs) == (set(declared) | set(given)) - set(constants), "an input's shape is not declared")
        _require(set(constants) <= set(declared), "a constant's shape is not declared")
    else:
        _require(not constants and not buffers and not written and not given, "a sub-graph has constants of its own")
    return Graph(inputs, nodes, outputs, declared, given, constants, buffers, written, subgraphs)


def _node(item: Any, known: set[str], subgraphs: Mapping[str, Graph], counted: list[int]) -> Node:
    counted[0] += 1
    _require(counted[0] <= MAX_NODES, "it has more operations than any network")
    _require(isinstance(item, list) and len(item) == 4, "an operation is [name, operation, arguments, named arguments]")
    name, operation = _name(item[0]), _name(item[1])
    args = tuple(_argument(value, known, subgraphs, 0) for value in _list(item[2]))
    kwargs = {_name(key): _argument(value, known, subgraphs, 0) for key, value in _dict(item[3]).items()}
    _define(name, known)
    return Node(name, operation, args, kwargs)


def _define(name: str, known: set[str]) -> None:
    _require(name not in known, f"{name!r} is defined twice")
    known.add(name)


def _declared(item: Any) -> Declared:
    _require(isinstance(item, list) and len(item) == 2, "a tensor is declared as [shape, type]")
    return Declared(shape_of(item[0]), dtype_name(item[1]))


def shape_of(item: Any) -> tuple[int, ...]:
    """A shape from JSON. Raises ValueError."""
    sizes = tuple(_list(item))
    _require(len(sizes) <= MAX_RANK and all(type(size) is int and 0 <= size < 1 << 40 for size in sizes), f"{item!r:.100} is no shape")
    return sizes


def dtype_name(item: Any) -> str:
    """The name of a type that tensors may have. Raises ValueError."""
    _require(isinstance(item, str) and item in DTYPES, f"{item!r:.100} is no type of a tensor")
    return item


def _argument(item: Any, known: set[str], subgraphs: Mapping[str, Graph], depth: int) -> Any:
    _require(depth <= MAX_DEPTH, "an argument's lists lie too deep in each other")
    if isinstance(item, list):
        _require(len(item) <= MAX_ITEMS, "an argument's list is longer than any")
        return [_argument(value, known, subgraphs, depth + 1) for value in item]
    if isinstance(item, dict):
        _require(len(item) == 1, f"{item!r:.100} is no argument")
        kind, value = next(iter(item.items()))
        _require(kind in _TAGS or kind in ("value", "graph"), f"{kind!r:.100} is no kind of argument")
        if kind == "value":
            _require(isinstance(value, str) and value in known, f"{value!r:.100} is not defined where it is read")
            return Ref(value)
        if kind == "graph":
            _require(isinstance(value, str) and value in subgraphs, f"there is no sub-graph {value!r:.100}")
            return SubgraphRef(value)
        return _TAGS[kind](value)
    _require(type(item) in _PLAIN, f"{item!r:.100} is no argument")
    if isinstance(item, str):
        _require(len(item) <= MAX_TEXT, "an argument's text is longer than any")
    elif isinstance(item, int):
        _require(-_INT64 <= item < _INT64, "a number does not fit in 64 bits")
    return item


def _float(item: Any) -> float:
    _require(item in ("inf", "-inf", "nan"), f"{item!r:.100} is no number")
    return float(item)


def _complex(item: Any) -> complex:
    _require(isinstance(item, list) and len(item) == 2, f"{item!r:.100} is no complex number")
    parts = [_float(part["float"]) if isinstance(part, dict) else part for part in item]
    _require(all(type(part) in (int, float) for part in parts), f"{item!r:.100} is no complex number")
    return complex(*parts)


def _here(item: Any) -> Here:
    _require(item == "here", f"{item!r:.100} is no device: a graph runs where its caller says")
    return HERE


def _one_of(table: Mapping[str, Any]) -> Callable[[Any], Any]:
    def look_up(item: Any) -> Any:
        _require(isinstance(item, str) and item in table, f"{item!r:.100} is none of {', '.join(table)}")
        return table[item]

    return look_up


_TAGS: dict[str, Callable[[Any], Any]] = {
    "float": _float,
    "complex": _complex,
    "device": _here,
    "dtype": _one_of(DTYPES),
    "layout": _one_of(LAYOUTS),
    "memory_format": _one_of(MEMORY_FORMATS),
}


def _name(item: Any) -> str:
    _require(isinstance(item, str) and 0 < len(item) <= MAX_NAME and item.isprintable(), f"{item!r:.100} is no name")
    return item


def _names(item: Any) -> dict[str, str]:
    return {_name(key): _name(value) for key, value in _dict(item).items()}


def _list(item: Any) -> list[Any]:
    _require(isinstance(item, list), f"{item!r:.100} is no list")
    return item


def _dict(item: Any) -> dict[str, Any]:
    _require(isinstance(item, dict), f"{item!r:.100} is no table")
    return item


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
