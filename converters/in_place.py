"""In-place updates of an exported graph as values of their own, where nothing else sees the memory that is updated.

PyTorch's own functionalisation handles every case and takes most of torch.export's time; `relu_` of a convolution's result
does not need it. Whether two values share memory is asked of the fake tensors that torch.export has computed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.multiprocessing.reductions import StorageWeakRef

# Normalisations whose sixth argument has them change their statistics, which their schemas do not say.
_SILENTLY_UPDATING = (torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default)


def functional(target: OpOverload) -> OpOverload:
    """Of an in-place operation the one without, "aten.add_.Tensor" -> aten.add.Tensor; any other as it is."""
    packet, overload = str(target).split(".")[1:]
    plain = getattr(torch.ops.aten, packet.removesuffix("_"), None) if target.namespace == "aten" and packet.endswith("_") else None
    return getattr(plain, overload, target)


def updates(node: fx.Node) -> bool:
    """Whether a call changes a tensor that it is given."""
    if not isinstance(node.target, OpOverload):
        return False
    return node.target._schema.is_mutable or (node.target in _SILENTLY_UPDATING and node.args[5] is not False)  # noqa: SLF001


def take_updates_out(program: ExportedProgram) -> bool:
    """Put a call without an update in the place of every one whose memory nobody else sees; whether none is left."""
    graph = program.graph
    order = {node: position for position, node in enumerate(graph.nodes)}
    sharing: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            sharing.setdefault(StorageWeakRef(node.meta["val"].untyped_storage()), []).append(node)
    for group in sharing.values():
        if len(group) > 1 and any(updates(node) for node in group) and _is_chain(group, order):
            for node in group[1:]:
                _replace(program, node)
    return not any(updates(node) for node in graph.nodes if node.op == "call_function")


def _is_chain(group: list[fx.Node], order: dict[fx.Node, int]) -> bool:
    """Whether a new value is updated, then that result, and so on, and nobody reads what has been updated."""
    first = group[0]
    if first.op != "call_function" or updates(first):
        return False
    for before, node in pairwise(group):
        if (
            not isinstance(node.target, OpOverload)
            or not updates(node)
            or functional(node.target) is node.target
            or node.args[0] is not before
        ):
            return False
        if functional(node.target)._schema.is_mutable or any(order[user] > order[node] for user in before.users):  # noqa: SLF001
            return False
        tensors = [source.meta.get("val") for source in node.all_input_nodes]
        if any(not isinstance(tensor, Tensor) or tensor.dtype != before.meta["val"].dtype for tensor in tensors):
            return False
    return True


def _replace(program: ExportedProgram, node: fx.Node) -> None:
    name = node.name
    node.target = functional(node.target)  # type: ignore[arg-type]
    node._rename(node.target._schema.name.removeprefix("aten::"))  # type: ignore[union-attr] # noqa: SLF001
    program.graph_signature.replace_all_uses(name, node.name)
