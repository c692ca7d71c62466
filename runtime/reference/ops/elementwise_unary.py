"""Operations on one tensor value by value. Where definitions are silent, coremltools' value inference decides."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ....errors import PackageError
from ..program import DTYPES, FLOATS
from ..registry import mil_op

_CAST_TARGETS = ("int8", "uint8", "int16", "uint16", "int32", "fp16", "fp32", "bool")
UNVERIFIED = {
    "cast of floats beyond an integer type": "not documented; they saturate, and NaN becomes 0",
    "cast of integers beyond a narrower integer type": "not documented; they wrap",
}


@mil_op("abs")
def abs(x: Tensor) -> Tensor:
    return torch.abs(x)


@mil_op("acos")
def acos(x: Tensor) -> Tensor:
    return torch.acos(x)


@mil_op("asin")
def asin(x: Tensor) -> Tensor:
    return torch.asin(x)


@mil_op("atan")
def atan(x: Tensor) -> Tensor:
    return torch.atan(x)


@mil_op("atanh")
def atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


@mil_op("ceil")
def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


@mil_op("clip", until="iOS16")
def clip_any(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(max(x, alpha), beta): all values become beta where alpha is the greater."""
    return torch.clamp(x, alpha, beta)


@mil_op("clip", since="iOS17")
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    if alpha >= beta:
        raise PackageError(f"alpha must be less than beta, and they are {alpha} and {beta}")
    return torch.clamp(x, alpha, beta)


@mil_op("cos")
def cos(x: Tensor) -> Tensor:
    return torch.cos(x)


@mil_op("cosh")
def cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


@mil_op("erf")
def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


@mil_op("exp")
def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


@mil_op("exp2")
def exp2(x: Tensor) -> Tensor:
    """Integers give integers: 0 for negative ones, and wrapped around from 31 on."""
    return torch.exp2(x) if x.is_floating_point() else torch.pow(torch.full_like(x, 2), x)


@mil_op("floor")
def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


@mil_op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return torch.reciprocal(x + epsilon)


@mil_op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


@mil_op("logical_not")
def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@mil_op("round")
def round(x: Tensor) -> Tensor:
    """Halves go to the even neighbour."""
    return torch.round(x)


@mil_op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@mil_op("sign")
def sign(x: Tensor) -> Tensor:
    """NaN stays NaN, which torch would make 0."""
    return torch.where(x == x, torch.sign(x), x)


@mil_op("sin")
def sin(x: Tensor) -> Tensor:
    return torch.sin(x)


@mil_op("sinh")
def sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


@mil_op("sqrt")
def sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


@mil_op("square")
def square(x: Tensor) -> Tensor:
    return x * x


@mil_op("tan")
def tan(x: Tensor) -> Tensor:
    return torch.tan(x)


@mil_op("tanh")
def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@mil_op("threshold")
def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """`alpha` is a tensor so that integers are compared as integers."""
    return torch.maximum(x, alpha)


@mil_op("cast", moves=True)
def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats lose their fraction in integers; integers wrap around in narrower ones, as in coremltools' value inference.

    Floats beyond an integer's range become its limit and NaN becomes 0, as Arm processors convert: the definition is
    silent, and what numpy gives there depends on the machine. A floating target says only that, because how precisely
    it is stored is the policy's choice.
    """
    if dtype not in _CAST_TARGETS:
        raise PackageError(f"cast knows no type {dtype!r}; it knows {', '.join(_CAST_TARGETS)}")
    if dtype in FLOATS:
        return x if x.is_floating_point() else x.to(torch.float64)
    if dtype == "bool":
        return x != 0
    storage, limits = DTYPES[dtype][0], np.iinfo(dtype)
    if x.is_floating_point():  # float64 has all limits exactly
        return torch.nan_to_num(x.to(torch.float64), nan=0.0).clamp(limits.min, limits.max).to(storage)
    return x.to(storage) if limits.min < 0 else x.to(storage) & limits.max  # uint16 is held in a wider type
