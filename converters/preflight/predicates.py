"""Arguments that make the difference between a right lowering and a wrong one: small questions about one node."""

from __future__ import annotations

import math
from typing import Any

import torch

from .values import INT32, given, numbers, taken

LONG_SUM = 512  # elements: in half precision a sum of so many terms of one size keeps 2 of its 11 bits below one term
FLOAT16_MAX = 65504.0
INFINITE = 1e38  # from here on coremltools takes a finite constant for infinite (fp16_overflow of its pass add_fp16_cast)


def floating(node: torch.fx.Node) -> bool:
    """It computes in floating point."""
    return any(tensor.is_floating_point() for tensor in given(node))


def rounds(node: torch.fx.Node) -> bool:
    """A division with a rounding mode."""
    return argument(node, "rounding_mode") is not None


def long_sum(node: torch.fx.Node) -> bool:
    """A running sum, in floating point, along an axis of LONG_SUM elements or more."""
    axis = argument(node, "dim")
    source = taken(node)[0]
    return floating(node) and isinstance(axis, int) and source.dim() > 0 and source.shape[axis] >= LONG_SUM


def output_padded(node: torch.fx.Node) -> bool:
    """A transposed convolution with output padding."""
    if argument(node, "transposed") is False:
        return False
    return any(listed(argument(node, "output_padding")))


def ceiled_average(node: torch.fx.Node) -> bool:
    """Average pooling with ceil_mode, where that makes a difference: a window hangs over the edge."""
    if not argument(node, "ceil_mode") or argument(node, "count_include_pad") is False:
        return False
    sizes = taken(node)[0].shape[-int(str(node.target).partition("d.")[0][-1]) :]  # 2 of aten.avg_pool2d.default
    kernel = spread(argument(node, "kernel_size"), len(sizes))
    stride = spread(argument(node, "stride") or kernel, len(sizes))
    padding = spread(argument(node, "padding"), len(sizes))
    return any((size + 2 * pad - width) % step for size, width, step, pad in zip(sizes, kernel, stride, padding, strict=True))


def uncorrected(node: torch.fx.Node) -> bool:
    """A variance without a number for its correction."""
    return argument(node, "correction") is None


def two_bounds(node: torch.fx.Node) -> bool:
    """A clamp between two tensors."""
    return argument(node, "min") is not None and argument(node, "max") is not None


def between_points(node: torch.fx.Node) -> bool:
    """A resize by factors that do not lead to a whole number of points, so that PyTorch rounds it down."""
    factors = listed(argument(node, "scale_factors"))
    sizes = taken(node)[0].shape[2:]
    return any(not math.isclose(size * factor, round(size * factor)) for size, factor in zip(sizes, factors, strict=False))


def another_threshold(node: torch.fx.Node) -> bool:
    """A softplus that becomes a straight line elsewhere than at 20."""
    return argument(node, "threshold") != 20


def shrinks(node: torch.fx.Node) -> bool:
    """A resize to fewer points along some axis."""
    before, after = taken(node)[0].shape, given(node)[0].shape
    return any(new < old for old, new in zip(before, after, strict=True))


def masks_with_infinity(node: torch.fx.Node) -> bool:
    """A number among its arguments that is infinite or, being finite, becomes so in half precision."""
    return floating(node) and any(abs(number) >= INFINITE for number in numbers(node))


def beyond_float16(node: torch.fx.Node) -> bool:
    """A finite number among its arguments that half precision cannot tell from infinity."""
    return floating(node) and any(math.isfinite(number) and abs(number) >= INFINITE for number in (*numbers(node), *constant_numbers(node)))


def beyond_int32(node: torch.fx.Node) -> bool:
    """A whole number among its arguments that has no place in 32 bits, where the result is of whole numbers."""
    if any(tensor.is_floating_point() for tensor in given(node)):
        return False
    return any(isinstance(number, int) and not INT32.min <= number <= INT32.max and abs(number) < OPEN_END for number in numbers(node))


OPEN_END = 2**63 - 1  # the end of a slice without an end


def argument(node: torch.fx.Node, name: str) -> Any:
    """The value of an argument by its name in the operation's schema, its default where it is not given."""
    schema = getattr(node.target, "_schema", None)
    if name in node.kwargs:
        return node.kwargs[name]
    for position, parameter in enumerate(schema.arguments if schema is not None else ()):
        if parameter.name == name:
            return node.args[position] if position < len(node.args) else parameter.default_value
    return None


def constant_numbers(node: torch.fx.Node) -> list[float]:
    """The values of arguments that are made by one operation from one number: aten.full, aten.scalar_tensor."""
    found: list[float] = []
    for source in node.all_input_nodes:
        if source.op == "call_function" and getattr(source.target, "__name__", "").split(".")[0] in ("full", "scalar_tensor", "full_like"):
            found += [float(number) for number in source.args[-1:] if isinstance(number, (int, float)) and not isinstance(number, bool)]
    return found


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def spread(value: Any, count: int) -> list[int]:
    """One value for each axis, of a list or a number."""
    values = listed(value)
    return values if len(values) == count else values[:1] * count
