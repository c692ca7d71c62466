"""D4 to D6 and D22: kernels, strides and dilations of convolutions, transposed convolutions, windows of pooling."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import Chip
from ..registry import Found, rule
from ..view import OperationView

CONVOLUTIONS = ("conv", "conv_transpose", "conv_quantized")
_POOLS = ("avg_pool", "max_pool", "l2_pool")
FACTORS = (2, 3, 4, 8)  # D5: what strides and dilations are lowered through
MAX_DILATION = 8  # D5: compiles as space-to-batch up to here
OLD_POOL_WINDOW, OLD_POOL_STRIDE = 13, 2  # D22: older logs
_D4 = "coreml_ane.md D4 (ane-guide app. A; ANEForge; an espresso log in hollance #2)"
_D5 = "coreml_ane.md D5 (ane-guide ch. 13 and 17, app. A)"
_SPLIT = "split it into an equal sum of kernels that fit, or write it as a polyphase convolution at stride 1"


def spatial(operation: OperationView, parameter: str) -> list[int]:
    """One number for each spatial axis, ones where the parameter is absent."""
    count = len(kernel_of(operation)) or max((operation.outputs[0].rank if operation.outputs else 2) - 2, 0)
    values = operation.integers(parameter)
    return values if len(values) == count and all(value > 0 for value in values) else [1] * count


def kernel_of(operation: OperationView) -> list[int]:
    """Kernel sizes, the last one along W; empty where they are not known."""
    weight = operation.input("weight")
    return [] if weight is None or weight.is_open else [size for size in weight.shape[2:] if size is not None]


def is_product(number: int) -> bool:
    """Whether a stride or dilation is a product of FACTORS."""
    for factor in (2, 3):
        while number % factor == 0 and number > 1:
            number //= factor
    return number == 1


@rule("D4-kernel", "A kernel wider or higher than the engine takes", "off-ane", source=_D4, confidence="M", types=CONVOLUTIONS)
def kernel(operation: OperationView, chip: Chip) -> Iterator[Found]:
    sizes = kernel_of(operation)
    limits = [("height", chip.kernel_height.value), ("width", chip.kernel_width.value)][-len(sizes) :] if sizes else []
    for (what, limit), size in zip(limits, sizes[-2:], strict=False):
        if limit is not None and size > limit:
            yield Found(f"its kernel has the {what} {size}, above {limit} (kernel {_shown(sizes)}, {operation})", _SPLIT)
            return


@rule("D4-strided", "A kernel along a strided axis beyond the smaller caps", "off-ane", source=_D4, confidence="M", types=CONVOLUTIONS)
def strided_kernel(operation: OperationView, chip: Chip) -> Iterator[Found]:
    sizes, strides = kernel_of(operation), spatial(operation, "strides")
    limits = [chip.strided_kernel_height.value, chip.strided_kernel.value][-len(sizes) :] if sizes else []
    for limit, size, stride in zip(limits, sizes[-2:], strides[-2:], strict=False):
        if limit is not None and stride > 1 and size > limit:
            yield Found(
                f"its kernel has {size} taps along an axis with stride {stride}, above {limit} (kernel {_shown(sizes)}, {operation})",
                "take the phases apart first (space to depth), so that the stride becomes 1",
            )
            return


@rule(
    "D4-dynamic",
    "A convolution whose kernel is computed",
    "off-ane",
    source="coreml_ane.md, addenda: weights must be constants for the Neural Engine (coremltools #1119)",
    confidence="M",
    types=CONVOLUTIONS,
)
def dynamic_kernel(operation: OperationView, chip: Chip) -> Iterator[Found]:
    weight = operation.input("weight")
    if weight is not None and not weight.is_fixed:
        yield Found(f"its kernel is no constant ({weight})", "fold weight norm and the like before converting")


@rule(
    "D5-stride",
    "A stride that is no product of 2, 3, 4 and 8",
    "off-ane",
    source=f"{_D5}, taken strictly: ane-guide also says that other strides decompose and compile on the M1",
    confidence="L",
    types=CONVOLUTIONS,
)
def stride(operation: OperationView, chip: Chip) -> Iterator[Found]:
    found = next((number for number in spatial(operation, "strides") if not is_product(number)), None)
    if found is not None:
        yield Found(
            f"its stride {found} is no product of {', '.join(map(str, FACTORS))} ({operation})",
            "take the phases apart (space to depth), or write it as a polyphase convolution",
        )


@rule("D5-dilation", "A dilation beyond the known factors", "off-ane", source=_D5, confidence="M", types=CONVOLUTIONS)
def dilation(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Above 8 it blocks; up to 8 and no product of the factors (5, 7), no source says whether it runs."""
    numbers = spatial(operation, "dilations")
    remedy = "write it as convolutions on every n-th value (space to batch), or measure it on a device"
    if max(numbers, default=1) > MAX_DILATION:
        yield Found(f"its dilation {max(numbers)} is above {MAX_DILATION} ({operation})", remedy)
        return
    found = next((number for number in numbers if not is_product(number)), None)
    if found is not None:
        what = f"its dilation {found} is no product of {', '.join(map(str, FACTORS))}; up to {MAX_DILATION} dilations are said to compile"
        yield Found(f"{what} ({operation})", remedy, proven=False)


_D6 = "coreml_ane.md D6 (native since the A13; fails in practice in wide or odd-stride one-dimensional vocoders)"


def _is_one_dimensional(operation: OperationView) -> bool:
    sizes = kernel_of(operation)
    return len(sizes) == 1 or (len(sizes) == 2 and sizes[0] == 1)


@rule("D6-transposed", "A transposed convolution that the engine refuses", "off-ane", source=_D6, confidence="M", types=("conv_transpose",))
def transposed(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """None before the A13; along one axis an odd stride is refused, and no other is proven to work."""
    remedy = "write it as a polyphase convolution (sub-pixel form)"
    strides = spatial(operation, "strides")
    if not chip.has_deconvolution.value:
        yield Found(f"{chip.title} has no transposed convolution ({operation})", remedy)
    elif _is_one_dimensional(operation) and any(number > 1 and number % 2 for number in strides):
        yield Found(f"along one axis with the odd stride {max(strides)} ({operation})", remedy)
    elif _is_one_dimensional(operation):
        yield Found(f"along one axis it has failed in practice, and no source says where not ({operation})", remedy, proven=False)


@rule("D22-pool", "A window of pooling larger than the engine takes", "off-ane", source="coreml_ane.md D22", confidence="M", types=_POOLS)
def pool(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Above pool_window it blocks; older logs stop at 13 values and stride 2."""
    sizes, limit = operation.integers("kernel_sizes"), chip.pool_window.value
    remedy = "pool in several steps, or write it as a reduction over a reshaped axis"
    largest, step = max(sizes, default=0), max(spatial(operation, "strides"), default=1)
    if limit is not None and largest > limit:
        yield Found(f"its window of {largest} is above {limit} ({operation})", remedy)
    elif largest > OLD_POOL_WINDOW or step > OLD_POOL_STRIDE:
        what = f"its window of {largest} at stride {step} is beyond what older logs accept ({OLD_POOL_WINDOW} at {OLD_POOL_STRIDE})"
        yield Found(f"{what} ({operation})", remedy, proven=False)


def _shown(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))
