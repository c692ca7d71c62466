"""Operations that move values without computing: shapes, slices, padding, joining."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import Bools, Ints, Tensors, mil_op

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}


@mil_op("reshape", moves=True)
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """A -1 takes what is left; a 0 keeps the axis it stands for, counted from the right (iOS 17)."""
    shift = x.ndim - len(shape)
    return x.reshape([x.shape[i + shift] if size == 0 else size for i, size in enumerate(shape)])


@mil_op("identity", moves=True)
def identity(x: Tensor) -> Tensor:
    return x


@mil_op("transpose", moves=True)
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute([axis % x.ndim for axis in perm])


@mil_op("expand_dims", moves=True)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@mil_op("tile", moves=True)
def tile(x: Tensor, reps: Ints) -> Tensor:
    return x.repeat(reps)


@mil_op("reverse", moves=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return torch.flip(x, axes if axes is not None else list(range(x.ndim)))


@mil_op("concat", moves=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    if not interleave:
        return torch.cat(values, dim=axis)
    axis %= values[0].ndim
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@mil_op("pad", moves=True)
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` lists before and after for the last axes, outermost first; torch wants the innermost first."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    while pairs and pairs[0] == (0, 0):
        pairs.pop(0)
    if not pairs:
        return x
    amounts = [amount for pair in reversed(pairs) for amount in pair]
    if mode == "constant":
        return F.pad(x, amounts, value=constant_val)
    return F.pad(x.reshape(1, -1, *x.shape[-len(pairs) :]), amounts, mode=_PAD_MODES[mode]).reshape(
        *x.shape[: -len(pairs)], *[x.shape[-len(pairs) + i] + sum(pair) for i, pair in enumerate(pairs)]
    )


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
    """Per axis from `begin` to `end`; a mask opens that side, `squeeze_mask` takes one index and drops the axis."""
    rank = x.ndim
    begins, ends, squeezed = begin_mask or [False] * rank, end_mask or [False] * rank, squeeze_mask or [False] * rank
    index: list[slice | int] = []
    reversed_axes = []
    for axis in range(rank):
        if squeezed[axis]:
            index.append(begin[axis])
            continue
        step = stride[axis] if stride else 1
        chosen = range(*slice(None if begins[axis] else begin[axis], None if ends[axis] else end[axis], step).indices(x.shape[axis]))
        if step > 0:
            index.append(slice(chosen.start, max(chosen.start, chosen.stop), step))
        else:  # torch has no negative steps: take the same indices upwards, then flip
            index.append(slice(chosen[-1], chosen[0] + 1, -step) if len(chosen) else slice(0, 0))
            reversed_axes.append(axis - sum(squeezed[:axis]))
    out = x[tuple(index)]
    return torch.flip(out, reversed_axes) if reversed_axes else out
