"""Convolution and transposed convolution over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import Ints, mil_op

_CONV: dict[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Any]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@mil_op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    before, after = _padding(pad_type, pad, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    if before != after:
        x = F.pad(x, [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair])
        before = [0] * spatial
    return _CONV[spatial](x, weight, bias, strides, before, dilations, groups)


@mil_op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    kernel = list(weight.shape[2:])
    if pad_type not in ("valid", "custom"):
        raise PackageError(f"conv_transpose with pad_type {pad_type!r} is not supported yet")
    pads = pad if pad_type == "custom" and pad else [0] * (2 * spatial)
    before, after = pads[::2], pads[1::2]
    full = [(x.shape[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(spatial)]
    wanted = output_shape[2:] if output_shape else [full[i] - before[i] - after[i] for i in range(spatial)]
    if before == after and wanted == [full[i] - 2 * before[i] for i in range(spatial)]:
        return _CONV_TRANSPOSE[spatial](x, weight, bias, strides, before, 0, groups, dilations)
    if any(before[i] + wanted[i] > full[i] for i in range(spatial)):
        raise PackageError(f"conv_transpose to the output shape {output_shape} beyond its full size is not supported yet")
    out = _CONV_TRANSPOSE[spatial](x, weight, bias, strides, 0, 0, groups, dilations)
    for axis in range(spatial):
        out = out.narrow(2 + axis, before[axis], wanted[axis])
    return out


def _padding(
    pad_type: str, pad: Ints | None, size: list[int], kernel: list[int], strides: Ints, dilations: Ints
) -> tuple[list[int], list[int]]:
    """Zeros before and after each spatial axis."""
    spatial = len(size)
    if pad_type == "valid":
        return [0] * spatial, [0] * spatial
    if pad_type == "custom":
        pads = pad or [0] * (2 * spatial)
        return pads[::2], pads[1::2]
    totals = []
    for i in range(spatial):
        out = -(-size[i] // strides[i])
        totals.append(max(0, (out - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - size[i]))
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    if pad_type == "same":
        return small, large
    if pad_type == "same_lower":
        return large, small
    raise PackageError(f"conv with pad_type {pad_type!r} is unknown")
