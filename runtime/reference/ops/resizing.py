"""Scaling of the last axes to another size, and cropping them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ....errors import PackageError
from ..program import TensorType
from ..registry import Declared, Ints, mil_op

UNVERIFIED: dict[str, str] = {
    "upsample_nearest_neighbor with fractional factors": (
        "not documented; floor(i * in / out), from one device value in coremltools' tests, where torch divides by the factor"
    ),
    "resize NEAREST_NEIGHBOR with STRICT_ALIGN_CORNERS, ALIGN_CORNERS or OFFSET_CORNERS": (
        "not documented; the pixel nearest to the mode's grid point is taken, the later one of two equally near"
    ),
    "resize LINEAR of int32": "how fractions become integers is not documented; they are cut off, as cast does",
}
SAMPLING_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
AlongAxis = Callable[[Tensor, int, int], Tensor]  # a tensor, an axis and its new size


@mil_op("upsample_nearest_neighbor", moves=True)
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0, declared: Declared = ()
) -> Tensor:
    """Output i takes the input floor(i * in / out): the factor sets the size only, it is not the step of the sampling.

    coremltools' tests (iOS15/test_image_resizing.py) expect 3 values times 1.12 to remain as they are, which
    floor(i / factor) does not give.
    """
    return _resized(x, _scaled_sizes(x, scale_factor_height, scale_factor_width, declared), partial(_nearest, "ASYMMETRIC"))


@mil_op("resize_nearest_neighbor", moves=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Output i takes the input below its centre, floor((i + 0.5) * in / out), unlike `upsample_nearest_neighbor`.

    The definition does not say so. coremltools converts TensorFlow's half_pixel_centers=True to it, and the other way
    of sampling to `upsample_nearest_neighbor`.
    """
    return _resized(x, [target_size_height, target_size_width], partial(_nearest, "UNALIGN_CORNERS"))


@mil_op("upsample_bilinear", until="iOS15")
def upsample_bilinear_ios15(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    declared: Declared = (),
) -> Tensor:
    return upsample_bilinear(x, scale_factor_height, scale_factor_width, align_corners, None, declared)


@mil_op("upsample_bilinear", since="iOS16")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
    declared: Declared = (),
) -> Tensor:
    """The steps of the sampling come from the sizes, not from the factors. Half pixels: not `align_corners` by default."""
    if half_pixel_centers is None:
        half_pixel_centers = not align_corners
    if align_corners and half_pixel_centers:
        raise PackageError("align_corners and half_pixel_centers exclude one another")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half_pixel_centers else "DEFAULT"
    return _resized(x, _scaled_sizes(x, scale_factor_height, scale_factor_width, declared), partial(_linear, mode))


@mil_op("resize_bilinear")
def resize_bilinear(x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT") -> Tensor:
    return _resized(x, [target_size_height, target_size_width], partial(_linear, sampling_mode))


@mil_op("resize", since="iOS17")
def resize(x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT") -> Tensor:
    """The last `resized_dims` entries of `shape` are the new sizes of as many last axes; 0 keeps a size.

    NEAREST_NEIGHBOR with DEFAULT is `resize_nearest_neighbor`: coremltools' tests expect so of 2 values made 3, and of
    whole factors compared with TensorFlow (iOS17/test_image_resizing.py, frontend/tensorflow/test/test_ops.py).
    """
    if not 0 <= resized_dims <= len(shape) <= x.ndim:
        raise PackageError(f"{resized_dims} sizes of the {len(shape)} in shape cannot be those of a tensor of {x.ndim} axes")
    kept = x.ndim - resized_dims
    sizes = [wanted or x.shape[kept + index] for index, wanted in enumerate(shape[len(shape) - resized_dims :])]
    if interpolation_mode == "NEAREST_NEIGHBOR":
        return _resized(x, sizes, partial(_nearest, "UNALIGN_CORNERS" if sampling_mode == "DEFAULT" else sampling_mode))
    if interpolation_mode != "LINEAR":
        raise PackageError(f"the interpolation_mode {interpolation_mode!r} is unknown")
    if x.is_floating_point():
        return _resized(x, sizes, partial(_linear, sampling_mode))
    exact = _resized(x.double(), sizes, partial(_linear, sampling_mode))
    return exact.round(decimals=6).trunc().to(x.dtype)  # what is whole but for rounding stays so


@mil_op("crop", moves=True)
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    if x.ndim < 2 or len(crop_height) != 2 or len(crop_width) != 2:
        raise PackageError("needs a height and a width to crop, and two amounts for each")
    for axis, (before, after) in ((-2, crop_height), (-1, crop_width)):
        left = x.shape[axis] - before - after
        if min(before, after, left) < 0:
            raise PackageError(f"cannot crop {before} and {after} from an axis of {x.shape[axis]}")
        x = x.narrow(axis, before, left)
    return x


def grid(mode: str, last: float | Tensor, count: int) -> Tensor:
    """`count` points of the interval from 0 to `last` (one or several such), by a sampling mode; in float64.

    The size X that the definitions speak of is `last` + 1 (defs/iOS15/image_resizing.py, resize_bilinear). Products
    come before quotients, so that points that are whole numbers are exactly so.
    """
    points = torch.arange(count, dtype=torch.float64)
    end = torch.as_tensor(last, dtype=torch.float64)[..., None]
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        centred = mode == "ALIGN_CORNERS" and count == 1
        points = end / 2 + points if centred else points * end / max(1, count - 1)
    elif mode == "DEFAULT":
        points = points * (end + 1) / count
    elif mode == "OFFSET_CORNERS":
        points = (points + 0.5) * end.clamp(min=1) / count
    elif mode == "UNALIGN_CORNERS":
        points = (points + 0.5) * (end + 1) / count - 0.5
    else:
        raise PackageError(f"the sampling_mode {mode!r} is unknown; known are {', '.join(SAMPLING_MODES)}")
    return torch.minimum(points.clamp(min=0), end)


def _resized(x: Tensor, sizes: list[int], along: AlongAxis) -> Tensor:
    """The last axes in their new sizes. Those that shrink come first: then nothing outgrows both `x` and the result."""
    first = x.ndim - len(sizes)
    if first < 0:
        raise PackageError(f"{len(sizes)} axes cannot be resized in a tensor of {x.ndim}")
    for axis, size in sorted(enumerate(sizes, first), key=lambda item: item[1] / max(1, x.shape[item[0]])):
        if size < 0 or (size and not x.shape[axis]):
            raise PackageError(f"cannot resize axis {axis} from {x.shape[axis]} to {size}")
        x = along(x, axis, size)
    return x


def _linear(mode: str, x: Tensor, axis: int, size: int) -> Tensor:
    points = grid(mode, x.shape[axis] - 1, size)
    lower = points.long()
    weight = (points - lower).to(x.dtype).reshape([-1] + [1] * (x.ndim - 1 - axis))
    upper = (lower + 1).clamp(max=x.shape[axis] - 1)
    return torch.lerp(x.index_select(axis, lower), x.index_select(axis, upper), weight)


def _nearest(mode: str, x: Tensor, axis: int, size: int) -> Tensor:
    have, steps = x.shape[axis], torch.arange(size)
    if mode == "ASYMMETRIC":
        index = steps * have // max(1, size)
    elif mode == "UNALIGN_CORNERS":
        index = (2 * steps + 1) * have // max(1, 2 * size)
    else:
        index = (grid(mode, have - 1, size) + 0.5).long().clamp(max=have - 1)
    return x.index_select(axis, index)


def _scaled_sizes(x: Tensor, height: float, width: float, declared: Declared) -> list[int]:
    """floor(size * factor). Whether the product is rounded to float32 first depended on the numpy that converted.

    Where these two differ, the shape that the package declares decides.
    """
    if x.ndim < 2:
        raise PackageError(f"a tensor of {x.ndim} axes has no height and width")
    kind = declared[0] if declared else None
    shape = kind.shape[-2:] if isinstance(kind, TensorType) and len(kind.shape) == x.ndim else (None, None)
    sizes = []
    for size, factor, wanted in zip(x.shape[-2:], (height, width), shape, strict=True):
        if not math.isfinite(factor):
            raise PackageError(f"the scale factor {factor} is not finite")
        possible = [math.floor(float(np.float32(size) * np.float32(factor))), math.floor(size * factor)]
        sizes.append(wanted if wanted in possible else possible[0])
    return sizes
