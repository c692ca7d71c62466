"""Operations that read or write a tensor at computed places.

Before iOS 17 an index may be negative, counted from the end, and one outside of the axis is an error. Since iOS 17 a
negative index is outside too; `validate_indices` says whether an index outside is an error or its effect undefined but
safe (coremltools defs/iOS17/scatter_gather.py). Here an undefined value is made visible (NaN, or the smallest integer
of its type), and an undefined update is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ....errors import PackageError
from ..registry import mil_op

_ACCUMULATIONS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


@mil_op("gather", until="iOS15", moves=True)
def gather_ios15(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    return _gather(x, indices, axis, 0, None)


@mil_op("gather", since="iOS16", until="iOS16", moves=True)
def gather_ios16(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0) -> Tensor:
    return _gather(x, indices, axis, batch_dims, None)


@mil_op("gather", since="iOS17", moves=True)
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    return _gather(x, indices, axis, batch_dims, validate_indices)


@mil_op("gather_along_axis", until="iOS16", moves=True)
def gather_along_axis_ios15(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    return _gather_along_axis(x, indices, axis, None)


@mil_op("gather_along_axis", since="iOS17", moves=True)
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return _gather_along_axis(x, indices, axis, validate_indices)


@mil_op("gather_nd", until="iOS15", moves=True)
def gather_nd_ios15(x: Tensor, indices: Tensor) -> Tensor:
    return _gather_nd(x, indices, 0, None)


@mil_op("gather_nd", since="iOS16", until="iOS16", moves=True)
def gather_nd_ios16(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    return _gather_nd(x, indices, batch_dims, None)


@mil_op("gather_nd", since="iOS17", moves=True)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    return _gather_nd(x, indices, batch_dims, validate_indices)


@mil_op("scatter", until="iOS16")
def scatter_ios15(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    return _scattered(data, _gather(_places(data), indices, axis, 0, None), updates, mode)


@mil_op("scatter", since="iOS17")
def scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False) -> Tensor:
    return _scattered(data, _gather(_places(data), indices, axis, 0, validate_indices), updates, mode)


@mil_op("scatter_along_axis", until="iOS16")
def scatter_along_axis_ios15(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    return _scattered(data, _gather_along_axis(_places(data), indices, axis, None), updates, mode)


@mil_op("scatter_along_axis", since="iOS17")
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    return _scattered(data, _gather_along_axis(_places(data), indices, axis, validate_indices), updates, mode)


@mil_op("scatter_nd", until="iOS16")
def scatter_nd_ios15(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add") -> Tensor:
    return _scattered(data, _gather_nd(_places(data), indices, 0, None), updates, mode)


@mil_op("scatter_nd", since="iOS17")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False) -> Tensor:
    return _scattered(data, _gather_nd(_places(data), indices, 0, validate_indices), updates, mode)


def _gather(x: Tensor, indices: Tensor, axis: int, batch_dims: int, validate: bool | None) -> Tensor:
    """The first `batch_dims` axes of both are walked together; the others of `indices` take the place of `axis`."""
    axis = _positive(axis, x.ndim)
    if not 0 <= batch_dims <= min(axis, indices.ndim) or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise PackageError(f"shapes {tuple(x.shape)} and {tuple(indices.shape)} with axis {axis} do not share {batch_dims} batch axes")
    chosen, outside = _located(indices, x.shape[axis], validate)
    batch, before, new, after = x.shape[:batch_dims], x.shape[batch_dims:axis], indices.shape[batch_dims:], x.shape[axis + 1 :]
    rows = x.movedim(axis, batch_dims).reshape(math.prod(batch), x.shape[axis], *before, *after)
    found = _taken(rows, chosen, outside).reshape((*batch, *new, *before, *after))
    first, last = batch_dims + len(new), batch_dims + len(new) + len(before)
    return found.permute([*range(batch_dims), *range(first, last), *range(batch_dims, first), *range(last, found.ndim)])


def _gather_along_axis(x: Tensor, indices: Tensor, axis: int, validate: bool | None) -> Tensor:
    axis = _positive(axis, x.ndim)
    others = [shape[:axis] + shape[axis + 1 :] for shape in (x.shape, indices.shape)]
    if x.ndim != indices.ndim or others[0] != others[1]:
        raise PackageError(f"shapes {tuple(x.shape)} and {tuple(indices.shape)} differ beside axis {axis}")
    chosen, outside = _located(indices, x.shape[axis], validate)
    found = x.gather(axis, chosen)
    return found if outside is None else found.masked_fill(outside, _undefined(x.dtype))


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int, validate: bool | None) -> Tensor:
    """The last axis of `indices` lists places on the axes of `x` behind the `batch_dims` that both walk together."""
    depth = indices.shape[-1]
    end = batch_dims + depth
    if not 0 <= batch_dims < indices.ndim or end > x.ndim or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise PackageError(f"indices of shape {tuple(indices.shape)} and {batch_dims} batch axes do not fit {tuple(x.shape)}")
    sizes = x.shape[batch_dims:end]
    chosen, outside = _located(indices, sizes, validate)
    steps = torch.tensor([math.prod(sizes[place + 1 :]) for place in range(depth)], dtype=torch.int64)
    rows = x.reshape(math.prod(x.shape[:batch_dims]), math.prod(sizes), *x.shape[end:])
    found = _taken(rows, (chosen * steps).sum(-1), None if outside is None else outside.any(-1))
    return found.reshape(indices.shape[:-1] + x.shape[end:])


def _positive(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise PackageError(f"axis {axis} is out of bounds for {rank} axes")
    return axis % rank


def _located(indices: Tensor, sizes: int | Sequence[int], validate: bool | None) -> tuple[Tensor, Tensor | None]:
    """Indices counted from the start, with 0 for those outside, and where these are; None if nowhere.

    `sizes`: one for all indices, or one for each place on their last axis. `validate` is None for the rule before iOS 17.
    """
    indices, limits = indices.to(torch.int64), torch.tensor(sizes, dtype=torch.int64)
    lowest = -limits if validate is None else torch.zeros_like(limits)
    outside = (indices < lowest) | (indices >= limits)
    if bool(outside.any()):
        if validate is not False:
            ends = zip(lowest.reshape(-1).tolist(), limits.reshape(-1).tolist(), strict=True)
            allowed = " x ".join(f"[{low}, {size})" for low, size in ends)
            raise PackageError(f"the index {int(indices[outside][0])} is out of bounds; allowed are {allowed}")
        return indices.masked_fill(outside, 0), outside
    return torch.where(indices < 0, indices + limits, indices), None


def _taken(rows: Tensor, chosen: Tensor, outside: Tensor | None) -> Tensor:
    """`rows` (batch, size, ...) at `chosen`, whose values are split evenly over the batch: (batch, chosen, ...)."""
    batch = rows.shape[0]
    each = chosen.numel() // batch if batch else 0
    found = rows[torch.arange(batch)[:, None], chosen.reshape(batch, each)]
    if outside is None:
        return found
    return found.masked_fill(outside.reshape(batch, each, *[1] * (rows.ndim - 2)), _undefined(rows.dtype))


def _undefined(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return False
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).min


def _places(data: Tensor) -> Tensor:
    """The number of each value in order: what is gathered from it says where updates go. Undefined places are negative."""
    return torch.arange(data.numel()).reshape(data.shape)


def _scattered(data: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Updates are applied one after the other, in order: duplicates accumulate, and of several `update`s the last stays.

    The order is that of ScatterLayerParams in Core ML's NeuralNetwork.proto. numpy's `ufunc.at` and its assignment
    promise it, torch's scatter functions do not. Integer division drops the remainder.
    """
    if mode != "update" and mode not in _ACCUMULATIONS:
        raise PackageError(f"there is no scatter mode {mode!r}; known are update, {', '.join(_ACCUMULATIONS)}")
    if updates.shape != places.shape:
        raise PackageError(f"updates have the shape {tuple(updates.shape)} where {tuple(places.shape)} is expected")
    # In float64 the quotients of int32 values are exact where they are whole, and never rounded up to a whole number.
    fractions = mode == "div" and not data.is_floating_point()
    flat = data.reshape(-1).to(torch.float64 if fractions else data.dtype, copy=True)
    inside = places >= 0
    where, values = places[inside].numpy(), updates.to(flat.dtype)[inside].numpy()
    with np.errstate(all="ignore"):
        if mode == "update":
            flat.numpy()[where] = values
        else:
            _ACCUMULATIONS[mode].at(flat.numpy(), where, values)
    return flat.reshape(data.shape).to(data.dtype)
