"""Independent references for resizing: grids by the definitions' own words, numpy's interpolation, exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor

import numpy as np

NEAREST: dict[str, Callable[[int, int, int], int]] = {  # the input that an output takes: its number, size in, size out
    "asymmetric": lambda i, have, size: floor(Fraction(i * have, size)),
    "half pixel": lambda i, have, size: floor((i + Fraction(1, 2)) * have / size),
}


def sampled(mode: str, have: int, size: int) -> np.ndarray:
    """Grid points by the definition: ends of an interval, and numpy's linspace between them (NeuralNetwork.proto, SamplingMode)."""
    start, end = 0.0, have - 1.0
    if mode == "ALIGN_CORNERS" and size == 1:
        start = end = (have - 1) / 2
    elif mode == "DEFAULT":
        end = have - have / size
    elif mode == "OFFSET_CORNERS":
        start = max(1, have - 1) / size / 2
        end = start + (size - 1) * max(1, have - 1) / size
    elif mode == "UNALIGN_CORNERS":
        start = have / size / 2 - 0.5
        end = start + (size - 1) * have / size
    return np.linspace(start, end, size).clip(0, have - 1)


def interpolated(x: np.ndarray, sizes: list[int], mode: str) -> np.ndarray:
    """The last axes, one after another, by numpy's own interpolation."""
    out = x.astype(np.float64)
    for axis, size in enumerate(sizes, x.ndim - len(sizes)):
        points = sampled(mode, x.shape[axis], size)
        out = np.apply_along_axis(lambda line, points=points: np.interp(points, np.arange(len(line)), line), axis, out)
    return out


def chosen(x: np.ndarray, sizes: list[int], rule: str) -> np.ndarray:
    for axis, size in enumerate(sizes, x.ndim - len(sizes)):
        x = np.take(x, [NEAREST[rule](i, x.shape[axis], size) for i in range(size)], axis)
    return x
