"""Operations put in terms of others before anything is converted: one's own lowerings, and rewrites chosen by name.

A lowering is an ordinary function of PyTorch with the operation's own signature; it is traced into the exported graph, so
what it is made of is preflighted, partitioned and proved like the rest. It wins over the fallback:

    @register_lowering("aten.lgamma.default")
    def stirling(x):  # for x > 8
        return (x - 0.5) * x.log() - x + 0.5 * math.log(2 * math.pi) + 1 / (12 * x)

A lowering that returns NotImplemented leaves that call as it was. Constants come from factories (`torch.arange`,
`torch.full`): a graph cannot hold `torch.tensor([...])` made while it is traced.

REWRITES are lowerings of operations that coremltools accepts and Core ML is known to compute wrongly or slowly (see
docs/preflight.md). They are never applied unasked: `rewrites=("remainder",)`, or `--rewrite remainder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from ..errors import UsageError

Lowering = Callable[..., Any]
BLOCK = 64  # elements of one triangular product; sums longer than its square take a third step
LARGEST_MATRIX = 1 << 22  # elements of a constant that resamples, 8 MiB in half precision

_registered: dict[str, Lowering] = {}


@dataclass(frozen=True)
class Rewrite:
    """One way to compute some operations by others. `note` says in one sentence what is computed and where it differs."""

    name: str
    operations: tuple[str, ...]
    function: Lowering
    note: str


REWRITES: dict[str, Rewrite] = {}


def register_lowering(operation: str, *, replace: bool = False) -> Callable[[Lowering], Lowering]:
    """Decorator: `function` computes `operation` ("aten.sinc.default") from now on, in every conversion of this process.

    Raises UsageError for an operation that PyTorch does not have, and for one that is registered unless `replace`.
    """
    overload(operation)

    def register(function: Lowering) -> Lowering:
        if operation in _registered and not replace:
            raise UsageError(f"{operation} has a lowering already, {_name(_registered[operation])}: pass replace=True to take its place")
        _registered[operation] = function
        return function

    return register


def remove_lowering(operation: str) -> None:
    """Takes a registered lowering away again. Raises UsageError where there is none."""
    if _registered.pop(operation, None) is None:
        raise UsageError(f"{operation} has no registered lowering")


def registered_lowerings() -> dict[str, Lowering]:
    """A copy: operation -> function."""
    return dict(_registered)


def lowerings(rewrites: Collection[str] = ()) -> dict[OpOverload, Lowering]:
    """What `run_decompositions` takes: the rewrites of these names, and every registered lowering over them.

    Raises UsageError for a rewrite that does not exist.
    """
    table: dict[OpOverload, Lowering] = {}
    for name in rewrites:
        if name not in REWRITES:
            raise UsageError(f"there is no rewrite {name!r}: choose from {', '.join(sorted(REWRITES))}")
        table.update({overload(operation): REWRITES[name].function for operation in REWRITES[name].operations})
    table.update({overload(operation): function for operation, function in _registered.items()})
    return table


def overload(operation: str) -> OpOverload:
    """The operation of a name like "aten.sinc.default". Raises UsageError where PyTorch has none."""
    parts = operation.split(".")
    found: Any = None
    if len(parts) == 3:
        found = getattr(getattr(getattr(torch.ops, parts[0]), parts[1], None), parts[2], None)
    if not isinstance(found, OpOverload):
        raise UsageError(f"PyTorch has no operation {operation!r}: write namespace.name.overload, as in aten.sinc.default")
    return found


def _name(function: Lowering) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def _rewrite(name: str, *operations: str, note: str) -> Callable[[Lowering], Lowering]:
    def add(function: Lowering) -> Lowering:
        if name in REWRITES:
            raise ValueError(f"two rewrites are called {name}")
        REWRITES[name] = Rewrite(name, operations, function, note)
        return function

    return add


def _floating(*values: Any) -> bool:
    """Whether the result is of floating point: whole numbers are exact as they are, and are left alone."""
    return any(isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()) for value in values)


@_rewrite(
    "remainder",
    "aten.remainder.Scalar",
    "aten.remainder.Tensor",
    "aten.remainder.Scalar_Tensor",
    note="x - floor(x / y) * y; exact for y = 1, else where x / y rounds to a whole number the result may be off by y",
)
def remainder(x: Any, y: Any) -> Any:
    """x % y, with the sign of y."""
    if not _floating(x, y):
        return NotImplemented
    if isinstance(y, (int, float)) and y == 1 and x.is_floating_point():
        return x - torch.floor(x)
    return x - torch.floor(x / y) * y


@_rewrite(
    "fmod",
    "aten.fmod.Scalar",
    "aten.fmod.Tensor",
    note="x - truncated(x / y) * y; where x / y rounds to a whole number the result may be off by y",
)
def fmod(x: Any, y: Any) -> Any:
    """The remainder with the sign of x."""
    return x - _truncated(x / y) * y if _floating(x, y) else NotImplemented


@_rewrite(
    "floor_divide",
    "aten.floor_divide.default",
    "aten.floor_divide.Scalar",
    "aten.div.Tensor_mode",
    "aten.div.Scalar_mode",
    note="floor(x / y), truncated for rounding_mode='trunc'; where x / y rounds to a whole number the result may be off by 1",
)
def floor_divide(x: Any, y: Any, *, rounding_mode: str | None = "floor") -> Any:
    """x // y, and torch.div with a rounding mode."""
    if rounding_mode is None or not _floating(x, y):
        return NotImplemented
    return torch.floor(x / y) if rounding_mode == "floor" else _truncated(x / y)


def _truncated(x: Tensor) -> Tensor:
    """Towards zero; coremltools has no trunc."""
    return torch.sign(x) * torch.floor(torch.abs(x))


@_rewrite("atan2", "aten.atan2.default", note="atan of the smaller over the larger, turned into its quadrant; zeros count as positive")
def atan2(y: Tensor, x: Tensor) -> Any:
    """The angle of (x, y) in radians, from -pi to pi. The ratio stays within 0 to 1, so that half precision does not overflow."""
    if not (x.is_floating_point() and y.is_floating_point()):
        return NotImplemented
    down, across = torch.abs(y), torch.abs(x)
    larger = torch.maximum(down, across)
    ratio = torch.minimum(down, across) / torch.where(larger > 0, larger, torch.ones_like(larger))
    angle = torch.atan(ratio)
    angle = torch.where(down > across, math.pi / 2 - angle, angle)
    angle = torch.where(x < 0, math.pi - angle, angle)
    return torch.where(y < 0, -angle, angle)


@_rewrite(
    "cumsum",
    "aten.cumsum.default",
    note="products with triangles of ones, 64 elements at a time: the same sums in another order",
)
def cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """The running sum along `dim`."""
    wanted = dtype or x.dtype
    if not wanted.is_floating_point or x.dim() == 0 or x.numel() == 0:
        return NotImplemented
    x = x.to(wanted) if x.dtype != wanted else x
    last = dim % x.dim() == x.dim() - 1
    sums = _running_sums(x if last else x.transpose(dim, -1))
    return sums if last else sums.transpose(dim, -1)


def _running_sums(x: Tensor) -> Tensor:
    """Along the last axis, (..., T): within each block, plus the sum of all blocks before it."""
    length = x.shape[-1]
    if length <= BLOCK:
        return x @ torch.ones(length, length, dtype=x.dtype, device=x.device).triu()
    blocks = -(-length // BLOCK)
    flat = x.reshape(-1, length)
    if blocks * BLOCK > length:
        flat = torch.cat([flat, flat.new_zeros(flat.shape[0], blocks * BLOCK - length)], -1)
    within = flat.reshape(-1, blocks, BLOCK) @ torch.ones(BLOCK, BLOCK, dtype=x.dtype, device=x.device).triu()
    totals = _running_sums(within[..., -1])
    before = torch.cat([totals.new_zeros(totals.shape[0], 1), totals[:, :-1]], -1)
    return (within + before.unsqueeze(-1)).reshape(-1, blocks * BLOCK)[:, :length].reshape(x.shape)


@_rewrite(
    "upsample_linear1d",
    "aten.upsample_linear1d.vec",
    "aten.upsample_linear1d.default",
    note="whole factors by weighted neighbours, others by one product with a constant of at most 4 million elements",
)
def upsample_linear1d(x: Tensor, size: Any, align_corners: bool, scale: Any = None) -> Any:
    """(N, C, T) resampled linearly, up or down."""
    return _resampled(x, size, align_corners, _listed(scale, 1))


@_rewrite(
    "upsample_bilinear2d",
    "aten.upsample_bilinear2d.vec",
    "aten.upsample_bilinear2d.default",
    note="one axis after the other, as upsample_linear1d",
)
def upsample_bilinear2d(x: Tensor, size: Any, align_corners: bool, *scales: Any) -> Any:
    """(N, C, H, W) resampled linearly along both axes."""
    given = scales[0] if len(scales) == 1 else scales
    return _resampled(x, size, align_corners, _listed(given, 2))


@_rewrite(
    "conv_transpose_padding",
    "aten.conv_transpose1d.default",
    "aten.conv_transpose2d.input",
    "aten.conv_transpose3d.input",
    note="a transposed convolution with output padding as one without any padding, and a crop",
)
def conv_transpose_padding(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """(N, C, ...): with padding p and output padding o, elements p to size - p + o of the unpadded result; beyond it, zeros."""
    axes = x.dim() - 2
    before, added = _sizes(padding, axes), _sizes(output_padding, axes)
    if weight.dim() != x.dim() or not any(added):
        return NotImplemented
    convolution = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    whole = convolution(x, weight, None, stride, 0, 0, groups, dilation)
    beyond = [max(extra - margin, 0) for margin, extra in zip(before, added, strict=True)]
    if any(beyond):
        whole = F.pad(whole, [side for extra in reversed(beyond) for side in (0, extra)])
    for axis, (margin, extra, more) in enumerate(zip(before, added, beyond, strict=True), 2):
        whole = whole.narrow(axis, margin, whole.shape[axis] - more - 2 * margin + extra)
    return whole if bias is None else whole + bias.reshape(-1, *[1] * axes)


def _sizes(value: Any, axes: int) -> list[int]:
    """One number for each axis."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return listed * axes if len(listed) == 1 else listed


def _listed(scales: Any, count: int) -> list[float | None]:
    """One factor for each axis, None where there is none."""
    if scales is None or (isinstance(scales, (list, tuple)) and not scales):
        return [None] * count
    return [float(scale) if scale is not None else None for scale in (scales if isinstance(scales, (list, tuple)) else [scales])]


def _resampled(x: Tensor, size: Any, align_corners: bool, scales: list[float | None]) -> Any:
    first = x.dim() - len(scales)
    sizes = list(size) if size else [math.floor(x.shape[first + i] * (scale or 1.0)) for i, scale in enumerate(scales)]
    plans = [_Axis(x.shape[first + i], int(sizes[i]), align_corners, scales[i]) for i in range(len(scales))]
    if not x.is_floating_point() or any(plan.refused for plan in plans):
        return NotImplemented
    for i, plan in enumerate(plans):
        x = plan.apply(x, first + i)
    return x


@dataclass(frozen=True)
class _Axis:
    """Linear resampling of one axis from `before` to `after` points, as PyTorch places them."""

    before: int
    after: int
    align_corners: bool
    scale: float | None

    @property
    def step(self) -> float:
        """Points of the input from one point of the output to the next."""
        if self.align_corners:
            return (self.before - 1) / (self.after - 1) if self.after > 1 else 0.0
        return 1.0 / self.scale if self.scale else self.before / self.after

    @property
    def up(self) -> int:
        """The whole factor by which it grows, 0 where it is none."""
        whole = not self.align_corners and self.after % self.before == 0 and self.step * self.after == self.before
        return self.after // self.before if whole else 0

    @property
    def down(self) -> int:
        whole = not self.align_corners and self.before % self.after == 0 and self.step * self.after == self.before
        return self.before // self.after if whole else 0

    @property
    def refused(self) -> bool:
        return self.before != self.after and not (self.up or self.down) and self.before * self.after > LARGEST_MATRIX

    def apply(self, x: Tensor, dim: int) -> Tensor:
        if self.before == self.after:  # as PyTorch, which copies whatever the factor
            return x.clone()
        if self.up:
            return self._grown(x, dim)
        return self._shrunk(x, dim) if self.down else self._product(x, dim)

    def _grown(self, x: Tensor, dim: int) -> Tensor:
        """Each point with its two neighbours, by weights that repeat: (..., T, 1, ...) * (factor, ...) -> (..., T * factor, ...)."""
        offset = (torch.arange(self.up, dtype=x.dtype, device=x.device) + 0.5) / self.up - 0.5
        offset = offset.reshape(self.up, *[1] * (x.dim() - dim - 1))
        left, right = torch.relu(-offset), torch.relu(offset)
        edges = x.narrow(dim, 0, 1), x.narrow(dim, self.before - 1, 1)
        previous = torch.cat([edges[0], x.narrow(dim, 0, self.before - 1)], dim) if self.before > 1 else x
        following = torch.cat([x.narrow(dim, 1, self.before - 1), edges[1]], dim) if self.before > 1 else x
        here = 1 - left - right
        grown = previous.unsqueeze(dim + 1) * left + x.unsqueeze(dim + 1) * here + following.unsqueeze(dim + 1) * right
        return grown.reshape(*x.shape[:dim], self.after, *x.shape[dim + 1 :])

    def _shrunk(self, x: Tensor, dim: int) -> Tensor:
        """The middle of each group, which is between two points where the group is even."""
        groups = x.reshape(*x.shape[:dim], self.after, self.down, *x.shape[dim + 1 :])
        middle = groups.select(dim + 1, self.down // 2)
        return middle if self.down % 2 else (groups.select(dim + 1, self.down // 2 - 1) + middle) * 0.5

    def _product(self, x: Tensor, dim: int) -> Tensor:
        """By a constant (before, after): each column holds one or two weights."""
        points = torch.arange(self.after, dtype=x.dtype, device=x.device)
        rows = torch.arange(self.before, dtype=x.dtype, device=x.device)
        slope, offset, unit = self._fractions()
        source = (points * slope + offset).clamp(0, (self.before - 1) * unit)
        weights = torch.relu(1 - torch.abs(source.unsqueeze(0) - rows.unsqueeze(1) * unit) / unit)
        last = dim == x.dim() - 1
        resampled = (x if last else x.transpose(dim, -1)) @ weights
        return resampled if last else resampled.transpose(dim, -1)

    def _fractions(self) -> tuple[float, float, float]:
        """(slope, offset, unit): point i lies at (i * slope + offset) / unit; whole numbers, exact in float32, without a given factor."""
        if self.align_corners:
            return float(self.before - 1 if self.after > 1 else 0), 0.0, float(max(self.after - 1, 1))
        if self.scale and self.step * self.after != self.before:
            return self.step, 0.5 * self.step - 0.5, 1.0
        return 2.0 * self.before, float(self.before - self.after), 2.0 * self.after
