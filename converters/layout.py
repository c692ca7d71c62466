"""`as_strided` reads memory and not a tensor: it needs its tensor to lie as it did when the network was followed.

What comes out of a package lies in order, and a copy that was removed no longer arranges anything. So the layout is written
into the graph, before each such call.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import ConversionError
from .sources import source_of

aten = torch.ops.aten
_READING = (aten.as_strided.default, aten.as_strided_copy.default)
_WRITING = aten.as_strided_scatter.default


def fix_layouts(graph: fx.Graph) -> None:
    """Has every such call read a copy that lies in order. Raises ConversionError where it reads what its tensor does not have."""
    for node in list(graph.nodes):
        if node.target in _READING or node.target is _WRITING:
            _fix(graph, node)


def _fix(graph: fx.Graph, node: fx.Node) -> None:
    reads = 1 if node.target in _READING else 2  # tensors, before size, stride and offset
    arguments: tuple[Any, ...] = node.args
    source, (sizes, strides, *rest) = arguments[0], arguments[reads:]
    offset = rest[0] if rest and rest[0] is not None else source.meta["val"].storage_offset()
    while reads == 1 and getattr(source.target, "is_view", False) and _memory(source.args[0]) == _memory(source):
        source = source.args[0]  # a view may be read beyond its own elements
    value = source.meta["val"]
    axes = sorted(range(value.dim()), key=value.stride, reverse=True)
    start = offset - value.storage_offset()
    last = start + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if not value.permute(axes).is_contiguous() or start < 0 or (last >= value.numel() and 0 not in sizes):
        place = source_of(node)
        raise ConversionError(
            f"as_strided{f' at {place}' if place else ''} reads memory beyond its tensor, which no exported network can: "
            "write it with slices, unfold or an index"
        )
    with graph.inserting_before(node):
        ordered = source if axes == sorted(axes) else _added(graph, node, aten.permute.default, (source, axes))
        ordered = _added(graph, node, aten.clone.default, (ordered,), {"memory_format": torch.contiguous_format})
    node.args = (ordered, *arguments[1:reads], sizes, strides, start)
    if reads == 2 and axes != sorted(axes):
        node.meta = {**node.meta, "val": ordered.meta["val"]}
        with graph.inserting_after(node):
            back = _added(graph, node, aten.permute.default, (node, [axes.index(axis) for axis in range(len(axes))]))
        node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def _memory(source: Any) -> StorageWeakRef:
    return StorageWeakRef(source.meta["val"].untyped_storage())


def _added(graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
    added = graph.call_function(target, args, kwargs or {})
    tensors = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
    with detect_fake_mode(tensors[:1]) or nullcontext():
        added.meta = {**like.meta, "val": target(*tensors, **(kwargs or {}))}
    return added
