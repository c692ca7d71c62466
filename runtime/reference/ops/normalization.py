"""Normalisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import Ints, mil_op


@mil_op("layer_norm")
def layer_norm(
    x: Tensor, axes: Ints | None = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    wanted = sorted(axis % x.ndim for axis in (axes if axes is not None else range(x.ndim)))
    if wanted != list(range(x.ndim - len(wanted), x.ndim)):
        raise PackageError(f"layer_norm over the axes {wanted} of a tensor with {x.ndim} axes is not supported yet")
    return F.layer_norm(x, [x.shape[axis] for axis in wanted], gamma, beta, epsilon)
