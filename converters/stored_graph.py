"""From an exported program to the stored form of `runtime.hybrid`: the graph, its tensors, and how the network is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from ..errors import ConversionError
from ..runtime.hybrid.calling import Calling, stored_spec
from ..runtime.hybrid.execute import check_depth
from ..runtime.hybrid.graph import HERE, Declared, Graph, Node, Ref, SubgraphRef, encoded
from .registry import operation_name

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def stored_graph(program: ExportedProgram) -> tuple[Graph, dict[str, Tensor]]:
    """The graph, and its tensors by name: parameters, buffers and lifted constants.

    Raises ConversionError where something has no stored form.
    """
    signature = program.graph_signature
    inputs: list[str] = []
    declared: dict[str, Declared] = {}
    given: dict[str, Any] = {}
    constants: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    known = {**program.constants, **program.state_dict}
    for spec in signature.input_specs:
        name = spec.arg.name
        if isinstance(spec.arg, ConstantArgument):
            inputs.append(name)
            given[name] = spec.arg.value
        elif spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument):
            inputs.append(name)
            declared[name] = _declared(values[name], name)
        elif spec.kind in _CONSTANTS and isinstance(known.get(str(spec.target)), Tensor):
            target = str(spec.target)
            tensors[target] = known[target].detach()
            constants[name] = target
            declared[name] = Declared(tuple(tensors[target].shape), _dtype(tensors[target].dtype))
        else:
            raise ConversionError(f"the input {name!r} of the exported network is {spec.kind.name.lower()}, which has no stored form")
    nodes, outputs, subgraphs = _operations(program.graph, program.graph_module)
    results: list[Any] = []
    buffers: dict[str, str] = {}
    written: dict[str, str] = {}
    for spec, value in zip(signature.output_specs, outputs, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT:
            results.append(value)
        elif spec.kind is OutputKind.BUFFER_MUTATION and isinstance(value, Ref):
            buffers[str(spec.target)] = value.value
        elif spec.kind is OutputKind.USER_INPUT_MUTATION and isinstance(value, Ref):
            written[str(spec.target)] = value.value
        else:
            raise ConversionError(f"an output of the exported network is {spec.kind.name.lower()}, which has no stored form")
    graph = Graph(tuple(inputs), nodes, tuple(results), declared, given, constants, buffers, written, subgraphs)
    try:
        check_depth(graph)
        encoded(list(given.values()))
    except ValueError as error:
        raise ConversionError(f"the exported network has no stored form: {error}") from error
    return graph, tensors


def lifted_tensors(program: ExportedProgram, module: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors that a module does not have itself: constants of its code."""
    own = tensors_of(module)
    used = [str(spec.target) for spec in program.graph_signature.input_specs if spec.kind in _CONSTANTS]
    found = {**program.constants, **program.state_dict}
    return {name: found[name].detach() for name in used if name not in own}


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, shared ones under each of their names."""
    parameters = {name: value.detach() for name, value in module.named_parameters(remove_duplicate=False)}
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}


def calling_of(program: ExportedProgram) -> Calling:
    """How the network is called and what it gives. Raises ConversionError for a class that cannot be stored."""
    spec = program.call_spec
    names = program.module_call_graph[0].signature.forward_arg_names if program.module_call_graph[0].signature else None
    try:
        return Calling(stored_spec(spec.in_spec), stored_spec(spec.out_spec), tuple(names or ()))
    except ValueError as error:
        raise ConversionError(f"what the network takes or gives cannot be stored: {error}") from error


def _operations(graph: fx.Graph, owner: torch.nn.Module) -> tuple[tuple[Node, ...], tuple[Any, ...], dict[str, Graph]]:
    nodes: list[Node] = []
    outputs: tuple[Any, ...] = ()
    subgraphs: dict[str, Graph] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            name = operation_name(node.target)
            kwargs = {key: _argument(value, subgraphs, owner) for key, value in node.kwargs.items()}
            nodes.append(Node(node.name, name, tuple(_argument(item, subgraphs, owner) for item in node.args), kwargs))
            _check(nodes[-1])
        elif node.op == "output":
            result = node.args[0]
            results = result if isinstance(result, (list, tuple)) else (result,)
            outputs = tuple(_argument(item, subgraphs, owner) for item in results)
        elif node.op not in ("placeholder", "get_attr"):
            raise ConversionError(f"the exported network has a {node.op} ({node.target}), which has no stored form")
    return tuple(nodes), outputs, subgraphs


def _argument(value: Any, subgraphs: dict[str, Graph], owner: torch.nn.Module) -> Any:
    if isinstance(value, (list, tuple)):
        return [_argument(item, subgraphs, owner) for item in value]
    if isinstance(value, torch.device):
        return HERE
    if not isinstance(value, fx.Node):
        return value
    if value.op != "get_attr":
        return Ref(value.name)
    name = str(value.target)
    inner = owner.get_submodule(name) if not isinstance(getattr(owner, name, None), Tensor) else None
    if not isinstance(inner, fx.GraphModule):
        raise ConversionError(f"{name} in the exported network is no sub-graph, so it has no stored form")
    if name not in subgraphs:
        inputs = tuple(node.name for node in inner.graph.nodes if node.op == "placeholder")
        nodes, outputs, deeper = _operations(inner.graph, inner)
        subgraphs[name] = Graph(inputs, nodes, outputs, subgraphs=deeper)
    return SubgraphRef(name)


def _check(node: Node) -> None:
    try:
        encoded([*node.args, *node.kwargs.values()])
    except ValueError as error:
        raise ConversionError(f"{node.name} ({node.operation}) has an argument without a stored form: {error}") from error


def _declared(value: Any, name: str) -> Declared:
    if not isinstance(value, Tensor) or not all(isinstance(size, int) for size in value.shape):
        raise ConversionError(f"the input {name!r} has no fixed shape: export the network with fixed shapes")
    return Declared(tuple(value.shape), _dtype(value.dtype))


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["calling_of", "lifted_tensors", "stored_graph", "tensors_of"]
