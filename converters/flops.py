"""What an operation of an exported graph costs in floating-point operations, and which cost none because they only move."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode, flop_registry

# Operations that copy, cast, arrange or make values and are not views (PyTorch's schemas tell the views).
_MOVING = frozenset(
    """
    _assert_tensor_metadata _reshape_copy _to_copy _unsafe_view affine_grid_generator alias_copy arange as_strided_copy
    as_strided_scatter atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors cat channel_shuffle clone column_stack
    combinations concat concatenate constant_pad_nd contiguous copy detach_copy diag diag_embed diagonal_copy diagonal_scatter
    dstack embedding empty empty_like empty_permuted empty_strided expand_copy eye fill flatten flip fliplr flipud full full_like
    gather hstack im2col index index_put index_select lift_fresh lift_fresh_copy meshgrid narrow_copy native_channel_shuffle
    new_empty new_full new_ones new_zeros one_hot ones ones_like pad pad_sequence permute_copy pixel_shuffle pixel_unshuffle
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape roll rot90 scalar_tensor scatter select_copy select_scatter slice_copy slice_scatter split_copy
    squeeze_copy stack sym_numel sym_size sym_storage_offset sym_stride t_copy take take_along_dim tile to transpose_copy tril
    tril_indices triu triu_indices unfold_copy unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze_copy upsample_nearest1d
    upsample_nearest2d upsample_nearest3d view_copy vstack zeros zeros_like
    """.split()  # noqa: SIM905 - a list of so many names is read more easily so
)
_counted: dict[Any, int] = {}


def moves_only(target: Any) -> bool:
    """Whether a call only rearranges, casts or makes constants, or works on sizes: no arithmetic on the data."""
    if not isinstance(target, OpOverload):
        return not isinstance(target, HigherOrderOperator)
    if target.namespace != "aten":
        return False
    return target.is_view or target._schema.name.removeprefix("aten::") in _MOVING  # noqa: SLF001 - its only name without the overload


def flops_of(node: fx.Node) -> int:
    """By the formulas of `torch.utils.flop_counter`, on what the call is composed of where needed; else the elements computed.

    Of a branch the dearest side counts, of a loop one round.
    """
    if isinstance(node.target, HigherOrderOperator):
        return _of_subgraphs(node)
    if not isinstance(node.target, OpOverload) or not _composed(node.target):
        return _elements(node)
    values = map_arg((node.args, node.kwargs), lambda source: source.meta.get("val"))
    key = (node.target, repr(_described(values)))
    if key not in _counted:
        _counted[key] = _count(node.target, values)
    return _counted[key] or _elements(node)


def _composed(target: OpOverload) -> bool:
    """Whether the counter has a formula for the operation or may have one for what it is made of."""
    return target.overloadpacket in flop_registry or torch._C._dispatch_has_kernel_for_dispatch_key(  # noqa: SLF001 - no public way to ask
        target.name(), "CompositeImplicitAutograd"
    )


def _described(value: Any) -> Any:
    """Shapes and types in the place of tensors."""
    if isinstance(value, Tensor):
        return (tuple(map(str, value.shape)), str(value.dtype))
    if isinstance(value, (tuple, list)):
        return [_described(item) for item in value]
    if isinstance(value, dict):
        return {key: _described(item) for key, item in value.items()}
    return value


def _count(target: OpOverload, values: Any) -> int:
    """0 where it cannot be run without data."""
    try:
        args, kwargs = pytree.tree_map(_on_meta, values)
        options = {name: value for name, value in kwargs.items() if name != "device"}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            target(*args, **options)
        return int(counter.get_total_flops())
    except Exception:  # noqa: BLE001 - an operation that needs data, or a device
        return 0


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty(tuple(int(size) for size in value.shape), dtype=value.dtype, device="meta")


def _elements(node: fx.Node) -> int:
    results = node.meta.get("val")
    return sum(
        math.prod(size for size in result.shape if isinstance(size, int))
        for result in (results if isinstance(results, (tuple, list)) else [results])
        if isinstance(result, Tensor)
    )


def _of_subgraphs(node: fx.Node) -> int:
    owner = node.graph.owning_module
    costs = []
    for source in node.all_input_nodes:
        module = getattr(owner, str(source.target), None) if source.op == "get_attr" else None
        if isinstance(module, fx.GraphModule):
            calls = [call for call in module.graph.nodes if call.op == "call_function" and not moves_only(call.target)]
            costs.append(sum(flops_of(call) for call in calls))
    return max(costs, default=0)
