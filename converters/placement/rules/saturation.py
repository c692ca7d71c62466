"""D10 and D18: sums that saturate before half precision does, and normalisations that overflow."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import Chip
from ..registry import Found, rule
from ..view import OperationView

SUM_LIMIT = 32768.0  # D10: 2^15
SQUARE_LIMIT = 255.0  # the largest whole number whose square is a half-precision number
PRODUCTS = ("conv", "conv_transpose", "conv_quantized", "linear", "linear_activation", "matmul", "einsum", "scaled_dot_product_attention")
_SCALE = "scale the operands down and the result up again, or keep the operation in float32"


@rule(
    "D10-saturation",
    "A sum of products beyond 32768",
    "hazard",
    source="coreml_ane.md D10 (measured on M1, M2 Pro and M5)",
    confidence="M",
    types=PRODUCTS,
    needs="ranges",
)
def saturation(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """With ranges: the values that an execution gave. Without: what constants alone prove, which is a bias of that size."""
    bias = operation.input("bias")
    if bias is not None and bias.value is not None and bias.value.size and float(abs(bias.value).max()) >= SUM_LIMIT:
        yield Found(f"its bias alone reaches {float(abs(bias.value).max()):.0f}, and sums saturate at {SUM_LIMIT:.0f}", _SCALE)
        return
    for output in operation.outputs:
        seen = operation.function.range_of(output)
        if seen is not None and seen.magnitude >= SUM_LIMIT:
            yield Found(f"its values reach {seen.magnitude:.0f} in an execution, and sums saturate at {SUM_LIMIT:.0f}", _SCALE)


@rule(
    "D18-layer-norm",
    "A layer normalisation over the channel axis",
    "hazard",
    source="coreml_ane.md D18 (more-ane-transformers' notes): before macOS 14 axes=[1] overflowed earlier than the last axis",
    confidence="L",
    types=("layer_norm",),
)
def channel_norm(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Over axis 1 where that is not the last one; with several axes where axis 1 is among them."""
    x = operation.input("x")
    if x is None or not x.rank:
        return
    normalised = {axis % x.rank for axis in operation.integers("axes") or [-1]}
    if 1 in normalised and x.rank > 2:
        yield Found(
            f"it normalises axis 1 of {x}",
            "write it out with bounded values: subtract the mean, divide by the largest magnitude, and only then square",
        )


@rule(
    "known-broken-layer-norm",
    "A layer normalisation of large values",
    "hazard",
    source="coreml_ane.md, list of known runtime bugs (mobius #42: NaN from a fused layer_norm in half precision); the limit is a square's",
    confidence="L",
    types=("layer_norm", "instance_norm", "l2_norm", "reduce_sum_square", "reduce_l2_norm", "square"),
    needs="ranges",
)
def large_norm(operation: OperationView, chip: Chip) -> Iterator[Found]:
    x = operation.input("x")
    seen = None if x is None or x.is_fixed else operation.function.range_of(x)
    if seen is not None and seen.magnitude > SQUARE_LIMIT:
        yield Found(
            f"its values reach {seen.magnitude:.0f} in an execution, whose square is beyond half precision",
            "divide by the largest magnitude before squaring",
        )
