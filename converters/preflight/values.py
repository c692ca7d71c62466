"""What a package can hold: the types, ranks and shapes of the values that an operation takes and gives.

Core ML Programs know float16, float32, int32 and bool, and only as tensors of at most five axes whose shape is known and
not empty (coremltools' TORCH_DTYPE_TO_MIL_DTYPE; measured with one-operation programs). int64 becomes int32 there, which
holds indices and lengths but not every constant.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MAX_RANK = 5  # Core ML: N, D, C, H, W
INT32 = torch.iinfo(torch.int32)
HELD = frozenset({torch.float32, torch.float16, torch.int32, torch.int64, torch.bool})
TYPE_REASONS = {
    torch.float64: "Core ML has no float64, and coremltools silently rounds it to float32",
    torch.bfloat16: "Core ML has no bfloat16",
    torch.complex64: "no package can hold a complex value: coremltools knows complex numbers only while it lowers them",
    torch.complex128: "no package can hold a complex value: coremltools knows complex numbers only while it lowers them",
}
TYPE_THREADS = {
    torch.complex64: "https://github.com/apple/coremltools/issues/2130",
    torch.complex128: "https://github.com/apple/coremltools/issues/2130",
}


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value of a node, lists and tuples included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def taken(node: torch.fx.Node) -> list[Tensor]:
    """The tensors that a node takes, as metadata."""
    return [tensor for source in node.all_input_nodes for tensor in tensors(source.meta.get("val"))]


def given(node: torch.fx.Node) -> list[Tensor]:
    """The tensors that a node gives, as metadata; results that nobody takes are left out where they are picked by getitem."""
    value = node.meta.get("val")
    if not isinstance(value, (list, tuple)):
        return list(tensors(value))
    picked = [user.args[1] for user in node.users if user.target is picks_result()]
    return [tensor for index, item in enumerate(value) if not picked or index in picked for tensor in tensors(item)]


def picks_result() -> Any:
    """operator.getitem, by which an exported graph picks one of several results."""
    return operator.getitem


def held_badly(node: torch.fx.Node) -> torch.dtype | None:
    """A type among its values that no package can hold."""
    for tensor in (*taken(node), *given(node)):
        if tensor.dtype not in HELD:
            return tensor.dtype
    asked = node.kwargs.get("dtype")
    return asked if isinstance(asked, torch.dtype) and asked not in HELD and given(node) else None


def rank(node: torch.fx.Node) -> int:
    """The most axes of any of its values."""
    return max((tensor.dim() for tensor in (*taken(node), *given(node))), default=0)


def is_empty(node: torch.fx.Node) -> bool:
    """Whether one of its values has no elements; shapes are known where this is asked."""
    return any(0 in tensor.shape for tensor in (*taken(node), *given(node)))


def is_dynamic(node: torch.fx.Node) -> bool:
    """Whether it gives or takes a number that depends on data, or a tensor whose shape does."""
    value = node.meta.get("val")
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
        return True
    if any(isinstance(source.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool)) for source in node.all_input_nodes):
        return True
    return any(isinstance(size, torch.SymInt) for tensor in (*taken(node), *given(node)) for size in tensor.shape)


def short_name(dtype: torch.dtype) -> str:
    """ "float64" of torch.float64."""
    return str(dtype).removeprefix("torch.")


def numbers(node: torch.fx.Node) -> Iterator[float | int]:
    """The numbers among its arguments, lists included, booleans not."""

    def walk(value: Any) -> Iterator[float | int]:
        if isinstance(value, (list, tuple)):
            for item in value:
                yield from walk(item)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value

    for argument in (*node.args, *node.kwargs.values()):
        yield from walk(argument)
