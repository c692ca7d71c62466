"""What can be said of a value's size without running anything: intervals from constants and from activations that have bounds.

One walk in program order, one interval for a whole tensor. (-inf, inf) where nothing is known, which is the rule: it ends at the
first product with something unknown. Inputs are unknown unless an execution has seen them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from .view import OperationView, Range, Tensor

UNKNOWN = Range(-math.inf, math.inf)
_MOVES = frozenset(
    """
    cast identity reshape reshape_like transpose expand_dims squeeze slice_by_index slice_by_size split tile flatten2d
    depth_to_space space_to_depth pixel_shuffle pixel_unshuffle reverse batch_to_space space_to_batch crop gather gather_along_axis
    gather_nd reduce_max reduce_min reduce_mean max_pool sliding_windows upsample_nearest_neighbor resize_nearest_neighbor
    upsample_bilinear read_state topk
    """.split()  # noqa: SIM905 - a list of so many names is read more easily so
)
_FIXED = {
    "sigmoid": Range(0.0, 1.0),
    "softmax": Range(0.0, 1.0),
    "tanh": Range(-1.0, 1.0),
    "erf": Range(-1.0, 1.0),
    "sin": Range(-1.0, 1.0),
    "cos": Range(-1.0, 1.0),
    "sign": Range(-1.0, 1.0),
    "softsign": Range(-1.0, 1.0),
    "sigmoid_hard": Range(0.0, 1.0),
    "relu6": Range(0.0, 6.0),
    "atan": Range(-math.pi / 2, math.pi / 2),
}
_NOT_NEGATIVE = frozenset(
    ["abs", "square", "sqrt", "rsqrt", "exp", "exp2", "reduce_sum_square", "reduce_l1_norm", "reduce_l2_norm", "softplus"]
)
Intervals = dict[str, Range]


def intervals_of(operations: list[OperationView], seen: Mapping[str, Range] | None = None) -> Intervals:
    """Name -> interval, for the values of which something is known. `seen` narrows them to what an execution has met."""
    known: Intervals = {}
    for operation in operations:
        interval = _interval(operation, known)
        for output in operation.outputs:
            if output.name is not None and interval != UNKNOWN:
                known[output.name] = interval
    for name, values in (seen or {}).items():
        low, high = known.get(name, UNKNOWN)
        known[name] = Range(max(low, values.low), min(high, values.high))
    return known


def interval_of(tensor: Tensor | None, known: Mapping[str, Range]) -> Range:
    if tensor is None:
        return UNKNOWN
    if tensor.value is not None and tensor.value.size and tensor.value.dtype.kind in "fiub":
        return Range(float(np.min(tensor.value)), float(np.max(tensor.value)))
    return UNKNOWN if tensor.name is None else known.get(tensor.name, UNKNOWN)


def is_maximum_of(largest: OperationView | None, name: str | None) -> bool:
    """Whether a value is the maximum of another one, whatever has been reshaped in between."""
    steps = 0
    while largest is not None and largest.type in ("reshape", "expand_dims", "squeeze", "cast", "transpose", "identity") and steps < 8:
        largest, steps = largest.producer("x"), steps + 1
    if largest is None or largest.type not in ("reduce_max", "reduce_log_sum_exp"):
        return False
    x = largest.input("x")
    return x is not None and x.name == name


def _interval(operation: OperationView, known: Intervals) -> Range:
    if operation.type in _FIXED:
        return _FIXED[operation.type]
    if operation.type in _NOT_NEGATIVE:
        return Range(0.0, _largest(operation, known))
    rule = _RULES.get(operation.type)
    if rule is not None:
        low, high = rule(operation, known)
        return Range(-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)
    if operation.type in _MOVES:
        return interval_of(operation.inputs[0], known) if operation.inputs else UNKNOWN
    return UNKNOWN


def _largest(operation: OperationView, known: Intervals) -> float:
    low, high = interval_of(operation.input("x"), known)
    magnitude = max(abs(low), abs(high))
    if operation.type == "abs":
        return magnitude
    if operation.type == "square":
        return magnitude * magnitude
    if operation.type == "sqrt" and high >= 0:
        return math.sqrt(high)
    return math.exp(high) if operation.type == "exp" and high < 700 else math.inf


def _pair(operation: OperationView, known: Intervals) -> tuple[Range, Range]:
    return interval_of(operation.input("x"), known), interval_of(operation.input("y"), known)


def _add(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x, y = _pair(operation, known)
    return x.low + y.low, x.high + y.high


def _sub(operation: OperationView, known: Intervals) -> tuple[float, float]:
    """What is left of a value less its own maximum is not above 0."""
    x, y = _pair(operation, known)
    taken = operation.input("x")
    high = x.high - y.low
    if taken is not None and taken.name is not None and is_maximum_of(operation.producer("y"), taken.name):
        high = min(high, 0.0) if not math.isnan(high) else 0.0
    return x.low - y.high, high


def _mul(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x, y = _pair(operation, known)
    products = [0.0 if 0.0 in (a, b) else a * b for a in x for b in y]
    return min(products), max(products)


def _clip(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x = interval_of(operation.input("x"), known)
    low, high = operation.number("alpha", -math.inf), operation.number("beta", math.inf)
    return min(max(x.low, low), high), max(min(x.high, high), low)


def _minimum(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x, y = _pair(operation, known)
    return min(x.low, y.low), min(x.high, y.high)


def _maximum(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x, y = _pair(operation, known)
    return max(x.low, y.low), max(x.high, y.high)


def _relu(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x = interval_of(operation.input("x"), known)
    return max(x.low, 0.0), max(x.high, 0.0)


def _leaky(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x = interval_of(operation.input("x"), known)
    slope = operation.number("alpha", math.nan)
    if not 0 <= slope <= 1:
        return UNKNOWN
    return (x.low if x.low >= 0 else 0.0 if slope == 0 else x.low * slope), (
        x.high if x.high >= 0 else 0.0 if slope == 0 else x.high * slope
    )


def _joined(operation: OperationView, known: Intervals) -> tuple[float, float]:
    parts = [interval_of(tensor, known) for tensor in operation.inputs]
    return (min(part.low for part in parts), max(part.high for part in parts)) if parts else UNKNOWN


def _select(operation: OperationView, known: Intervals) -> tuple[float, float]:
    a, b = interval_of(operation.input("a"), known), interval_of(operation.input("b"), known)
    return min(a.low, b.low), max(a.high, b.high)


def _padded(operation: OperationView, known: Intervals) -> tuple[float, float]:
    x = interval_of(operation.input("x"), known)
    value = operation.number("constant_val", 0.0)
    if operation.setting("mode", "constant") != "constant":
        return x
    return min(x.low, value), max(x.high, value)


def _product(operation: OperationView, known: Intervals) -> tuple[float, float]:
    """A convolution or linear layer of bounded values with constant weights; padding brings zeros in."""
    x = interval_of(operation.input("x"), known)
    weight = operation.input("weight")
    if not math.isfinite(x.magnitude) or weight is None or weight.value is None or weight.rank < 2 or not weight.value.size:
        return UNKNOWN
    low, high = min(x.low, 0.0), max(x.high, 0.0)
    values = weight.value.reshape(weight.value.shape[0], -1).astype(np.float64)
    positive, negative = np.maximum(values, 0).sum(axis=1), np.minimum(values, 0).sum(axis=1)
    bias = operation.input("bias")
    offset = 0.0 if bias is None else bias.value
    if offset is None or np.size(offset) not in (1, len(values)):
        return UNKNOWN
    return float(np.min(low * positive + high * negative + offset)), float(np.max(high * positive + low * negative + offset))


_RULES: dict[str, Callable[[OperationView, Intervals], tuple[float, float]]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "clip": _clip,
    "minimum": _minimum,
    "maximum": _maximum,
    "relu": _relu,
    "leaky_relu": _leaky,
    "concat": _joined,
    "stack": _joined,
    "select": _select,
    "pad": _padded,
    "conv": _product,
    "linear": _product,
}
