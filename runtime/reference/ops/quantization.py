"""Linear quantisation of activations (defs/iOS17/quantization_ops)."""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import PackageError
from ..registry import mil_op

UNVERIFIED = {
    "quantize of halves": "rounded to the even neighbour, as coremltools' value inference does it; the definition says round only",
    "quantize of NaN": "not documented; 0",
}
_INTEGERS = {"int8": torch.int8, "uint8": torch.uint8}


@mil_op("quantize", since="iOS17")
def quantize(input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """clip(round(input / scale) + zero_point); halves go to the even neighbour, as in coremltools' value inference."""
    if output_dtype not in _INTEGERS:
        raise PackageError(f"quantize has no output type {output_dtype!r}")
    dtype = _INTEGERS[output_dtype]
    levels = torch.round(input / along_axis(scale, input, axis, "scale"))
    if zero_point is not None:
        levels = levels + along_axis(zero_point, input, axis, "zero_point").to(levels.dtype)
    limits = torch.iinfo(dtype)
    return levels.clamp(limits.min, limits.max).nan_to_num(0.0).to(dtype)


@mil_op("dequantize", since="iOS17")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero_point)"""
    levels = input.to(scale.dtype)
    if zero_point is not None:
        levels = levels - along_axis(zero_point, input, axis, "zero_point").to(scale.dtype)
    return levels * along_axis(scale, input, axis, "scale")


def along_axis(parameter: Tensor, data: Tensor, axis: int | None, name: str) -> Tensor:
    """One value for all of `data`, or one for each index of `axis`, shaped to broadcast."""
    if parameter.ndim == 0:
        return parameter
    if parameter.ndim != 1:
        raise PackageError(f"{name} has {parameter.ndim} axes; it is one value, or one for each index of an axis")
    if axis is None:
        raise PackageError(f"{name} has {len(parameter)} values, and no axis is given")
    if not -data.ndim <= axis < data.ndim:
        raise PackageError(f"there is no axis {axis} in {tuple(data.shape)}")
    if data.shape[axis] != len(parameter):
        raise PackageError(f"{name} has {len(parameter)} values for an axis of {data.shape[axis]}")
    shape = [1] * data.ndim
    shape[axis] = len(parameter)
    return parameter.reshape(shape)
