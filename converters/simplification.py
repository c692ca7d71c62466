"""What an exported graph does not need: dead code, checks, and the copies that functional in-place updates leave behind.

Every removal is exact: the value that takes a result's place is the same, number for number.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from .layout import fix_layouts

aten = torch.ops.aten
# Checks of what export has already fixed, or that would only raise.
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size")
# Calls whose first argument is the result wherever type and shape are the same.
_COPIES = frozenset(
    """
    _to_copy _unsafe_view alias clone contiguous detach detach_copy expand expand_as expand_copy flatten lift_fresh lift_fresh_copy
    permute reshape squeeze to type_as unflatten view view_as view_copy
    """.split()  # noqa: SIM905 - a list of so many names is read more easily so
)
_ONLY_IN_TRAINING = frozenset(["dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout"])
# What may be no operation at all where type and shape stay.
NO_OPERATION = _COPIES | _ONLY_IN_TRAINING | {"copy"}
_LAYOUT_BOUND = frozenset(["as_strided", "as_strided_copy", "as_strided_scatter", "view_as_complex", "view_as_complex_copy"])
_WHOLE = 1 << 62


def simplify(program: ExportedProgram) -> None:
    """Takes away, in place, every call whose result is known to be another value of the graph, and what nobody reads.

    Values keep their numbers but not their layout in memory, so `view` becomes `reshape`.
    """
    graph, signature = program.graph, program.graph_signature
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            fix_layouts(module.graph)
    views: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if call_name(node) in _CHECKS:
            graph.erase_node(node)
            continue
        if node.target in (aten.view.default, aten._unsafe_view.default):  # noqa: SLF001
            node.target = aten.reshape.default
        _spell_out(node)
        same = _same_value(node) or _same_view(node, views)
        if same is not None and not _must_stay_apart(node, same, program):
            node.replace_all_uses_with(same)
            signature.replace_all_uses(node.name, same.name)
            graph.erase_node(node)
    _remove_dead(graph)
    program.graph_module.recompile()


def _spell_out(node: fx.Node) -> None:
    """A pooling's default stride, its kernel, which coremltools wants in so many words."""
    if not call_name(node).startswith("max_pool"):
        return
    value, kernel, stride, *rest = (*node.args, None)[: max(len(node.args), 3)]
    if not stride and "stride" not in node.kwargs:
        node.args = (value, kernel, kernel, *rest)


def _same_view(node: fx.Node, views: dict[Any, fx.Node]) -> fx.Node | None:
    """An earlier view of the same part of the same value: functional in-place updates take each view anew."""
    if node.target is not operator.getitem and not getattr(node.target, "is_view", False):
        return None
    key = (node.target, repr(node.args), repr(node.kwargs))
    earlier = views.setdefault(key, node)
    return None if earlier is node else earlier


def call_name(node: fx.Node) -> str:
    """ "slice" of aten.slice.Tensor; "" for what is no ATen operation."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::") if schema is not None else ""


def _remove_dead(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def _must_stay_apart(node: fx.Node, same: fx.Node, program: ExportedProgram) -> bool:
    """A copy that matters: one that is returned and may be changed there, or whose reader looks at its layout in memory."""
    if any(user.op == "call_function" and not _layout_free(user) for user in node.users):
        return call_name(node) in _COPIES
    if not any(user.op == "output" for user in node.users):
        return False
    return same.op == "placeholder" or same.name in program.graph_signature.user_outputs


def _layout_free(user: fx.Node) -> bool:
    """Whether a call computes the same numbers however its arguments lie in memory."""
    if user.target is operator.getitem:
        return True
    return getattr(user.target, "namespace", "") == "aten" and call_name(user) not in _LAYOUT_BOUND and user.target is not aten.view.dtype


def _same_value(node: fx.Node) -> fx.Node | None:
    """The value of the graph that the call's result is equal to, if that can be told without data."""
    name = call_name(node)
    if node.target is operator.getitem:
        return None
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not node.args:
        return None
    first = node.args[0]
    if name == "copy":
        return _alike(node, node.args[1])
    if name in _ONLY_IN_TRAINING:
        return _alike(node, first) if node.args[-1] is False else None
    if name in _COPIES:
        if name == "permute" and list(node.args[1]) != list(range(value.dim())):  # type: ignore[call-overload]
            return None
        return _alike(node, first)
    if name == "slice":
        return _of_slice(node)
    if name == "select":
        return _of_select(node)
    if name == "slice_scatter":
        return _of_slice_scatter(node)
    if name == "select_scatter":
        return _of_select_scatter(node)
    return None


def _alike(node: fx.Node, other: Any) -> fx.Node | None:
    """`other` where it has the call's type, shape and device, else None."""
    value, theirs = node.meta.get("val"), other.meta.get("val") if isinstance(other, fx.Node) else None
    if not isinstance(value, Tensor) or not isinstance(theirs, Tensor):
        return None
    return other if (theirs.dtype, theirs.device) == (value.dtype, value.device) and _fixed(theirs) == _fixed(value) is not None else None


def _fixed(value: Tensor) -> tuple[int, ...] | None:
    sizes = tuple(value.shape)
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _range(node: fx.Node, position: int) -> tuple[Any, ...] | None:
    """(axis, start, stop, step) of a slice or a slice_scatter, in one form; None where one of them is not known."""
    first = node.args[0]
    value = first.meta.get("val") if isinstance(first, fx.Node) else None
    if not isinstance(value, Tensor) or node.kwargs:
        return None
    axis, start, stop, step = (*node.args[position:], *(0, None, None, 1)[len(node.args) - position :])
    if not all(item is None or isinstance(item, int) for item in (axis, start, stop, step)):
        return None
    size = value.shape[axis]  # type: ignore[index]
    if not isinstance(size, int):
        return None
    axis %= value.dim()  # type: ignore[operator]
    return (axis, *slice(start, _WHOLE if stop is None else stop, 1).indices(size)[:2], step)


def _of_slice(node: fx.Node) -> fx.Node | None:
    whole = _alike(node, node.args[0])
    if whole is not None:
        return whole if _steps(node, 1) == 1 else None
    source = node.args[0]
    if isinstance(source, fx.Node) and call_name(source) == "slice_scatter" and _range(source, 2) == _range(node, 1) is not None:
        return _alike(node, source.args[1])
    return None


def _steps(node: fx.Node, position: int) -> Any:
    found = _range(node, position)
    return found[3] if found else None


def _of_slice_scatter(node: fx.Node) -> fx.Node | None:
    first, source = node.args[:2]
    where = _range(node, 2)
    if where is None:
        return None
    if _alike(node, source) is not None and where[3] == 1:
        return _alike(node, source)
    if isinstance(first, fx.Node) and call_name(first) == "slice_scatter" and first.args[1] is source and _range(first, 2) == where:
        return first
    is_part = isinstance(source, fx.Node) and call_name(source) == "slice" and source.args[0] is first and _range(source, 1) == where
    return _alike(node, first) if is_part else None


def _of_select(node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    if isinstance(source, fx.Node) and call_name(source) == "select_scatter" and _is_same_place(source.args[2:], node.args[1:]):
        return _alike(node, source.args[1])
    return None


def _of_select_scatter(node: fx.Node) -> fx.Node | None:
    first, source, place = node.args[0], node.args[1], node.args[2:]
    if not isinstance(first, fx.Node):
        return None
    if call_name(first) == "select_scatter" and first.args[1] is source and _is_same_place(first.args[2:], place):
        return first
    if isinstance(source, fx.Node) and call_name(source) == "select" and source.args[0] is first and _is_same_place(source.args[1:], place):
        return _alike(node, first)
    return None


def _is_same_place(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Literal indices only: a node among them may be another value."""
    return one == other and all(isinstance(item, int) for item in one)
