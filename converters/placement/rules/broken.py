"""Patterns that Core ML is known to compute wrongly on some device, whatever the converter writes."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import Chip
from ..registry import Found, rule
from ..view import OperationView

LONG_SUM = 1024  # ours: from here on half precision's step is 1, so that addends below a half are lost
_LIST = "coreml_ane.md, list of known runtime bugs"
_LINEAR = ("upsample_bilinear", "resize_bilinear", "resize")


@rule(
    "known-broken-mod",
    "A remainder or whole division of floats",
    "hazard",
    source=f"{_LIST} (mobius #46: x % 1 became zeros)",
    confidence="M",
    types=("mod", "floor_div"),
)
def float_remainder(operation: OperationView, chip: Chip) -> Iterator[Found]:
    if any(tensor.dtype.startswith("fp") for tensor in operation.activations):
        yield Found(f"{operation.type} of floats has given zeros ({operation})", "write x - floor(x / n) * n with a true division")


@rule(
    "known-broken-resize",
    "A linear resampling of one axis",
    "hazard",
    source=f"{_LIST} (mobius #46: NaN when resampling down and up by 300)",
    confidence="M",
    types=_LINEAR,
)
def linear_resize(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Along one axis: the other one has a single value or keeps its size."""
    if operation.type == "resize" and str(operation.setting("interpolation_mode", "linear")).lower() != "linear":
        return
    x = operation.input("x")
    if x is None or x.rank < 3 or not operation.outputs:
        return
    before, after = x.shape[-2:], operation.outputs[0].shape[-2:]
    changed = [axis for axis in range(2) if before[axis] != after[axis] or before[axis] is None]
    if len(changed) <= 1 or 1 in before:
        yield Found(f"it resamples one axis linearly ({operation})", "resample on the host, or write it as a convolution")


@rule(
    "known-broken-conv-transpose",
    "A transposed convolution with a given output shape or uneven padding",
    "hazard",
    source=f"{_LIST} (coremltools #2281, #2324, #1904)",
    confidence="M",
    types=("conv_transpose",),
)
def uneven_transposed(operation: OperationView, chip: Chip) -> Iterator[Found]:
    remedy = "write it as a polyphase convolution, or cut the padding from its result"
    amounts = operation.integers("pad") if operation.setting("pad_type", "valid") == "custom" else []
    if operation.is_given("output_shape"):
        yield Found(f"its output shape is given ({operation})", remedy)
    elif amounts[::2] != amounts[1::2]:
        yield Found(f"its padding {amounts} is uneven ({operation})", remedy)


@rule(
    "known-broken-cumsum",
    "A long running sum",
    "hazard",
    source=f"{_LIST} (mobius #33, kokoro #353: phases drift); the length is ours",
    confidence="M",
    types=("cumsum",),
)
def long_sum(operation: OperationView, chip: Chip) -> Iterator[Found]:
    x = operation.input("x")
    if x is None or not x.rank:
        return
    size = x.shape[(operation.integers("axis") or [0])[0] % x.rank]
    if size is None or size >= LONG_SUM:
        length = "unknown length" if size is None else f"{size} values"
        yield Found(f"it runs over {length} in {x.dtype} ({operation})", "sum on the host, in double precision where it is a phase")


@rule(
    "known-broken-atan2",
    "An arctangent of a quotient",
    "hazard",
    source=f"{_LIST} (FluidAudio #700, mobius #50: wrong branch where the imaginary part is near 0)",
    confidence="M",
    types=("atan",),
)
def arctangent(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """atan2 becomes atan(y / x) with corrections."""
    source = operation.producer("x")
    while source is not None and source.type in ("cast", "identity"):
        source = source.producer("x")
    if source is not None and source.type == "real_div":
        yield Found(f"it is the arctangent of a quotient, as atan2 becomes ({operation})", "compute phases on the host")
