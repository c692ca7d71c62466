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
    """`same` pads to ceil(size / stride) results, the odd zero last (`same_lower`: first); so its type inference has it."""
    spatial = _spatial_axes(x, weight)
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    if pad_type in ("valid", "custom"):
        before, after = _given_padding(pad_type, pad, spatial)
    else:
        size, reach = x.shape[2:], _reaches(weight, dilations)
        results = [-(-size[i] // strides[i]) for i in range(spatial)]
        before, after = _shared_out(pad_type, [max(0, (results[i] - 1) * strides[i] + reach[i] - size[i]) for i in range(spatial)])
    if before != after:
        x = F.pad(x, [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair])
        before = [0] * spatial
    return _CONV[spatial](x, weight, bias, strides, before, dilations, groups)


@mil_op("conv_quantized")
def conv_quantized(
    x: Tensor,
    weight: Tensor,
    quantization_type: str,
    quant_scale: Tensor,
    quant_bias: Tensor,
    bias: Tensor | None = None,
    nbits: int = 8,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """conv with the weight `weight * quant_scale + quant_bias`; these are one number, or one for each output channel.

    From documentation, unverified (coremltools defs/iOS15/conv.py). The `bias` of the convolution is added as it is. Weights
    are stored one to a byte whatever `nbits` says. The definition has no parameter for the table of `lut`.
    """
    if quantization_type != "linear":
        raise PackageError(f"conv_quantized has no {quantization_type!r} quantization that its parameters could describe")
    if not 1 <= nbits <= 8:
        raise PackageError(f"conv_quantized has 1 to 8 bits, not {nbits}")
    channels = [-1] + [1] * (weight.ndim - 1)
    restored = weight.to(x.dtype) * quant_scale.reshape(channels) + quant_bias.reshape(channels)
    return conv(x, restored, None if bias is None else bias.to(x.dtype), strides, pad_type, pad, dilations, groups)


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
    """The adjoint of conv. Its full result is cut to the wanted size, from `before` on; beyond its end there is only bias.

    `same` gives size * stride results unless `output_shape` says otherwise, and cuts what a `same` conv of that many values
    would have padded. `same_lower` is not in the documentation of this operation, and is taken as the adjoint of conv's.
    """
    spatial = _spatial_axes(x, weight)
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    size, reach = x.shape[2:], _reaches(weight, dilations)
    full = [(size[i] - 1) * strides[i] + reach[i] for i in range(spatial)]
    if pad_type in ("valid", "custom"):
        before, after = _given_padding(pad_type, pad, spatial)
        wanted = output_shape[2:] if output_shape else [full[i] - before[i] - after[i] for i in range(spatial)]
    else:
        wanted = output_shape[2:] if output_shape else [size[i] * strides[i] for i in range(spatial)]
        before, after = _shared_out(pad_type, [max(0, full[i] - wanted[i]) for i in range(spatial)])
    longer = [wanted[i] - (full[i] - 2 * before[i]) for i in range(spatial)]  # than with `before` cut from both ends
    if all(0 <= longer[i] < max(strides[i], dilations[i]) for i in range(spatial)):
        return _CONV_TRANSPOSE[spatial](x, weight, bias, strides, before, longer, groups, dilations)
    missing = [before[i] + wanted[i] - full[i] for i in range(spatial)]
    if max(missing) <= 0:
        out = _CONV_TRANSPOSE[spatial](x, weight, bias, strides, 0, 0, groups, dilations)
        for axis in range(spatial):
            out = out.narrow(2 + axis, before[axis], wanted[axis])
        return out
    out = _CONV_TRANSPOSE[spatial](x, weight, None, strides, 0, 0, groups, dilations)
    out = F.pad(out, [amount for axis in reversed(range(spatial)) for amount in (-before[axis], missing[axis])])
    return out if bias is None else out + bias.reshape([-1] + [1] * spatial)


def _spatial_axes(x: Tensor, weight: Tensor) -> int:
    spatial = x.ndim - 2
    if spatial not in _CONV or weight.ndim != x.ndim:
        raise PackageError(
            f"a convolution is over 1 to 3 axes; its input has {x.ndim} axes with batch and channels, its weight {weight.ndim}"
        )
    return spatial


def _reaches(weight: Tensor, dilations: Ints) -> Ints:
    """How many values the dilated kernel spans on each axis."""
    return [dilation * (kernel - 1) + 1 for dilation, kernel in zip(dilations, weight.shape[2:], strict=True)]


def _given_padding(pad_type: str, pad: Ints | None, spatial: int) -> tuple[Ints, Ints]:
    """Amounts before and after each axis; `pad` counts only where the type is custom."""
    if pad_type == "valid" or not pad:
        return [0] * spatial, [0] * spatial
    return pad[::2], pad[1::2]


def _shared_out(pad_type: str, totals: Ints) -> tuple[Ints, Ints]:
    """Amounts before and after each axis, as even as possible."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    if pad_type == "same":
        return small, large
    if pad_type == "same_lower":
        return large, small
    raise PackageError(f"the pad_type {pad_type!r} is unknown")
