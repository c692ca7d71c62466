"""Constants that are stored compressed. The executor runs these operations once, at load.

Up to iOS 17 data lies in flat streams of bits and a `shape` says what they hold; iOS 18 has types narrower than a byte
and block-wise parameters: each axis of a parameter divides that axis of the data, and its values serve equal blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import PackageError
from ..registry import Ints, mil_op
from ..weights import unpack_bits
from .quantization import along_axis


@mil_op("constexpr_affine_dequantize", since="iOS16")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (quantized_data - zero_point)"""
    levels = quantized_data.to(scale.dtype) - along_axis(zero_point, quantized_data, axis, "zero_point").to(scale.dtype)
    return levels * along_axis(scale, quantized_data, axis, "scale")


@mil_op("constexpr_cast", since="iOS16")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    if output_dtype != "fp32":
        raise PackageError(f"constexpr_cast has no output type {output_dtype!r}")
    return source_val


@mil_op("constexpr_lut_to_dense", since="iOS16", until="iOS17", moves=True)
def constexpr_lut_to_dense_packed(indices: Tensor, lut: Tensor, shape: Ints) -> Tensor:
    """`indices` is a stream of bits, as many for each value as it takes to number the table, lowest bits first."""
    bits = (lut.numel() - 1).bit_length()
    if lut.ndim != 1 or not 1 <= bits <= 8 or lut.numel() != 1 << bits:
        raise PackageError(f"a table of {tuple(lut.shape)} values cannot be indexed by whole bits")
    return lut[_unpacked(indices, bits, shape).to(torch.int32)].reshape(shape)


@mil_op("constexpr_sparse_to_dense", since="iOS16", until="iOS17", moves=True)
def constexpr_sparse_to_dense_packed(nonzero_data: Tensor, mask: Tensor, shape: Ints) -> Tensor:
    """`mask` has a bit for each value, lowest bits first; `nonzero_data` those whose bit is set, in order."""
    return _spread(nonzero_data, _unpacked(mask, 1, shape).reshape(shape))


@mil_op("constexpr_lut_to_dense", since="iOS18", moves=True)
def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, vector_axis: int | None = None) -> Tensor:
    """`lut` has a table for each block of `indices`, then the entries, then the values that one index stands for.

    These lie side by side on `vector_axis`, which grows by their number.
    """
    if lut.ndim < 2:
        raise PackageError(f"a table of shape {tuple(lut.shape)} holds no vectors")
    *groups, entries, width = lut.shape
    sizes = _block_sizes(indices, groups, "lut")
    blocks = _to_blocks(indices, groups, sizes).to(torch.int64)
    tables = lut.flatten(0, len(groups) - 1)
    if blocks.numel() and not 0 <= int(blocks.min()) <= int(blocks.max()) < entries:
        raise PackageError(f"the indices from {int(blocks.min())} to {int(blocks.max())} lie beyond a table of {entries}")
    table = torch.arange(len(tables))[:, None]
    values = _from_blocks(tables[table, blocks], groups, sizes)
    if width == 1:
        return values.squeeze(-1)
    axis = _vector_axis(vector_axis, indices)
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


@mil_op("constexpr_sparse_to_dense", since="iOS18", moves=True)
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    return _spread(nonzero_data, mask)


@mil_op("constexpr_blockwise_shift_scale", since="iOS18")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), with one scale and offset for each block of the data."""
    if offset is not None and offset.shape != scale.shape:
        raise PackageError(f"offset is {tuple(offset.shape)} and scale {tuple(scale.shape)}")
    sizes = _block_sizes(data, list(scale.shape), "scale")
    blocked = [part for pair in zip(scale.shape, sizes, strict=True) for part in pair]
    spread = [part for size in scale.shape for part in (size, 1)]
    levels = data.to(scale.dtype).reshape(blocked)
    if offset is not None:
        levels = levels - offset.to(scale.dtype).reshape(spread)
    return (levels * scale.reshape(spread)).reshape(data.shape)


@mil_op("constexpr_lut_to_sparse", since="iOS18", moves=True)
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the values of a sparse tensor whose values are stored as indices."""
    dense = constexpr_lut_to_dense(_spread(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], dim=_vector_axis(vector_axis, mask))
    return mask, dense[mask != 0]


@mil_op("constexpr_sparse_blockwise_shift_scale", since="iOS18")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the values of a sparse tensor whose values are stored quantised; each knows its block by its place."""
    dense = constexpr_blockwise_shift_scale(_spread(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def _unpacked(stream: Tensor, bits: int, shape: Ints) -> Tensor:
    """The first values of a stream, as many as `shape` holds, flat."""
    if stream.dtype != torch.uint8:
        raise PackageError(f"a stream of bits is stored as {stream.dtype}")
    if any(size < 0 for size in shape):
        raise PackageError(f"there is no shape {tuple(shape)}")
    count = 1
    for size in shape:
        count *= size
    if stream.ndim != 1 or stream.numel() != -(-count * bits // 8):
        raise PackageError(f"{tuple(shape)} takes {-(-count * bits // 8)} bytes, and {tuple(stream.shape)} is stored")
    return stream if bits == 8 else torch.from_numpy(unpack_bits(stream.numpy(), f"uint{bits}", count))


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """The values in order where the mask is set, zero elsewhere."""
    chosen = mask != 0
    count = int(chosen.sum())
    if values.ndim != 1 or values.numel() != count:
        raise PackageError(f"the mask has {count} places for {tuple(values.shape)} values")
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[chosen] = values
    return dense


def _block_sizes(data: Tensor, groups: list[int], name: str) -> list[int]:
    """How many indices of each axis share a parameter."""
    divides = data.ndim == len(groups) and data.ndim > 0
    if not divides or any(group < 1 or size % group for size, group in zip(data.shape, groups, strict=True)):
        raise PackageError(f"{name} does not divide {tuple(data.shape)} into blocks")
    return [size // group for size, group in zip(data.shape, groups, strict=True)]


def _to_blocks(data: Tensor, groups: list[int], sizes: list[int]) -> Tensor:
    """(blocks, values of a block)"""
    parts = data.reshape([part for pair in zip(groups, sizes, strict=True) for part in pair])
    order = [*range(0, parts.ndim, 2), *range(1, parts.ndim, 2)]
    return parts.permute(order).flatten(0, len(groups) - 1).flatten(1)


def _from_blocks(values: Tensor, groups: list[int], sizes: list[int]) -> Tensor:
    """Undoes `_to_blocks` for (blocks, values of a block, rest)."""
    rank = len(groups)
    parts = values.reshape([*groups, *sizes, values.shape[-1]])
    order = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
    return parts.permute([*order, 2 * rank]).reshape([*(group * size for group, size in zip(groups, sizes, strict=True)), values.shape[-1]])


def _vector_axis(axis: int | None, indices: Tensor) -> int:
    if axis is None or not -indices.ndim <= axis < indices.ndim:
        raise PackageError(f"vector_axis is {axis}, and the table holds vectors for {tuple(indices.shape)}")
    return axis % indices.ndim
