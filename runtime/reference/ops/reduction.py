"""Operations that reduce axes of a tensor. Results have the type of `x`, except for positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....errors import PackageError
from ..registry import Ints, mil_op
from .elementwise_unary import cast

Reduce = Callable[[Tensor, Ints, bool], Tensor]
_POSITION_TYPES = ("int32", "uint16")


@mil_op("reduce_argmax", until="iOS16")
def reduce_argmax_int32(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    """The first one of equals, where the definition leaves the choice open; NaN counts as the greatest."""
    return torch.argmax(x, axis, keep_dims).to(torch.int32)


@mil_op("reduce_argmax", since="iOS17")
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return _positions(torch.argmax(x, axis, keep_dims), output_dtype)


@mil_op("reduce_argmin", until="iOS16")
def reduce_argmin_int32(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    """The first one of equals; NaN counts as the least."""
    return torch.argmin(x, axis, keep_dims).to(torch.int32)


@mil_op("reduce_argmin", since="iOS17")
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return _positions(torch.argmin(x, axis, keep_dims), output_dtype)


@mil_op("reduce_l1_norm")
def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _reduced(torch.abs(x), axes, keep_dims, _sum)


@mil_op("reduce_l2_norm")
def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _of_reals(x, lambda reals: torch.sqrt(_reduced(reals * reals, axes, keep_dims, _sum)))


@mil_op("reduce_log_sum")
def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _of_reals(x, lambda reals: torch.log(_reduced(reals, axes, keep_dims, _sum)))


@mil_op("reduce_log_sum_exp")
def reduce_log_sum_exp(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _of_reals(x, lambda reals: _reduced(reals, axes, keep_dims, torch.logsumexp))


@mil_op("reduce_max")
def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _reduced(x, axes, keep_dims, torch.amax)


@mil_op("reduce_mean")
def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _of_reals(x, lambda reals: _reduced(reals, axes, keep_dims, torch.mean))


@mil_op("reduce_min")
def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _reduced(x, axes, keep_dims, torch.amin)


@mil_op("reduce_prod")
def reduce_prod(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _reduced(x, axes, keep_dims, _product)


@mil_op("reduce_sum")
def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _reduced(x, axes, keep_dims, _sum)


@mil_op("reduce_sum_square")
def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return _reduced(x * x, axes, keep_dims, _sum)


def _reduced(x: Tensor, axes: Ints | None, keep_dims: bool, reduce: Reduce) -> Tensor:
    """Without `axes` over all; an empty list reduces none, so that every value is reduced by itself (torch would take all)."""
    where = list(range(x.ndim)) if axes is None else [axis + x.ndim if axis < 0 else axis for axis in axes]
    if len(set(where)) < len(where) or any(not 0 <= axis < x.ndim for axis in where):
        raise PackageError(f"the axes {axes} are not different axes of a tensor that has {x.ndim}")
    return reduce(x, where, keep_dims) if where else reduce(x.unsqueeze(-1), [-1], False)


def _of_reals(x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Integers are computed in float64 and lose their fraction only at the end, as in coremltools' value inference."""
    return compute(x) if x.is_floating_point() else cast(compute(x.to(torch.float64)), "int32")


def _sum(x: Tensor, axes: Ints, keep_dims: bool) -> Tensor:
    return torch.sum(x, axes, keep_dims, dtype=x.dtype)


def _product(x: Tensor, axes: Ints, keep_dims: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep_dims, dtype=x.dtype)
    return x


def _positions(found: Tensor, dtype: str) -> Tensor:
    if dtype.lower() not in _POSITION_TYPES:
        raise PackageError(f"output_dtype is {dtype!r}; it can be {' or '.join(_POSITION_TYPES)}")
    return cast(found, dtype.lower())
