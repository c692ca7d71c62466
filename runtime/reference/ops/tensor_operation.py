"""Operations on whole tensors: joining, padding, filling, sorting, counting, choosing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..program import DTYPES, TensorType
from ..registry import Declared, Ints, Tensors, Value, mil_op


@mil_op("identity", moves=True)
def identity(x: Value) -> Value:
    """Of a tensor, a list or a dict."""
    return x


@mil_op("tile", moves=True)
def tile(x: Tensor, reps: Ints) -> Tensor:
    return x.repeat(reps)


@mil_op("concat", moves=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Scalars are joined as if each had one axis."""
    if values[0].ndim == 0:
        return torch.stack(values)
    if not interleave:
        return torch.cat(values, dim=axis)
    axis = axis if axis >= 0 else axis + values[0].ndim
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@mil_op("stack", moves=True)
def stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, dim=axis)


@mil_op("split", moves=True)
def split(x: Tensor, axis: int, declared: Declared, num_splits: int | None = None, split_sizes: Ints | None = None) -> tuple[Tensor, ...]:
    """Into parts of `split_sizes`, or into `num_splits` equal ones."""
    if split_sizes is None:
        if not num_splits or num_splits != len(declared) or x.shape[axis] % num_splits:
            raise PackageError(f"{x.shape[axis]} values cannot be split into {num_splits} equal parts for {len(declared)} results")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split(x, split_sizes, dim=axis)


@mil_op("pad", moves=True)
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` lists before and after for the last axes, outermost first."""
    if len(pad) % 2 or len(pad) > 2 * x.ndim or min(pad, default=0) < 0:
        raise PackageError(f"pad {pad} does not fit {x.ndim} axes")
    if mode == "constant":
        innermost_first = [amount for start in range(len(pad) - 2, -1, -2) for amount in pad[start : start + 2]]
        return F.pad(x, innermost_first, value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise PackageError(f"there is no pad mode {mode!r}; known are constant, reflect, replicate")
    for axis, start in enumerate(range(0, len(pad), 2), x.ndim - len(pad) // 2):
        before, after, size = pad[start], pad[start + 1], x.shape[axis]
        if not before and not after:
            continue
        if not size or (mode == "reflect" and max(before, after) >= size):
            raise PackageError(f"{mode} cannot pad {size} values by {before} and {after}")
        source = torch.arange(-before, size + after)
        if mode == "reflect":
            source = size - 1 - (size - 1 - source.abs()).abs()
        x = x.index_select(axis, source.clamp(0, size - 1))
    return x


@mil_op("fill", moves=True)
def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    return torch.zeros(shape) if value is None else torch.full(shape, value.item(), dtype=value.dtype)


@mil_op("fill_like", since="iOS16", moves=True)
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """The result has the type of `value`, not that of `ref_tensor`."""
    return fill(list(ref_tensor.shape), value)


@mil_op("range_1d")
def range_1d(start: float, end: float, step: float, declared: Declared) -> Tensor:
    """start, start + step, ... before `end`.

    The count is that of coremltools' type inference (defs/iOS15/tensor_operation.py), computed in the declared type:
    in fp32, 0 to 7 by 0.7 are 10 values, though the exact quotient of the rounded numbers is above 10.
    """
    if step == 0:
        raise PackageError("the step is 0")
    kind = declared[0]
    number: Any = DTYPES[kind.dtype][1] if isinstance(kind, TensorType) else np.float32
    if issubclass(number, np.integer):
        count = -((int(start) - int(end)) // int(step))
        return int(start) + int(step) * torch.arange(max(count, 0))
    with np.errstate(all="ignore"):
        count = math.ceil((number(end) - number(start)) / number(step))
    return start + step * torch.arange(max(count, 0), dtype=torch.float64)


@mil_op("shape", moves=True)
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@mil_op("flatten2d", moves=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@mil_op("band_part", moves=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero outside of `lower` diagonals below the main one and `upper` above it; all of a side where negative."""
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    kept = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        kept &= below <= lower
    if upper >= 0:
        kept &= -below <= upper
    return x.masked_fill(~kept, 0)


@mil_op("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """`exclusive` leaves each value out of its own sum; `reverse` sums from the end."""
    if reverse:
        x = x.flip(axis)
    sums = x.cumsum(axis, dtype=x.dtype)
    if exclusive and x.shape[axis]:
        sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    return sums.flip(axis) if reverse else sums


@mil_op("non_zero", moves=True)
def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x)


@mil_op("one_hot", moves=True)
def one_hot(
    indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Tensor | None = None, off_value: Tensor | None = None
) -> Tensor:
    """The new axis is `axis` of the result. An index outside of it is nowhere, as in TensorFlow; Core ML documents nothing."""
    rank = indices.ndim + 1
    if not -rank <= axis < rank:
        raise PackageError(f"axis {axis} is out of bounds for {rank} axes")
    places = torch.arange(one_hot_vector_size).reshape([-1 if place == axis % rank else 1 for place in range(rank)])
    on, off = (torch.tensor(default, dtype=torch.int32) if value is None else value for value, default in ((on_value, 1), (off_value, 0)))
    return torch.where(indices.unsqueeze(axis) == places, on.reshape(()), off.reshape(()))


@mil_op("argsort", moves=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Equal values keep their order, which Core ML does not promise."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@mil_op("topk", until="iOS15", moves=True)
def topk_ios15(x: Tensor, k: int = 1, axis: int = -1, ascending: bool = False) -> tuple[Tensor, Tensor]:
    return _extremes(x, k, axis, ascending)


@mil_op("topk", since="iOS16", until="iOS16", moves=True)
def topk_ios16(
    x: Tensor, k: int = 1, axis: int = -1, ascending: bool = False, sort: bool = True, return_indices: bool = True
) -> tuple[Tensor, ...]:
    """Without `sort` any order will do, so it is the same."""
    values, indices = _extremes(x, k, axis, ascending)
    return (values, indices) if return_indices else (values,)


@mil_op("topk", since="iOS17", moves=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """A `k` of -1 takes all values."""
    if output_indices_dtype not in ("int32", "uint16"):
        raise PackageError(f"indices cannot be {output_indices_dtype!r}; known are int32, uint16")
    values, indices = _extremes(x, x.shape[axis] if k == -1 else k, axis, ascending)
    return (values, indices) if return_indices else (values,)


def _extremes(x: Tensor, k: int, axis: int, ascending: bool) -> tuple[Tensor, Tensor]:
    """The first `k` of the sorted values and where they were; of equal values the first comes first, as in argsort."""
    if not 0 <= k <= x.shape[axis]:
        raise PackageError(f"there are no {k} of {x.shape[axis]} values")
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@mil_op("non_maximum_suppression", until="iOS16")
def non_maximum_suppression_ios15(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int, per_class_suppression: bool = False
) -> tuple[Tensor, ...]:
    return _suppressed(boxes, scores, iou_threshold, score_threshold, max_boxes, per_class_suppression)


@mil_op("non_maximum_suppression", since="iOS17")
def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_boxes: int, per_class_suppression: bool = False
) -> tuple[Tensor, ...]:
    """Boxes are on the last axis, no score is too low, and the number of boxes is not told."""
    found = _suppressed(boxes.mT, scores.mT, iou_threshold, -math.inf, max_boxes, per_class_suppression)
    return found[0].mT, found[1].mT, found[2]


def _suppressed(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int, per_class: bool
) -> tuple[Tensor, ...]:
    """Boxes, scores, indices and number of what is selected; the rest is 0, its indices are -1.

    A box counts with its highest score, and has the class of that. Where no box reaches `score_threshold` the best one
    is selected nevertheless: so does Core ML (coremltools issue 1654, and the reference in coremltools' own tests,
    which has the -1 too).
    """
    batch, classes = scores.shape[0], scores.shape[2]
    chosen_boxes, chosen_scores = boxes.new_zeros(batch, max_boxes, 4), scores.new_zeros(batch, max_boxes, classes)
    indices = torch.full((batch, max_boxes), -1, dtype=torch.int32)
    counts = torch.zeros(batch, dtype=torch.int32)
    for index in range(batch if boxes.shape[1] else 0):
        best, group = scores[index].max(dim=-1)
        kept = _kept(boxes[index], best, group if per_class else torch.zeros_like(group), iou_threshold, score_threshold, max_boxes)
        number = len(kept)
        chosen_boxes[index, :number], chosen_scores[index, :number] = boxes[index, kept], scores[index, kept]
        indices[index, :number], counts[index] = kept.to(torch.int32), number
    return chosen_boxes, chosen_scores, indices, counts


def _kept(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    """Indices of at most `limit` boxes, best first, none overlapping a better one of its group too much."""
    order = torch.sort(scores, descending=True, stable=True).indices
    waiting = order[scores[order] >= score_threshold]
    if not len(waiting):
        return order[:1][:limit]
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    area = boxes[:, 2] * boxes[:, 3]
    kept: list[int] = []
    while len(waiting) and len(kept) < limit:
        box, waiting = waiting[0], waiting[1:]
        kept.append(int(box))
        common = (torch.minimum(high[box], high[waiting]) - torch.maximum(low[box], low[waiting])).clamp(min=0).prod(-1)
        overlap = common / (area[box] + area[waiting] - common)  # NaN where both are empty, which is not too much
        waiting = waiting[~((overlap > iou_threshold) & (groups[waiting] == groups[box]))]
    return torch.tensor(kept, dtype=torch.int64)


@mil_op("select", moves=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)
