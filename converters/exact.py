"""Calls whose arguments coremltools' lowerings ignore or refuse, put in terms of calls that they get right.

coremltools wrote its lowerings for traced graphs, which have no keyword arguments and spell defaults out; an exported graph
has the one and not the other. Each function here takes over such a call only and returns NotImplemented for any other, and
gives PyTorch's numbers: exactly, or to one rounding where it says so. That they are needed is found by the preflight's probe
(rules arguments:ignored_keyword, arguments:other_result, refused), whose tests fail where one is not needed any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

EXACT: dict[OpOverload, Callable[..., Any]] = {}
aten: Any = torch.ops.aten


def _exact(*targets: OpOverload) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        EXACT.update(dict.fromkeys(targets, function))
        return function

    return add


@_exact(aten.add.Tensor, aten.add.Scalar)
def add(x: Tensor, y: Any, alpha: Any = 1) -> Any:
    """x + alpha * y; alpha is ignored (https://github.com/apple/coremltools/issues/2573). PyTorch may round once less."""
    return NotImplemented if alpha == 1 else torch.add(x, y * alpha)


@_exact(aten.sub.Tensor, aten.sub.Scalar)
def sub(x: Tensor, y: Any, alpha: Any = 1) -> Any:
    """x - alpha * y, as add."""
    return NotImplemented if alpha == 1 else torch.sub(x, y * alpha)


@_exact(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(x: Tensor, y: Any, alpha: Any = 1) -> Any:
    """y - alpha * x, which is refused."""
    return NotImplemented if alpha == 1 else torch.rsub(x * alpha, y)


@_exact(aten.addmm.default, aten.baddbmm.default)
def addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """beta * x + alpha * (a @ b), which is refused. Rounded once more than by PyTorch."""
    if beta == 1 and alpha == 1:
        return NotImplemented
    product = torch.matmul(a, b) * alpha
    return product if beta == 0 else x * beta + product


@_exact(aten.sum.default)
def total(x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    """The type is ignored, and truth values are summed as float32."""
    wanted = dtype or _summed(x.dtype)
    return NotImplemented if _same_kind(x.dtype, wanted) else torch.sum(x.to(wanted), dtype=wanted)


@_exact(aten.sum.dim_IntList)
def total_along(x: Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """As total, along some axes."""
    wanted = dtype or _summed(x.dtype)
    return NotImplemented if _same_kind(x.dtype, wanted) else torch.sum(x.to(wanted), dim, keepdim, dtype=wanted)


@_exact(aten.mean.default)
def mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    """The type is ignored, so that whole numbers give a whole mean."""
    return NotImplemented if dtype is None or _same_kind(x.dtype, dtype) else torch.mean(x.to(dtype))


@_exact(aten.mean.dim)
def mean_along(x: Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """As mean, along some axes."""
    return NotImplemented if dtype is None or _same_kind(x.dtype, dtype) else torch.mean(x.to(dtype), dim, keepdim)


@_exact(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(*bounds: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Any:
    """The type is ignored (https://github.com/apple/coremltools/issues/1852): whole bounds give whole numbers."""
    whole = all(isinstance(bound, (int, float)) and float(bound).is_integer() for bound in bounds)
    given = torch.int64 if all(isinstance(bound, int) for bound in bounds) else torch.float32
    if not whole or dtype is None or _same_kind(given, dtype):
        return NotImplemented
    return torch.arange(*map(int, bounds), device=device).to(dtype)


@_exact(aten.full_like.default)
def full_like(x: Tensor, value: Any, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Any:
    """The type of the result is the number's own."""
    fitting = _fitting(value, dtype or x.dtype)
    return NotImplemented if type(fitting) is type(value) else torch.full_like(x, fitting, dtype=dtype, device=device)


@_exact(aten.gelu.default)
def gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """approximate="tanh" is ignored; rounded as PyTorch's formula in single steps."""
    if approximate != "tanh":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def _of_all(best: Callable[..., Tensor]) -> Callable[..., Any]:
    def of_all(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        """Without an axis the first axis is taken."""
        if dim is not None or x.dim() < 2:
            return NotImplemented
        found = best(x.reshape(-1), 0)
        return found.reshape([1] * x.dim()) if keepdim else found

    return of_all


EXACT[aten.argmax.default] = _of_all(torch.argmax)
EXACT[aten.argmin.default] = _of_all(torch.argmin)


@_exact(aten.clamp.Tensor)
def clamp(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Any:
    """Where the bounds cross, the upper one holds; with one bound whole numbers become float32."""
    if min is not None:
        x = torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


@_exact(aten.true_divide.Tensor)
def true_divide(x: Tensor, y: Tensor) -> Any:
    """Whole numbers keep their type; aten.div does not let them."""
    return torch.div(x, y)


@_exact(aten.rms_norm.default)
def rms_norm(x: Tensor, shape: Collection[int], weight: Tensor | None = None, eps: float | None = None) -> Any:
    """Refused without a weight and an eps, and wrong with them. In the order of PyTorch's own operations."""
    axes = list(range(-len(shape), 0))
    scaled = x * torch.rsqrt(torch.mean(x * x, axes, True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    return scaled if weight is None else scaled * weight


@_exact(aten.log_softmax.int, aten._log_softmax.default)  # noqa: SLF001 - its name
def log_softmax(x: Tensor, dim: int, dtype: torch.dtype | bool | None = None) -> Any:
    """coremltools takes the logarithm of the softmax, which has no room for what is improbable. True is half precision to single."""
    x = x.to(torch.float32 if dtype is True else dtype or x.dtype)
    shifted = x - torch.amax(x, dim, keepdim=True)
    return shifted - torch.log(torch.sum(torch.exp(shifted), dim, keepdim=True))


@_exact(aten.matmul.default)
def matmul(x: Tensor, y: Tensor) -> Any:
    """Refused for vectors."""
    if x.dim() > 1 and y.dim() > 1:
        return NotImplemented
    product = torch.matmul(x.unsqueeze(0) if x.dim() == 1 else x, y.unsqueeze(1) if y.dim() == 1 else y)
    if y.dim() == 1:
        product = product.squeeze(-1)
    return product.squeeze(-1 if y.dim() == 1 else -2) if x.dim() == 1 else product


@_exact(aten.roll.default)
def roll(x: Tensor, shifts: Any, dims: Any = ()) -> Any:
    """Refused without axes: then all elements move as one row."""
    return NotImplemented if dims or x.dim() == 0 else torch.roll(x.reshape(-1), shifts, [0]).reshape(x.shape)


@_exact(aten.std.correction)
def std(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    """Without a correction coremltools takes 0, and PyTorch 1."""
    return NotImplemented if correction is not None else torch.std(x, _axes(x, dim), correction=1, keepdim=keepdim)


@_exact(aten.var.correction)
def var(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    """As std."""
    return NotImplemented if correction is not None else torch.var(x, _axes(x, dim), correction=1, keepdim=keepdim)


@_exact(aten.cosine_similarity.default)
def cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    """Refused without an axis and an eps. Each norm is kept above eps, as in PyTorch."""
    x, y = torch.broadcast_tensors(x, y)
    norms = (torch.sqrt(torch.sum(side * side, dim, keepdim=True)).clamp_min(eps) for side in (x, y))
    return torch.sum((x / next(norms)) * (y / next(norms)), dim)


def _axes(x: Tensor, dim: Any) -> list[int]:
    return list(range(x.dim())) if dim is None or dim == [] else list(dim)


def _summed(dtype: torch.dtype) -> torch.dtype:
    """Truth values and whole numbers are summed as int64."""
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


def _same_kind(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether coremltools tells two types apart: it has one of whole numbers, and truth values."""
    return _kind(one) == _kind(other)


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return str(dtype) if dtype.is_floating_point or dtype.is_complex else "int"


def _fitting(value: Any, dtype: torch.dtype) -> Any:
    """The number as one of this type."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or dtype.is_complex or dtype == torch.bool:
        return value
    if dtype.is_floating_point:
        return float(value)
    return int(value) if math.isfinite(value) else value
