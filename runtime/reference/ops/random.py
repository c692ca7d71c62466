"""Operations that draw random numbers.

A seed of -1 draws from the model's generator, any other from a new one with that seed. Draws are made in double
precision and rounded by the executor, so that every numerics policy sees the same ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ....errors import PackageError
from ..program import DTYPES, TensorType
from ..registry import Declared, Generator, Ints, mil_op


@mil_op("random_bernoulli")
def random_bernoulli(shape: Ints, generator: Generator, prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with the probability `prob`, else 0."""
    if not 0 <= prob <= 1:
        raise PackageError(f"{prob} is no probability")
    return (_uniform(shape, _source(generator, seed)) < prob).double()


@mil_op("random_categorical")
def random_categorical(x: Tensor, generator: Generator, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """For each row of the last axis, `size` indices drawn with replacement, as floats.

    Rows of `probs` need not add up to 1: their logarithms are used as logits.
    """
    if mode not in ("logits", "probs"):
        raise PackageError(f"random_categorical has no mode {mode!r}")
    if size < 1 or x.ndim < 1:
        raise PackageError(f"{size} draws from a tensor of {x.ndim} axes are asked for")
    weights = x.double().softmax(-1) if mode == "logits" else x.double()
    weights = weights.reshape(-1, x.shape[-1])
    drawn = torch.empty((len(weights), size), dtype=torch.int64)
    torch.multinomial(weights, size, replacement=True, generator=_source(generator, seed), out=drawn)
    return drawn.reshape(*x.shape[:-1], size).to(x.dtype)


@mil_op("random_normal")
def random_normal(shape: Ints, generator: Generator, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    if not stddev >= 0:
        raise PackageError(f"a standard deviation of {stddev} was given")
    return _empty(shape).normal_(generator=_source(generator, seed)).mul_(stddev).add_(mean)


@mil_op("random_uniform")
def random_uniform(shape: Ints, generator: Generator, declared: Declared, low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    """At least `low`, less than `high`; `low` where they are equal."""
    if not -math.inf < low <= high < math.inf:
        raise PackageError(f"there is nothing to draw from {low} to {high}")
    drawn = _uniform(shape, _source(generator, seed)).mul_(high - low).add_(low)
    return drawn.clamp_(low, max(low, _below(high, declared)))


def _source(generator: torch.Generator, seed: int) -> torch.Generator:
    return generator if seed == -1 else torch.Generator().manual_seed(seed)


def _uniform(shape: Ints, generator: torch.Generator) -> Tensor:
    return _empty(shape).uniform_(generator=generator)


def _empty(shape: Ints) -> Tensor:
    """To be filled in place: the memory limit cannot see the size of what torch draws by itself."""
    if any(size < 1 for size in shape):
        raise PackageError(f"a shape of {shape} is asked for; its sizes must be positive")
    return torch.empty(shape, dtype=torch.float64)


def _below(limit: float, declared: Declared) -> float:
    """The greatest number of the declared type under a limit: rounding to that type must not reach it."""
    (kind,) = declared
    number = DTYPES[kind.dtype][1] if isinstance(kind, TensorType) and kind.dtype in DTYPES else np.float32
    return float(np.nextafter(number(limit), number(-np.inf)))
