"""One operation through coremltools' frontend alone: what it refuses, and what it silently gets wrong.

Two faults show without any numbers: a keyword argument that the lowering never looks at (its code was written for traced
graphs, which have none), and a result whose type or shape is not PyTorch's.

Constants are given as constants, and what is computed from constants only is taken along (a lowering may ask for a constant
index). An operation of the same kind with the same shapes, types and numbers is asked about once in a process.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from ...coremltools_import import ct
from ..parts import TARGET, PartError, part_program
from ..quiet import quiet
from ..registry import has_lowering, lowering_of, operation_name
from .values import picks_result

if TYPE_CHECKING:
    from ..exporting import ExportedNetwork

_mil: Any = ct.converters.mil
_Node: Any = _mil.frontend.torch.internal_graph.InternalTorchIRNode
_types: Any = _mil.mil.types
_no_passes: Any = ct.PassPipeline.EMPTY
MOST_CONSTANTS = 32  # operations on constants that are taken along
QUOTED = 200  # characters of coremltools' message
# Keyword arguments that say where or how a value is stored, which a package decides by itself.
STORAGE = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "implicit", "dtype"})
_answers: dict[tuple[Any, ...], Answer] = {}


@dataclass(frozen=True)
class Answer:
    """What the frontend made of an operation. All empty where nothing is wrong.

    `refused`: the first sentence of what it raised. `ignored`: keyword arguments that it did not look at. `result`: how the
    type or the shape of a result differs, "int32 for float32".
    """

    refused: str = ""
    ignored: tuple[str, ...] = ()
    result: str = ""


def probe(network: ExportedNetwork, node: torch.fx.Node, computed: Container[str]) -> Answer:
    """Ask about one operation by itself.

    `computed`: names of the values that are no constants in a package: those that depend on an input of the network, and those
    that stay in PyTorch.
    """
    along = _constant_sources(node, computed)
    key = tuple(_signature(source, along, computed) for source in (node, *along))
    if key not in _answers:
        _answers[key] = _ask(network, node, along)
    return _answers[key]


def computed_names(network: ExportedNetwork) -> set[str]:
    """Every node that depends on an input or on a buffer that changes; the rest is constant."""
    constant = _constant_inputs(network)
    found: set[str] = set()
    for node in network.program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in constant:
                found.add(node.name)
        elif any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def first_sentence(error: BaseException) -> str:
    """What was raised first, in one line."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    text = " ".join(str(error).split()) or type(error).__name__
    for end in (". ", "\n"):
        text = text.split(end)[0]
    return (text if len(text) <= QUOTED else text[:QUOTED].rsplit(" ", 1)[0] + " ...").rstrip(".")


def _ask(network: ExportedNetwork, node: torch.fx.Node, along: tuple[torch.fx.Node, ...]) -> Answer:
    picks = (user.name for source in (node, *along) for user in source.users if user.target is picks_result())
    names = {node.name, *(source.name for source in along), *picks}
    unread: dict[str, set[str]] = {}
    try:
        part = part_program(network, names)
        kinds = {"float32": np.float32, "int32": np.int32}
        inputs = [ct.TensorType(name=seam.value, shape=seam.package_shape, dtype=kinds[seam.package_dtype]) for seam in part.inputs]
        with quiet(), _keywords_watched(unread):
            program: Any = ct.convert(
                part.program,
                inputs=inputs or None,
                convert_to="milinternal",
                pass_pipeline=_no_passes,
                minimum_deployment_target=TARGET,
            )
    except PartError as error:
        return Answer(refused=first_sentence(error))
    except Exception as error:  # noqa: BLE001 - coremltools has no exception type of its own
        return Answer(refused=first_sentence(error))
    own = {source.value: value for source, value in zip(part.outputs, program.functions["main"].outputs, strict=True)}
    mine = (name for name in own if name == node.name or any(user.name == name for user in node.users))
    differences = (_difference(network.node(name), own[name]) for name in mine)
    return Answer("", tuple(sorted(unread.get(node.name, set()) - _harmless(node))), next(filter(None, differences), ""))


def _difference(node: torch.fx.Node, variable: Any) -> str:
    """How coremltools' result differs from PyTorch's in type or shape; truth values are int32 at a seam."""
    value = node.meta["val"]
    held = _types.builtin_to_string(variable.dtype)
    kind = "float" if value.is_floating_point() else "int"
    if held.startswith("fp") != (kind == "float"):
        return f"{ {'fp32': 'float32', 'fp16': 'float16'}.get(held, held) } for {str(value.dtype).removeprefix('torch.')}"
    shape = tuple(variable.shape)
    if all(isinstance(size, (int, np.integer)) for size in shape) and shape != (tuple(value.shape) or (1,)):
        return f"the shape {shape} for {tuple(value.shape)}"
    return ""


def _harmless(node: torch.fx.Node) -> set[str]:
    """Keyword arguments of storage, and those that have their default value."""
    schema = getattr(node.target, "_schema", None)
    defaults = {argument.name: argument.default_value for argument in (schema.arguments if schema is not None else ())}
    return {name for name, value in node.kwargs.items() if name in STORAGE or value is None or value == defaults.get(name, node)}


class _Watched(dict[str, Any]):
    """Keyword arguments that note which of them nobody asked for."""

    def __init__(self, values: dict[str, Any], unread: set[str]) -> None:
        super().__init__(values)
        self.unread = unread

    def get(self, key: str, default: Any = None) -> Any:
        self.unread.discard(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.unread.discard(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.unread.clear()
        return super().__iter__()

    def items(self) -> Any:
        self.unread.clear()
        return super().items()

    def values(self) -> Any:
        self.unread.clear()
        return super().values()


@contextmanager
def _keywords_watched(unread: dict[str, set[str]]) -> Iterator[None]:
    """While it lasts, every operation's keyword arguments note in `unread`, by the operation's name, which were not asked for."""
    original: Callable[..., Any] = _Node.from_exir_node

    def watched(node: torch.fx.Node) -> Any:
        made = original(node=node)
        if made.kwinputs:
            unread[made.name] = set(made.kwinputs)
            made.kwinputs = _Watched(made.kwinputs, unread[made.name])
        return made

    own = _Node.__dict__["from_exir_node"]
    _Node.from_exir_node = staticmethod(watched)
    try:
        yield
    finally:
        _Node.from_exir_node = own


def _constant_sources(node: torch.fx.Node, computed: Container[str]) -> tuple[torch.fx.Node, ...]:
    """The operations on constants that the node's arguments come from; none if they are many or cannot be lowered."""
    found: dict[torch.fx.Node, None] = {}
    queue = [source for source in node.all_input_nodes if source.op == "call_function" and source.name not in computed]
    while queue:
        source = queue.pop()
        if source in found:
            continue
        if len(found) >= MOST_CONSTANTS or not has_lowering(source.target):
            return ()
        found[source] = None
        queue += [other for other in source.all_input_nodes if other.op == "call_function" and other.name not in computed]
    return tuple(found)


def _constant_inputs(network: ExportedNetwork) -> frozenset[str]:
    """Parameters, buffers that stay as they are, and lifted constants."""
    signature = network.program.graph_signature
    changing = set(signature.buffers_to_mutate.values())
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return frozenset(spec.arg.name for spec in signature.input_specs if spec.kind in kinds and spec.target not in changing)


def _signature(node: torch.fx.Node, along: tuple[torch.fx.Node, ...], computed: Container[str]) -> Any:
    """Which lowering it is, and what that can see: the name, shapes, types and numbers, and which operands are constants."""

    def seen(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value in along:
                return ("along", along.index(value))
            constant = value.op == "placeholder" and value.name not in computed
            return (constant, *(_shape(tensor) for tensor in _flat(value.meta.get("val"))))
        if isinstance(value, (list, tuple)):
            return tuple(seen(item) for item in value)
        return repr(value)

    kwargs = tuple((name, seen(value)) for name, value in sorted(node.kwargs.items()))
    return operation_name(node.target), lowering_of(node.target), seen(node.args), kwargs


def _shape(value: Any) -> Any:
    return (tuple(value.shape), str(value.dtype)) if isinstance(value, torch.Tensor) else repr(value)


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
