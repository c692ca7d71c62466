"""D13 and D19: tensors, kernels and programs beyond what the engine holds at once, and branches that its compiler searches."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import Chip
from ..registry import Found, rule
from ..view import FunctionView, OperationView

WORKING_SET = 2 << 20  # D13: bytes of a product's operands and result
KERNEL_BYTES = 16 << 20  # D13: of a streamed kernel
MAX_BRANCHES = 12  # D19: that meet again in one operation
_TILED = "none is needed for correct results; smaller windows or chunks run faster"


@rule(
    "D13-working-set",
    "A product beyond the working set",
    "slow",
    source="coreml_ane.md D13 (ane-guide): 2 MB, beyond which it is done in tiles",
    confidence="M",
    types=("linear", "linear_activation", "matmul", "einsum", "scaled_dot_product_attention"),
)
def working_set(operation: OperationView, chip: Chip) -> Iterator[Found]:
    if operation.bytes > WORKING_SET:
        yield Found(f"its operands and result take {operation.bytes / 2**20:.1f} MiB, above 2 ({operation})", _TILED)


@rule(
    "D13-kernel",
    "A kernel beyond what is streamed",
    "slow",
    source="coreml_ane.md D13 (ane-guide): 16 MB streamed, 64 kB held",
    confidence="M",
    types=("conv", "conv_transpose", "conv_quantized", "linear"),
)
def streamed_kernel(operation: OperationView, chip: Chip) -> Iterator[Found]:
    weight = operation.input("weight")
    size = 0 if weight is None else operation.function.stored.get(weight.name or "", weight.bytes)
    if size > KERNEL_BYTES:
        yield Found(f"its kernel takes {size / 2**20:.1f} MiB, above 16 ({operation})", "split it over the output channels")


@rule(
    "D19-branches",
    "Many branches that meet again",
    "slow",
    source="coreml_ane.md D19: twelve or more in one cluster make the compiler's search explode",
    confidence="M",
    types=("concat", "stack", "einsum"),
)
def branches(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Results of different operations joined by one; the time is spent when the model is compiled."""
    names = {tensor.name for tensor in operation.inputs if not tensor.is_fixed}
    if len(names) >= MAX_BRANCHES:
        yield Found(f"{len(names)} branches meet in it ({MAX_BRANCHES} or more compile slowly)", "join them in groups, or use fewer chunks")


@rule(
    "D19-size",
    "A program larger than the engine loads",
    "hazard",
    source="coreml_ane.md D19: about 3 to 4 GB on the M1",
    confidence="L",
    scope="function",
)
def program_size(function: FunctionView, chip: Chip) -> Iterator[Found]:
    limit = chip.program_bytes.value
    if limit is not None and function.constant_bytes > limit:
        yield Found(f"its constants take {function.constant_bytes / 1e9:.1f} GB, above {limit / 1e9:.0f}", "split it, or compress it")
