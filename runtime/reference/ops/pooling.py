"""Pooling over one to three spatial axes.

The sizes are those of coremltools' type inference (defs/_utils.py). Padding is minus infinity to a maximum and zero to
sums. What a window of `ceil_mode` covers beyond the padded input is padding too, so an average that counts padding
divides by the whole kernel there; torch does not (coremltools' issue 2772 and pull request 2844 show Core ML's results).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import Ints, mil_op

UNVERIFIED = {
    "avg_pool with ceil_mode and padding counted": "divides by the whole kernel, as Core ML's results in coremltools issue 2772 do;"
    " torch divides by what lies within the padding",
    "avg_pool of windows that hold nothing but padding": "not documented; NaN where padding is not counted, 0 where it is",
    "max_pool of windows that hold nothing but padding": "not documented; negative infinity",
    "l2_pool of windows that hold nothing but padding": "not documented; 0",
}

_AVERAGE: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMUM: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@mil_op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    pads = _padding(x, kernel_sizes, pad_type, strides, pad, ceil_mode)
    average = _AVERAGE[len(kernel_sizes)]
    result = average(_padded(x, pads), kernel_sizes, strides)
    if exclude_padding_from_average and any(pads):
        inside = _padded(x.new_ones([1, 1, *x.shape[2:]]), pads)
        result = result / average(inside, kernel_sizes, strides)
    return result


@mil_op("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    pads = _padding(x, kernel_sizes, pad_type, strides, pad, ceil_mode)
    return _MAXIMUM[len(kernel_sizes)](_padded(x, pads, -math.inf), kernel_sizes, strides)


@mil_op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The square root of a window's sum of squares."""
    squares = avg_pool(x.square(), kernel_sizes, pad_type, strides, pad, False, ceil_mode)
    return torch.sqrt(squares * math.prod(kernel_sizes))


def _padded(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    return F.pad(x, pads, value=value) if any(pads) else x


def _padding(x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints, pad: Ints | None, ceil_mode: bool) -> list[int]:
    """What to add so that the windows fit, as F.pad wants it: last axis first."""
    spatial, kind = x.ndim - 2, pad_type.lower()
    if kind not in ("valid", "custom", "same", "same_lower"):
        raise PackageError(f"pooling has no pad_type {pad_type!r}")
    given = pad if kind == "custom" and pad else [0] * (2 * spatial)
    if spatial not in _AVERAGE or len(kernel_sizes) != spatial or len(strides) != spatial or len(given) != 2 * spatial:
        raise PackageError(f"kernel {kernel_sizes}, strides {strides} and padding {given} do not fit {x.ndim} axes")
    if min(*kernel_sizes, *strides) < 1 or min(given) < 0:
        raise PackageError(f"kernel {kernel_sizes}, strides {strides} or padding {given} is out of range")
    pads: list[int] = []
    for size, kernel, stride, *ends in zip(x.shape[2:], kernel_sizes, strides, given[::2], given[1::2], strict=True):
        before, after = _same(kind, size, kernel, stride) if kind.startswith("same") else ends
        windows = _windows(size, kernel, stride, before, after, ceil_mode)
        if windows < 1:
            raise PackageError(f"a window of {kernel} does not fit {size} values padded by {before} and {after}")
        pads = [before, max(0, (windows - 1) * stride + kernel - size - before), *pads]
    return pads


def _same(kind: str, size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding so that there is a window for each `stride` values begun; what is odd goes after, or before if lower."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    small = total // 2
    return (total - small, small) if kind == "same_lower" else (small, total - small)


def _windows(size: int, kernel: int, stride: int, before: int, after: int, ceil_mode: bool) -> int:
    """`ceil_mode` drops a last window that starts in the padding, but only if there is padding; torch always drops it."""
    room = size + before + after - kernel
    if not ceil_mode:
        return room // stride + 1
    windows = -(-room // stride) + 1
    in_padding = (windows - 1) * stride >= size + (before + after) / 2
    return windows - 1 if in_padding and before + after > 0 else windows
