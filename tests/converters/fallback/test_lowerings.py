"""Rewrites against the operations that they replace, and the registry of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.lowerings import (
    REWRITES,
    lowerings,
    overload,
    register_lowering,
    registered_lowerings,
    remove_lowering,
)
from rvc_coreml.errors import UsageError
from torch import Tensor, nn
from torch.nn import functional as F

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**16)
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def exported(function: Callable[..., Any], *args: Tensor, rewrites: tuple[str, ...]) -> tuple[list[str], Any]:
    program = torch.export.export(Function(function), args, strict=False).run_decompositions(lowerings(rewrites))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return names, program.module()(*args)


def drawn(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    """Within `tolerance` of the peak, with shape and type."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    peak = max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    assert float((found.double() - wanted.double()).abs().max()) <= tolerance * peak


def broadcast(seed: int, shape: list[int]) -> Tensor:
    """Divisors of both signs, with some axes of 1, at least 0.25 from zero."""
    shape = [1 if (seed >> i) & 1 else n for i, n in enumerate(shape)]
    values = drawn(seed + 1, *shape, scale=2.0)
    return torch.where(values < 0, values - 0.25, values + 0.25)


def away_from_whole(x: Tensor, y: Tensor) -> bool:
    """Whether no quotient rounds to a whole number, beside which floor and the remainder are not continuous."""
    quotient = x.double() / y.double()
    return bool(((quotient - quotient.round()).abs() > 1e-5).all())


@QUICK
@given(SEEDS, SHAPES, st.sampled_from(["remainder", "fmod", "floor_divide", "trunc"]))
def test_division_with_a_remainder_broadcasts_and_has_the_sign_of_pytorch(seed: int, shape: list[int], what: str) -> None:
    x, y = drawn(seed, *shape), broadcast(seed, shape)
    assume(away_from_whole(x, y))
    name = "floor_divide" if what == "trunc" else what
    keywords = {"rounding_mode": "trunc"} if what == "trunc" else {}
    wanted = torch.div(x, y, rounding_mode="trunc") if what == "trunc" else getattr(torch, what)(x, y)
    close(REWRITES[name].function(x, y, **keywords), wanted, 1e-5 if "floor" not in name else 0.0)


@QUICK
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_remainder_by_one_is_exact(values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.equal(REWRITES["remainder"].function(x, 1), torch.remainder(x, 1.0))
    whole = x.to(torch.int64)
    torch.testing.assert_close(REWRITES["remainder"].function(whole, 1.0), torch.remainder(whole, 1.0))


@QUICK
@given(SEEDS, SHAPES)
def test_atan2_covers_all_quadrants_and_the_axes(seed: int, shape: list[int]) -> None:
    y, x = drawn(seed, *shape), drawn(seed + 7, *shape)
    y, x = torch.where(y.abs() < 0.5, 0.0, y), torch.where(x.abs() < 0.5, 0.0, x)
    close(REWRITES["atan2"].function(y, x), torch.atan2(y + 0.0, x + 0.0))


def test_atan2_does_not_overflow_in_half_precision() -> None:
    y, x = torch.tensor([6e4, 1e-4, -6e4], dtype=torch.float16), torch.tensor([1e-4, 6e4, -1e-4], dtype=torch.float16)
    close(REWRITES["atan2"].function(y, x), torch.atan2(y.float(), x.float()).half(), 2e-3)


@QUICK
@given(SEEDS, st.lists(st.integers(1, 5), min_size=0, max_size=3), st.integers(1, 300), st.integers(-4, 3))
def test_cumsum_along_any_axis(seed: int, shape: list[int], length: int, dim: int) -> None:
    shape = [*shape, length]
    assume(-len(shape) <= dim < len(shape))
    x = drawn(seed, *shape, scale=1.0).movedim(-1, dim)
    wanted = x.double().cumsum(dim)
    found = REWRITES["cumsum"].function(x, dim)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-6 * max(1.0, float(x.abs().cumsum(dim).max()))


def test_cumsum_of_more_than_a_square_of_blocks() -> None:
    x = drawn(1, 2, 5000, scale=1.0)
    close(REWRITES["cumsum"].function(x, 1), x.double().cumsum(1).float(), 1e-5)


@QUICK
@given(SEEDS, st.integers(1, 40), st.integers(1, 120), st.booleans(), st.booleans())
def test_linear_resampling_is_exact(seed: int, before: int, after: int, align_corners: bool, scaled: bool) -> None:
    """Against double precision: in single, PyTorch's own is up to 1e-5 of the peak away from it."""
    x = drawn(seed, 1, 2, before)
    scale = (after + 0.25) / before if scaled and not align_corners else None
    wanted = torch.ops.aten.upsample_linear1d.default(x.double(), [after], align_corners, scale)
    close(REWRITES["upsample_linear1d"].function(x.double(), [after], align_corners, scale), wanted, 1e-9)
    close(REWRITES["upsample_linear1d"].function(x, [after], align_corners, scale), wanted.float(), 2e-6 if scale is None else 2e-5)


@QUICK
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_bilinear_resampling_is_exact(seed: int, height: int, width: int, tall: int, wide: int, align_corners: bool) -> None:
    x = drawn(seed, 1, 2, height, width).double()
    wanted = torch.ops.aten.upsample_bilinear2d.default(x, [tall, wide], align_corners)
    close(REWRITES["upsample_bilinear2d"].function(x, [tall, wide], align_corners), wanted, 1e-9)


@QUICK
@given(
    SEEDS,
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.integers(1, 2),
)
def test_a_transposed_convolution_without_output_padding(
    seed: int, axes: int, kernel: int, stride: int, padding: int, dilation: int, grouped: bool, biased: bool, output_padding: int
) -> None:
    assume(output_padding < max(stride, dilation))
    x, groups = drawn(seed, 2, 4, *[5, 3][:axes]), 2 if grouped else 1
    weight, bias = drawn(seed + 1, 4, 3, *[kernel] * axes), drawn(seed + 2, 3 * groups) if biased else None
    arguments = (x, weight, bias, [stride], [padding], [output_padding], groups, [dilation])
    operation = overload(REWRITES["conv_transpose_padding"].operations[axes - 1])
    try:
        wanted = operation(*arguments)
    except RuntimeError:
        assume(False)
        raise
    close(REWRITES["conv_transpose_padding"].function(*arguments), wanted, 1e-5)


CALLS = {
    "conv_transpose_padding": [
        lambda x: F.conv_transpose1d(x, torch.ones(3, 2, 3), stride=2, padding=1, output_padding=1),
        lambda x: F.conv_transpose2d(x[None], torch.ones(2, 2, 3, 3), torch.ones(2), stride=2, padding=(0, 1), output_padding=(1, 0)),
    ],
    "remainder": [lambda x: x % 1.0, lambda x: x % -0.7, lambda x: 1.3 % (x.abs() + 1), lambda x: x % (x.flip(0).abs() + 1)],
    "fmod": [lambda x: torch.fmod(x, 0.3), lambda x: torch.fmod(x, x.flip(0).abs() + 1)],
    "floor_divide": [lambda x: x // 0.3, lambda x: torch.div(x, 0.3, rounding_mode="trunc"), lambda x: x // (x.flip(0).abs() + 1)],
    "atan2": [lambda x: torch.atan2(x, x.flip(0))],
    "cumsum": [lambda x: x.cumsum(1), lambda x: torch.cumsum(x, -1)],
    "upsample_linear1d": [
        lambda x: F.interpolate(x, scale_factor=300.0, mode="linear"),
        lambda x: F.interpolate(x, scale_factor=1 / 5, mode="linear"),
        lambda x: F.interpolate(x, scale_factor=0.5, mode="linear"),
        lambda x: F.interpolate(x, size=13, mode="linear", align_corners=True),
    ],
    "upsample_bilinear2d": [
        lambda x: F.interpolate(x[None], scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x[None], size=(5, 11), mode="bilinear"),
    ],
}


@pytest.mark.parametrize("name", CALLS)
def test_a_rewrite_takes_its_operations_out_of_the_graph(name: str) -> None:
    x = drawn(3, 2, 3, 10)

    def all_calls(x: Tensor) -> list[Tensor]:
        return [call(x) for call in CALLS[name]]

    names, found = exported(all_calls, x, rewrites=(name,))
    assert name == "conv_transpose_padding" or not any(operation in REWRITES[name].operations for operation in names)
    for result, wanted in zip(found, all_calls(x), strict=True):
        close(result, wanted, 1e-5)


def test_whole_numbers_are_left_alone() -> None:
    names, _found = exported(lambda x: (x % 3, x // 2, torch.fmod(x, 3), x.cumsum(0)), torch.arange(-5, 5), rewrites=tuple(REWRITES))
    assert names == ["aten.remainder.Scalar", "aten.floor_divide.default", "aten.fmod.Scalar", "aten.cumsum.default"]


def test_a_constant_too_large_is_not_made() -> None:
    assert REWRITES["upsample_linear1d"].function(torch.zeros(1, 1, 3000), [7001], False) is NotImplemented


@pytest.fixture
def registry() -> Iterator[None]:
    """As it was, afterwards."""
    before = registered_lowerings()
    yield
    for operation in registered_lowerings():
        remove_lowering(operation)
    for operation, function in before.items():
        register_lowering(operation)(function)


@pytest.mark.usefixtures("registry")
def test_a_registered_lowering_wins_over_a_rewrite() -> None:
    @register_lowering("aten.remainder.Scalar")
    def mine(x: Tensor, y: float) -> Tensor:
        return x * y

    names, found = exported(lambda x: x % 2.0, torch.ones(3), rewrites=("remainder",))
    assert names == ["aten.mul.Tensor"]
    assert found.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.usefixtures("registry")
def test_registering_twice_is_an_error_unless_asked_for() -> None:
    register_lowering("aten.sinc.default")(torch.sin)
    with pytest.raises(UsageError, match=r"aten\.sinc\.default has a lowering already, .*sin: pass replace=True"):
        register_lowering("aten.sinc.default")(torch.cos)
    register_lowering("aten.sinc.default", replace=True)(torch.cos)
    assert registered_lowerings() == {"aten.sinc.default": torch.cos}
    remove_lowering("aten.sinc.default")
    assert lowerings() == {}
    with pytest.raises(UsageError, match=r"aten\.sinc\.default has no registered lowering"):
        remove_lowering("aten.sinc.default")


@pytest.mark.parametrize("name", ["sinc", "aten.sinc", "aten.no_such_thing.default", "aten.sinc.wrong", "nowhere.sinc.default", ""])
def test_an_operation_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="PyTorch has no operation"):
        register_lowering(name)
    assert str(overload("aten.sinc.default")) == "aten.sinc.default"


def test_a_rewrite_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(UsageError, match=r"there is no rewrite 'modulo': choose from atan2, conv_transpose_padding, cumsum,.* remainder"):
        lowerings(("modulo",))


def test_every_rewrite_says_what_it_does() -> None:
    assert len({rewrite.note for rewrite in REWRITES.values()}) == len(REWRITES)
    for name, rewrite in REWRITES.items():
        assert rewrite.name == name
        assert all(str(overload(operation)) == operation for operation in rewrite.operations)
