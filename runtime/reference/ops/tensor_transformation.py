"""Operations that rearrange a tensor's values: shapes, orders, slices, blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import Bools, Ints, Tensors, Values, mil_op


@mil_op("reshape", until="iOS16", moves=True)
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """A -1 takes what is left; a 0 keeps the axis it stands for, where the ranks are equal."""
    if 0 in shape and len(shape) != x.ndim:
        raise PackageError(f"shape {shape} has a 0, and {len(shape)} axes where x has {x.ndim}")
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


@mil_op("reshape", since="iOS17", moves=True)
def reshape_aligned_right(x: Tensor, shape: Ints) -> Tensor:
    """As before, but axes are counted from the right, and a 0 beyond x's first axis is 1."""
    shift = x.ndim - len(shape)
    kept = [x.shape[axis + shift] if axis + shift >= 0 else 1 for axis in range(len(shape))]
    return x.reshape([kept[axis] if size == 0 else size for axis, size in enumerate(shape)])


@mil_op("reshape_like", since="iOS16", moves=True)
def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Values, ends: Values, end_masks: Values) -> Tensor:
    """The axes `begin` to `end` of each reference in turn; a mask takes all from `begin` on."""
    shape: list[int] = []
    for reference, begin, end, open_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[int(begin) : None if open_end else int(end)]
    return x.reshape(shape)


@mil_op("transpose", moves=True)
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@mil_op("expand_dims", moves=True)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """`axes` are counted in the result. One that is named twice gives two axes there."""
    shape, rank = list(x.shape), x.ndim + len(axes)
    for axis in sorted(_axis(axis, rank) for axis in axes):
        shape.insert(axis, 1)
    return x.reshape(shape)


@mil_op("squeeze", moves=True)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Axes of another size than 1 stay, even if they are named."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@mil_op("reverse", moves=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return torch.flip(x, axes if axes is not None else list(range(x.ndim)))


@mil_op("reverse_sequence", moves=True)
def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Along `seq_axis`, the first lengths[i] values of the batch's item i in reverse order."""
    along, batch = _axis(seq_axis, x.ndim), _axis(batch_axis, x.ndim)
    if along == batch:
        raise PackageError(f"axis {along} is both the sequence's and the batch's")
    if len(lengths) != x.shape[batch]:
        raise PackageError(f"{len(lengths)} lengths are given for a batch of {x.shape[batch]}")
    if any(not 0 <= length <= x.shape[along] for length in lengths):
        raise PackageError(f"lengths {lengths} leave the range 0 to {x.shape[along]}")
    position = torch.arange(x.shape[along])
    ends = torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)
    source = torch.where(position < ends, ends - 1 - position, position)
    items = torch.arange(len(lengths)).unsqueeze(1)
    return x.movedim((batch, along), (0, 1))[items, source].movedim((0, 1), (batch, along))


@mil_op("slice_by_index", moves=True)
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """numpy's x[begin:end:stride] on each axis.

    A mask opens its side; `squeeze_mask` takes the index `begin` (0 where that is masked) and drops the axis.
    """
    index, flipped = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return _flip(x[index], flipped)


@mil_op("slice_update", since="iOS18", moves=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """x with `update` in the place of what slice_by_index takes."""
    index, flipped = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    updated = x.clone()
    target = updated[index]
    if target.shape != update.shape:  # torch would broadcast
        raise PackageError(f"an update of shape {tuple(update.shape)} is given for a slice of shape {tuple(target.shape)}")
    target.copy_(_flip(update, flipped))
    return updated


@mil_op("slice_by_size", moves=True)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """A size of -1 takes all from `begin` on."""
    _check_lengths(x, {"begin": begin, "size": size})
    index = []
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        length = x.shape[axis]
        start = first + length if first < 0 else first
        stop = length if count == -1 else start + count
        if not 0 <= start <= stop <= length:
            raise PackageError(f"{count} values from {first} on leave axis {axis} of size {length}")
        index.append(slice(start, stop))
    return x[tuple(index)]


@mil_op("sliding_windows", moves=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """The windows' own axis stands behind the one they were taken from."""
    axis = _axis(axis, x.ndim)
    if not 1 <= size <= x.shape[axis] or stride < 1:
        raise PackageError(f"windows of {size} at a stride of {stride} do not fit an axis of size {x.shape[axis]}")
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


@mil_op("depth_to_space", moves=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channel (row * block_size + column) * C + c goes to row and column of a block of channel c.

    The order is that of TensorFlow and of Core ML's specification of ReorganizeDataLayerParams, where pixel_shuffle's differs.
    """
    n, c, h, w = _image(x)
    b, depth = block_size, _divided(c, block_size, block_size)
    return x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, depth, h * b, w * b)


@mil_op("space_to_depth", moves=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of depth_to_space."""
    n, c, h, w = _image(x)
    b, rows, columns = block_size, _divided(h, block_size), _divided(w, block_size)
    return x.reshape(n, c, rows, b, columns, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, rows, columns)


@mil_op("pixel_shuffle", moves=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Channel c * f^2 + row * f + column goes to row and column of a block of channel c."""
    n, c, h, w = _image(x)
    f, depth = upscale_factor, _divided(c, upscale_factor, upscale_factor)
    return x.reshape(n, depth, f, f, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, depth, h * f, w * f)


@mil_op("pixel_unshuffle", since="iOS16", moves=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """The inverse of pixel_shuffle."""
    n, c, h, w = _image(x)
    f, rows, columns = downscale_factor, _divided(h, downscale_factor), _divided(w, downscale_factor)
    return x.reshape(n, c, rows, f, columns, f).permute(0, 1, 3, 5, 2, 4).reshape(n, c * f * f, rows, columns)


@mil_op("space_to_batch", moves=True)
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """After padding with zeros, item (row * block width + column) * n + i has that place of every block of item i.

    `paddings` is ((top, bottom), (left, right)).
    """
    n, c, h, w = _image(x)
    height, width = _block(block_shape)
    top, bottom, left, right = _margins(paddings)
    rows, columns = _divided(h + top + bottom, height), _divided(w + left + right, width)
    blocks = F.pad(x, (left, right, top, bottom)).reshape(n, c, rows, height, columns, width)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(n * height * width, c, rows, columns)


@mil_op("batch_to_space", moves=True)
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """The inverse of space_to_batch; `crops` is ((top, bottom), (left, right))."""
    n, c, h, w = _image(x)
    height, width = _block(block_shape)
    top, bottom, left, right = _margins(crops)
    items, full_height, full_width = _divided(n, height, width), h * height, w * width
    if top + bottom > full_height or left + right > full_width:
        raise PackageError(f"crops {crops} are more than {full_height} by {full_width}")
    whole = x.reshape(height, width, items, c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(items, c, full_height, full_width)
    return whole[:, :, top : full_height - bottom, left : full_width - right]


def _axis(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises PackageError for one that is not there."""
    if not -rank <= axis < rank:
        raise PackageError(f"there is no axis {axis} among {rank}")
    return axis % rank


def _slices(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> tuple[tuple[slice | int, ...], list[int]]:
    """An index for x, and the axes of what it takes that are to be flipped: torch has no negative steps."""
    strides = stride or [1] * x.ndim
    open_begin, open_end, squeezed = (mask or [False] * x.ndim for mask in (begin_mask, end_mask, squeeze_mask))
    masks: dict[str, Sequence[int]] = {"begin_mask": open_begin, "end_mask": open_end, "squeeze_mask": squeezed}
    _check_lengths(x, {"begin": begin, "end": end, "stride": strides} | masks)
    index: list[slice | int] = []
    flipped = []
    for axis, length in enumerate(x.shape):
        first, last = None if open_begin[axis] else begin[axis], None if open_end[axis] else end[axis]
        if squeezed[axis]:
            first = first or 0
            if not -length <= first < length:
                raise PackageError(f"there is no index {first} on axis {axis} of size {length}")
            index.append(first)
            continue
        chosen = range(*slice(first, last, strides[axis]).indices(length))
        if not chosen:
            index.append(slice(0, 0))
        elif chosen.step > 0:
            index.append(slice(chosen.start, chosen.stop, chosen.step))
        else:
            index.append(slice(chosen[-1], chosen[0] + 1, -chosen.step))
            flipped.append(axis - sum(squeezed[:axis]))
    return tuple(index), flipped


def _flip(x: Tensor, axes: list[int]) -> Tensor:
    return torch.flip(x, axes) if axes else x


def _check_lengths(x: Tensor, values: dict[str, Sequence[int]]) -> None:
    for name, value in values.items():
        if len(value) != x.ndim:
            raise PackageError(f"{name} has {len(value)} values, and x has {x.ndim} axes")


def _image(x: Tensor) -> tuple[int, int, int, int]:
    """The sizes of items, channels, rows and columns."""
    if x.ndim != 4:
        raise PackageError(f"x has {x.ndim} axes where 4 are expected")
    n, c, h, w = x.shape
    return n, c, h, w


def _divided(size: int, *divisors: int) -> int:
    for divisor in divisors:
        if divisor < 1 or size % divisor:
            raise PackageError(f"a size of {size} cannot be divided by {divisor}")
        size //= divisor
    return size


def _block(block_shape: Ints) -> tuple[int, int]:
    if len(block_shape) != 2:
        raise PackageError(f"block_shape {block_shape} is not a height and a width")
    return block_shape[0], block_shape[1]


def _margins(amounts: Ints) -> tuple[int, int, int, int]:
    if len(amounts) != 4 or min(amounts) < 0:
        raise PackageError(f"{amounts} are not the amounts for top, bottom, left and right")
    return amounts[0], amounts[1], amounts[2], amounts[3]
