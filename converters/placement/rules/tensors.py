"""D1 to D3: how long an axis may be, how many axes there may be, and of which type the numbers have to be."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import Chip, Fact
from ..registry import Found, rule
from ..view import OperationView, Tensor

_D1 = "coreml_ane.md D1 (ane-guide ch. 17 and app. A; mobius #61; rustane #13)"
# Operations whose second axis is that of the channels whatever the rank. In all others the last two axes are H and W.
CHANNELS_SECOND = frozenset(
    """
    conv conv_transpose conv_quantized avg_pool max_pool l2_pool batch_norm instance_norm local_response_norm prelu
    softplus_parametric depth_to_space space_to_depth pixel_shuffle pixel_unshuffle upsample_nearest_neighbor upsample_bilinear
    resize_nearest_neighbor resize_bilinear resize resample crop crop_resize
    """.split()  # noqa: SIM905 - a list of so many names is read more easily so
)
_KERNELS = frozenset({"weight", "bias", "gamma", "beta", "mean", "variance", "alpha", "quant_scale", "quant_bias"})
_AXES = {0: "", 1: "W", 2: "HW", 3: "CHW", 4: "NCHW", 5: "NDCHW"}
_FOLD = "fold the axis into a second one with a halo (channels escape this cap), or use a smaller window"


def axes_of(operation: str, tensor: Tensor) -> list[tuple[str, int]]:
    """The axes of known size with the engine's letters: N, D, C, H, W. Empty beyond rank 5."""
    letters = "NCW" if tensor.rank == 3 and operation in CHANNELS_SECOND else _AXES.get(tensor.rank, "")
    return [(letter, size) for letter, size in zip(letters, tensor.shape, strict=False) if size is not None]


def _limit(letter: str, chip: Chip) -> Fact[int]:
    return {"C": chip.max_channels, "N": chip.max_batch}.get(letter, chip.max_width)


def _too_long(operation: OperationView, chip: Chip) -> Iterator[tuple[str, Tensor]]:
    for tensor in operation.tensors:
        if tensor.is_fixed and tensor.parameter in _KERNELS:
            continue
        for letter, size in axes_of(operation.type, tensor):
            limit = _limit(letter, chip).value
            if limit is not None and size > limit:
                yield f"its axis {letter} of {size} is above {limit} ({tensor})", tensor
                break


@rule("D1-width", "An axis longer than the engine takes", "off-ane", source=_D1, confidence="H")
def width(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """W, H and D up to max_width, C up to max_channels, N up to max_batch, of every operand and result; `add` has its own rule."""
    found = next(_too_long(operation, chip), None)
    if found is not None and operation.type != "add":
        yield Found(found[0], _FOLD)


@rule(
    "D1-add",
    "An addition along an axis longer than the engine takes",
    "off-ane",
    source="coreml_ane.md D1 taken strictly; one published plan places all 44 additions there, up to 67072, and then computes wrongly",
    confidence="L",
    types=("add",),
)
def width_of_addition(operation: OperationView, chip: Chip) -> Iterator[Found]:
    found = next(_too_long(operation, chip), None)
    if found is not None:
        yield Found(f"{found[0]}; a published plan places such additions there all the same", _FOLD)


@rule("D2-rank", "More than five axes", "off-ane", source="coreml_ane.md D2", confidence="H")
def rank(operation: OperationView, chip: Chip) -> Iterator[Found]:
    found = next((tensor for tensor in operation.tensors if tensor.rank > 5), None)
    if found is not None:
        yield Found(f"a tensor of {found.rank} axes ({found})", "reshape to four axes (1, C, H, W)")


@rule(
    "D2-convolution",
    "A convolution or pooling of more than two spatial axes",
    "off-ane",
    source="coreml_ane.md D2: convolutions are pinned to four axes",
    confidence="H",
    types=("conv", "conv_transpose", "conv_quantized", "avg_pool", "max_pool", "l2_pool"),
)
def convolution_rank(operation: OperationView, chip: Chip) -> Iterator[Found]:
    x = operation.input("x")
    if x is not None and x.rank > 4:
        proven = "pool" not in operation.type  # the source speaks of convolutions
        yield Found(f"its input has {x.rank} axes ({x})", "fold one spatial axis into the batch or the channels", proven)


@rule(
    "D2-product",
    "A product of tensors with five axes",
    "off-ane",
    source="coreml_ane.md D2: rank-5 matmul and linear are rejected",
    confidence="H",
    types=("matmul", "linear", "linear_activation", "einsum", "scaled_dot_product_attention"),
)
def product_rank(operation: OperationView, chip: Chip) -> Iterator[Found]:
    found = next((tensor for tensor in operation.tensors if tensor.rank > 4), None)
    if found is not None:
        yield Found(f"an operand or result has {found.rank} axes ({found})", "fold heads or batch so that four axes remain")


_D3 = "coreml_ane.md D3 (coremltools, typed execution; a float32 plan without any operation there)"


@rule("D3-float32", "Computed in float32", "off-ane", source=_D3, confidence="H")
def float32(operation: OperationView, chip: Chip) -> Iterator[Found]:
    found = next((tensor for tensor in operation.activations if tensor.dtype in ("fp32", "fp64")), None)
    if found is not None:
        yield Found(f"its type is {found.dtype} ({found})", "convert with precision fp16, or accept it where the goldens ask for float32")


@rule("D3-integer", "Computed in whole numbers", "off-ane", source=_D3, confidence="H", unit="cpu")
def integer(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Eight-bit values and truth values are left to D3-narrow."""
    found = next((tensor for tensor in operation.activations if _is_wide_integer(tensor.dtype)), None)
    if found is not None:
        yield Found(f"its type is {found.dtype} ({found})", "compute it on the host, or make it a constant")


def _is_wide_integer(dtype: str) -> bool:
    return dtype.startswith(("int", "uint")) and dtype not in ("int8", "uint8")


@rule(
    "D3-narrow",
    "Truth values or eight-bit values",
    "off-ane",
    source="coreml_ane.md D3, half precision only, taken strictly: a published plan has comparisons and select on the CPU",
    confidence="M",
    unit="cpu",
)
def narrow(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Eight-bit values are left open where the chip computes with them (D20)."""
    found = next((tensor for tensor in operation.activations if tensor.dtype in ("bool", "int8", "uint8")), None)
    if found is not None:
        proven = found.dtype == "bool" or not chip.has_int8_activations.value
        yield Found(f"its type is {found.dtype} ({found})", "use arithmetic on a mask of ones and zeros in half precision", proven)
