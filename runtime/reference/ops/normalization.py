"""Normalisation. All variances are those of a population."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import Ints, mil_op

UNVERIFIED = {
    "local_response_norm of even windows": "torch's convention, one more neighbour before than after; coremltools' test does not tell",
    "local_response_norm of rank 3": "coremltools' own test values fit windows along axis -3, its definition says the channels' axis",
}


@mil_op("batch_norm")
def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Centred before it is scaled; torch's own folds the mean into the offset, which cancels where the mean is large."""
    scale = torch.rsqrt(by_channel("variance", variance, x) + epsilon)
    if gamma is not None:
        scale = scale * by_channel("gamma", gamma, x)
    result = (x - by_channel("mean", mean, x)) * scale
    return result if beta is None else result + by_channel("beta", beta, x)


@mil_op("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each example by itself."""
    if x.ndim < 3:
        raise PackageError(f"instance_norm of a tensor with {x.ndim} axes, which has no spatial axes")
    result = F.layer_norm(x, x.shape[2:], None, None, epsilon)
    if gamma is not None:
        result = result * by_channel("gamma", gamma, x)
    return result if beta is None else result + by_channel("beta", beta, x)


@mil_op("layer_norm")
def layer_norm(
    x: Tensor, axes: Ints | None = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """`gamma` and `beta` have the axes of `x` that are normalised, in the order of `x` whatever the order of `axes`."""
    axes = list(range(x.ndim)) if axes is None else axes
    if any(not -x.ndim <= axis < x.ndim for axis in axes) or len({axis % x.ndim for axis in axes}) != len(axes):
        raise PackageError(f"layer_norm over the axes {axes} of a tensor with {x.ndim} axes")
    if not axes:
        gamma, beta = (value if value is None else value.reshape(1) for value in (gamma, beta))
        return F.layer_norm(x.unsqueeze(-1), [1], gamma, beta, epsilon).squeeze(-1)
    wanted = sorted(axis % x.ndim for axis in axes)
    sizes, last = [x.shape[axis] for axis in wanted], list(range(x.ndim - len(wanted), x.ndim))
    if wanted == last:
        return F.layer_norm(x, sizes, gamma, beta, epsilon)
    return F.layer_norm(x.movedim(wanted, last), sizes, gamma, beta, epsilon).movedim(last, wanted)


@mil_op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Over the last three axes together."""
    if x.ndim < 3:
        raise PackageError(f"l2_norm of a tensor with {x.ndim} axes; it normalises three")
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@mil_op("local_response_norm")
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Over `size` neighbours along the third axis from the end; what lies beyond it counts as zeros.

    That is the channels where there are two spatial axes. With one, the definition still says channels, but Core ML's
    results in coremltools' test are of the first axis, as NeuralNetwork.proto says. Of an even window one more lies
    before than after, as in torch.
    """
    if size < 1 or x.ndim < 3:
        raise PackageError(f"local_response_norm over {size} channels of a tensor with {x.ndim} axes")
    before, after = min(size // 2, x.shape[-3]), min((size - 1) // 2, x.shape[-3])
    squares = F.pad(x.square().movedim(-3, -1), (before, after))
    sums = squares.unfold(-1, before + after + 1, 1).sum(-1).movedim(-1, -3)
    return x / (k + alpha / size * sums) ** beta


def by_channel(name: str, value: Tensor, x: Tensor) -> Tensor:
    """A parameter with one value for each channel of `x`, its second axis, shaped to broadcast along it."""
    if x.ndim < 2 or value.shape != x.shape[1:2]:
        raise PackageError(f"{name} of shape {tuple(value.shape)} does not fit the channels of {tuple(x.shape)}")
    return value.reshape(-1, *[1] * (x.ndim - 2))
