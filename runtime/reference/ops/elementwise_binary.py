"""Operations on two tensors value by value, broadcast as numpy does.

The definitions say little about edges; where they are silent, coremltools' value inference (numpy) decides: integers
wrap around, an integer divided by zero gives 0, and NaN wins in maximum and minimum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import mil_op

UNVERIFIED = {
    "mod of operands of different sign": "the definition gives the divisor's sign; one public report has Core ML give the dividend's",
    "real_div, floor_div and mod of integers by zero": "not documented; 0, as coremltools' value inference gives",
}


@mil_op("add", in_half=True)
def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


@mil_op("sub", in_half=True)
def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


@mil_op("mul", in_half=True)
def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


@mil_op("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """The definition gives a quotient of integers their type, so that its fraction is dropped."""
    return x / y if _any_floats(x, y) else _divided(x, y, "trunc")


@mil_op("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """Floats as Python's `//`, which is not always floor(x / y): the quotient is rounded once."""
    return torch.floor_divide(x, y) if _any_floats(x, y) else _divided(x, y, "floor")


@mil_op("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """The sign is the divisor's, as of `%` in Python, which the definition names.

    One public report (kasper0406/stablehlo-coreml, pull request 70) has seen Core ML give the dividend's sign, as C does.
    """
    return torch.remainder(x, y if _any_floats(x, y) else y.masked_fill(_traps(y), 1))


@mil_op("pow")
def pow(x: Tensor, y: Tensor) -> Tensor:
    """Of integers with a negative exponent the fraction is dropped; 0 to a negative power is 0."""
    return torch.pow(x, y)


@mil_op("maximum", in_half=True)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


@mil_op("minimum", in_half=True)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


@mil_op("equal")
def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


@mil_op("not_equal")
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return x != y


@mil_op("greater")
def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


@mil_op("greater_equal")
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return x >= y


@mil_op("less")
def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


@mil_op("less_equal")
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return x <= y


@mil_op("logical_and")
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(x, y)


@mil_op("logical_or")
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y)


@mil_op("logical_xor")
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_xor(x, y)


def _any_floats(x: Tensor, y: Tensor) -> bool:
    return x.is_floating_point() or y.is_floating_point()


def _traps(y: Tensor) -> Tensor:
    """Integer divisors that torch must not see: 0, and -1, by which the smallest integer cannot be divided.

    torch hands both to the processor, and there the second ends the process on x86.
    """
    return (y == 0) | (y == -1)


def _divided(x: Tensor, y: Tensor, rounding: str) -> Tensor:
    quotient = torch.div(x, y.masked_fill(_traps(y), 1), rounding_mode=rounding)
    return torch.where(y == 0, 0, torch.where(y == -1, -x, quotient))
