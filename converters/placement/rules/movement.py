"""D11, D14 and D21: slices, short last axes, resizing and padding."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..chips import CHIPS, Chip
from ..registry import Found, rule
from ..view import OperationView, Tensor

ALIGNMENT = 64  # D14: bytes to which a row of the last axis is aligned
SMALL = 32 * 1024  # bytes once padded; below, the waste costs nothing that matters
RESIZES = ("upsample_nearest_neighbor", "upsample_bilinear", "resize_nearest_neighbor", "resize_bilinear", "resize")
_SAMPLERS = ("crop_resize", "resample", "affine")
_CLEAN = tuple(name for name, chip in CHIPS.items() if chip.slices_saturate.value is not False)


@rule(
    "D11-slice",
    "A slice of the last axis that begins inside",
    "hazard",
    source="coreml_ane.md D11 (measured on A13 and A14; M1 and M2): beyond 4094 values become infinite, and joined slices come out wrong",
    confidence="M",
    chips=_CLEAN,
    types=("slice_by_index", "slice_by_size", "split"),
)
def slice_inside(operation: OperationView, chip: Chip) -> Iterator[Found]:
    x = operation.input("x")
    if x is None or not x.rank:
        return
    remedy = "put the split on the channel axis, or use a convolution that selects"
    proven = chip.slices_saturate.value is True
    if operation.type == "split":
        if (operation.integers("axis") or [0])[0] % x.rank == x.rank - 1 and len(operation.outputs) > 1:
            yield Found(f"it splits the last axis of {x}", remedy, proven)
        return
    begin = _begin(operation, x)
    if begin is None:
        yield Found(f"it slices the last axis of {x} from a place that is computed", remedy, proven)
    elif begin != 0:
        yield Found(f"it slices the last axis of {x} from {begin} on", remedy, proven)


def _begin(operation: OperationView, x: Tensor) -> int | None:
    """Where a slice of the last axis begins; None where that is computed."""
    places = operation.integers("begin")
    if not places:
        return None
    stride, first = 1, places[-1]
    if operation.type == "slice_by_index":
        masked, squeezed = (_is_last_set(operation.setting(name)) for name in ("begin_mask", "squeeze_mask"))
        stride = 1 if squeezed else (operation.integers("stride") or [1])[-1] or 1
        if masked:
            return 0 if stride > 0 or x.shape[-1] == 1 else -1
    size = x.shape[-1]
    return first if size is None else slice(first, None, stride).indices(size)[0]


def _is_last_set(values: object) -> bool:
    return bool(values[-1]) if isinstance(values, list) and values else values is True


@rule(
    "D14-last-axis",
    "A last axis that fills a small part of its row",
    "slow",
    source="coreml_ane.md D14 (Apple, neural-engine-transformers; the Core AI authoring rules)",
    confidence="H",
)
def last_axis(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Rows are padded to 64 bytes: at least half of them empty, of a tensor that is not small."""
    for tensor in operation.outputs:
        waste, padded = row_waste(tensor)
        if waste >= 2 and padded >= SMALL:
            yield Found(
                f"the last axis of {tensor} takes {waste:.0f} times its size in memory ({padded / 1024:.0f} kB)",
                "put the longest axis last: (1, C, 1, S)",
            )
            return


def row_waste(tensor: Tensor) -> tuple[float, int]:
    """How many times its size a tensor takes once its rows are aligned, and how many bytes that is; (1, 0) where it is open."""
    if tensor.is_open or not tensor.rank or not tensor.bytes or tensor.shape[-1] is None:
        return 1.0, 0
    row = tensor.bytes // math.prod(size or 0 for size in tensor.shape[:-1])
    padded = -(-row // ALIGNMENT) * ALIGNMENT
    return padded / row, padded * (tensor.bytes // row)


@rule(
    "D21-resize",
    "A resampling that the engine does in software",
    "off-ane",
    source="coreml_ane.md D21: a software fallback on the M1, native from the A14 on",
    confidence="M",
    types=(*RESIZES, *_SAMPLERS),
)
def resizing(operation: OperationView, chip: Chip) -> Iterator[Found]:
    if not chip.has_texture.value:
        yield Found(
            f"{chip.title} has no {operation.type} in hardware ({operation})",
            "repeat with a reshape and a concatenation, or use a polyphase convolution",
        )


@rule("D21-pad", "A padding that the engine does not have", "off-ane", source="coreml_ane.md D21", confidence="M", types=("pad",))
def padding(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Only the axes H and W; reflecting needs the hardware of the A14 on. Of rank 3 it is open which axis the second one is."""
    x, mode, amounts = operation.input("x"), operation.setting("mode", "constant"), operation.integers("pad")
    if x is None or len(amounts) > 2 * x.rank:
        return
    axes = [x.rank - len(amounts) // 2 + index // 2 for index, amount in enumerate(amounts) if amount]
    if mode == "reflect" and not chip.has_texture.value:
        yield Found(f"{chip.title} does not reflect ({operation})", "pad with zeros, or hand in the reflected samples from the host")
    elif mode not in ("constant", "reflect"):
        yield Found(f"no source says whether it pads in the mode {mode} ({operation})", "pad with zeros", proven=False)
    outside = [axis for axis in axes if axis < x.rank - 2]
    if outside:
        yield Found(f"it pads axis {outside[0]} of {x}, which is neither H nor W", "concatenate with zeros, or pad the weights instead")
    elif x.rank == 3 and 1 in axes:
        yield Found(f"it pads axis 1 of {x}, which may be that of the channels", "reshape to (1, C, 1, S) first", proven=False)
