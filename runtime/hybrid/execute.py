"""Runs stored graphs in PyTorch: one operation after the other, each value given back after its last use.

Loading checks every operation; running can fail only as PyTorch does. Random operations run in the order of the graph, on
PyTorch's own generator, so that a seed gives the numbers that the network itself would draw.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import PackageError
from ..devices import full_precision
from .graph import MAX_DEPTH, Graph, Here, Node, Ref, SubgraphRef
from .operations import COND, GETITEM, WHILE_LOOP, Operation, check_arguments, prepared, resolve

Values = dict[str, Any]
MAX_ITERATIONS = 10_000_000  # of a loop


class Executable:
    """Operations of a graph, ready to run: all of them, or those named (in the graph's order).

    `wanted` are the values that are kept. `needs` are the values that it reads and does not make. `where` is the file, for
    errors. Raises PackageError for an operation that may not run, naming it.
    """

    def __init__(
        self,
        graph: Graph,
        names: Collection[str] | None = None,
        wanted: Sequence[str] | None = None,
        *,
        where: str = "the graph",
        custom_operations: Collection[str] = (),
    ) -> None:
        self._where = where
        chosen = [node for node in graph.nodes if names is None or node.name in names]
        self._subgraphs = {
            name: Executable(graph.subgraphs[name], where=where, custom_operations=custom_operations)
            for node in chosen
            for name in node.subgraphs()
        }
        self.wanted = tuple(graph.wanted() if wanted is None else wanted)
        self._inputs, self._outputs = graph.inputs, graph.outputs
        made, kept = {node.name for node in chosen}, set(self.wanted)
        read = [name for node in chosen for name in node.references()]
        self.needs = tuple(dict.fromkeys(name for name in (*read, *self.wanted) if name not in made))
        last = {name: position for position, node in enumerate(chosen) for name in (node.name, *node.references())}
        dropped: dict[int, list[str]] = {}
        for name, position in last.items():
            if name not in kept:
                dropped.setdefault(position, []).append(name)
        self._steps = [(self._step(node, custom_operations), tuple(dropped.get(position, ()))) for position, node in enumerate(chosen)]

    def __call__(self, values: Mapping[str, Any], device: torch.device | str = "cpu") -> Values:
        """The wanted values. Raises PackageError where a value is missing or PyTorch raises, naming the operation."""
        missing = [name for name in self.needs if name not in values]
        if missing:
            raise PackageError(f"{self._where} needs the value {missing[0]!r}, which was not given")
        place = torch.empty(0, device=device).device  # "cuda" with its number, as tensors have it
        known = {name: values[name] for name in self.needs}
        with torch.no_grad(), full_precision():
            self._run(known, place)
        return {name: known[name] for name in self.wanted}

    def _run(self, known: Values, device: torch.device) -> None:
        for step, dropped in self._steps:
            step(known, device)
            for name in dropped:
                known.pop(name, None)

    def apply(self, values: Sequence[Any], device: torch.device) -> Any:
        """As a sub-graph: its inputs in order, its outputs as a tuple."""
        if len(values) != len(self._inputs):
            raise ValueError(f"a sub-graph is given {len(values)} values and takes {len(self._inputs)}")
        known = dict(zip(self._inputs, values, strict=True))
        self._run(known, device)
        return tuple(_filled(item, known, device) for item in self._outputs)

    def _step(self, node: Node, custom: Collection[str]) -> Callable[[Values, torch.device], None]:
        try:
            operation = resolve(node.operation, custom)
            check_arguments(operation, node)
        except ValueError as error:
            raise PackageError(f"{self._where}: {node.name} is {node.operation}, which {error}; nothing was run") from error
        call = self._call(operation, node)
        name = node.name

        def step(known: Values, device: torch.device) -> None:
            try:
                known[name] = call(known, device)
            except PackageError:
                raise
            except Exception as error:
                text = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise PackageError(f"{self._where}: {name} ({node.operation}) failed in PyTorch: {text}") from error

        return step

    def _call(self, operation: Operation, node: Node) -> Callable[[Values, torch.device], Any]:
        if node.operation == GETITEM:
            return lambda known, device: _item(_filled(node.args[0], known, device), node.args[1])
        if node.operation == COND:
            return lambda known, device: self._cond(*(_filled(item, known, device) for item in node.args), device=device)
        if node.operation == WHILE_LOOP:
            return lambda known, device: self._while_loop(*(_filled(item, known, device) for item in node.args), device=device)
        args, kwargs = prepared(operation, node)
        return lambda known, device: operation.checked(
            [_filled(item, known, device) for item in args], {key: _filled(item, known, device) for key, item in kwargs.items()}
        )

    def _cond(self, condition: Any, yes: str, no: str, values: Sequence[Any], device: torch.device) -> Any:
        return self._subgraphs[yes if bool(condition) else no].apply(values, device)

    def _while_loop(
        self, condition: str, body: str, carried: Sequence[Any], fixed: Sequence[Any] = (), *, device: torch.device
    ) -> tuple[Any, ...]:
        values = tuple(carried)
        for _ in range(MAX_ITERATIONS):
            if not bool(self._subgraphs[condition].apply((*values, *fixed), device)[0]):
                return values
            values = self._subgraphs[body].apply((*values, *fixed), device)
            if len(values) != len(carried):
                raise ValueError("a loop's body gives another number of values than it takes")
        raise ValueError(f"a loop does not end within {MAX_ITERATIONS} rounds")


def run(
    graph: Graph,
    values: Mapping[str, Any],
    wanted: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    *,
    custom_operations: Collection[str] = (),
) -> Values:
    """The wanted values (None: what the graph gives) of a graph, from its inputs and constants by name."""
    return Executable(graph, None, wanted, custom_operations=custom_operations)(values, device)


def check_constants(graph: Graph, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises PackageError where a tensor that comes with the network is missing, or is another than the graph was made for."""
    for value, name in graph.constants.items():
        declared = graph.declared[value]
        found = tensors.get(name)
        if found is None:
            raise PackageError(f"{where}: the tensor {name!r} is missing: convert the network again")
        if tuple(found.shape) != declared.shape or str(found.dtype) != f"torch.{declared.dtype}":
            raise PackageError(
                f"{where}: the tensor {name!r} is {tuple(found.shape)} {found.dtype} and should be {declared}: convert again"
            )


def check_depth(graph: Graph, depth: int = 0) -> None:
    """Raises ValueError where sub-graphs lie deeper in each other than a file may have them."""
    if depth > MAX_DEPTH:
        raise ValueError("branches and loops lie too deep in each other")
    for inner in graph.subgraphs.values():
        check_depth(inner, depth + 1)


def _item(values: Any, number: int) -> Any:
    if not isinstance(values, (list, tuple)):
        raise ValueError("there are not several results to take one of")
    return values[number]


def _filled(argument: Any, known: Values, device: torch.device) -> Any:
    """An argument with values in place of references; sub-graphs stay names."""
    if isinstance(argument, Ref):
        return known[argument.value]
    if isinstance(argument, (list, tuple)):
        return [_filled(item, known, device) for item in argument]
    if isinstance(argument, Here):
        return device
    return argument.name if isinstance(argument, SubgraphRef) else argument
