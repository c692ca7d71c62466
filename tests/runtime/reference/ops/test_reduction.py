from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from scipy import special
from support.inference import infer, run_unrounded
from support.programs import close, definitions, handler, run_module, run_program

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_l1_norm": lambda x, axis, keepdims: np.sum(np.abs(x), axis=axis, keepdims=keepdims),
    "reduce_l2_norm": lambda x, axis, keepdims: np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims)),
    "reduce_log_sum": lambda x, axis, keepdims: np.log(np.sum(x, axis=axis, keepdims=keepdims)),
    "reduce_log_sum_exp": special.logsumexp,
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, axis, keepdims: np.sum(np.square(x), axis=axis, keepdims=keepdims),
}
POSITIONS: dict[str, Callable[..., Any]] = {"reduce_argmax": np.argmax, "reduce_argmin": np.argmin}
# What lists of integers give, in Python's integers, which have no limits.
EXACT: dict[str, Callable[[list[int]], int]] = {
    "reduce_l1_norm": lambda values: sum(map(abs, values)),
    "reduce_max": max,
    "reduce_mean": lambda values: abs(sum(values)) // len(values) * (1 if sum(values) > 0 else -1),
    "reduce_min": min,
    "reduce_prod": prod,
    "reduce_sum": sum,
    "reduce_sum_square": lambda values: sum(value * value for value in values),
}
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
few = settings(max_examples=25, deadline=None)
AXES = [None, [0], [-1], [0, 2], [-3, 1], [2, 1, 0], []]


def values(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Float32; positive where the sum's logarithm is taken."""
    x = np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32))
    return np.asarray(np.abs(x) + np.float32(0.1)) if name == "reduce_log_sum" else x


def whole(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(1, 40, shape, dtype=np.int32)


def reduced(name: str, x: np.ndarray, axes: list[int] | None, keep_dims: bool) -> np.ndarray:
    return np.asarray(REDUCTIONS[name](x, axis=None if axes is None else tuple(axes), keepdims=keep_dims))


def wrapped(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


@st.composite
def shapes_with_axes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[int] | None]:
    """A shape and some of its axes in any order and either notation, or None."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    axes = draw(st.none() | st.lists(st.integers(0, len(shape) - 1), unique=True))
    return shape, axes and [axis - len(shape) if draw(st.booleans()) else axis for axis in axes]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", REDUCTIONS)
@given(case=shapes_with_axes(), keep_dims=st.booleans(), seed=st.integers(0, 1000))
@few
def test_reductions_match_numpy_over_any_axes(
    name: str, dtype: type, case: tuple[tuple[int, ...], list[int] | None], keep_dims: bool, seed: int
) -> None:
    shape, axes = case
    x = values(name, shape, seed).astype(dtype)
    got = handler(name)(x, axes=axes, keep_dims=keep_dims)
    assert got.dtype == dtype
    close(got, reduced(name, x.astype(np.float64), axes, keep_dims), 1e-5 if dtype is np.float32 else 1e-13)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_without_settings_reduce_all_axes_to_one_value(name: str) -> None:
    x = values(name, (3, 4, 2))
    close(handler(name)(x), reduced(name, x.astype(np.float64), None, False))


@pytest.mark.parametrize("name", EXACT)
@given(rows=st.integers(1, 6).flatmap(lambda length: st.lists(st.lists(INT32, min_size=length, max_size=length), min_size=1, max_size=4)))
@few
def test_reductions_of_int32_are_exact_and_wrap_around(name: str, rows: list[list[int]]) -> None:
    got = handler(name)(np.array(rows, np.int32), axes=[1])
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [wrapped(EXACT[name](row)) for row in rows])
    everything = handler(name)(np.array(rows, np.int32))
    assert everything.shape == ()
    assert everything.item() == wrapped(EXACT[name]([value for row in rows for value in row]))


@pytest.mark.parametrize("name", ["reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp"])
@given(case=shapes_with_axes(), keep_dims=st.booleans(), seed=st.integers(0, 1000))
@few
def test_roots_and_logarithms_of_int32_drop_the_fraction(
    name: str, case: tuple[tuple[int, ...], list[int] | None], keep_dims: bool, seed: int
) -> None:
    shape, axes = case
    x = whole(shape, seed)
    got = handler(name)(x, axes=axes, keep_dims=keep_dims)
    assert got.dtype == np.int32
    exact = reduced(name, x.astype(np.float64), axes, keep_dims)
    assert got.shape == exact.shape
    clear = np.abs(exact - np.round(exact)) > 1e-9  # a sum of exponentials may come out just below a whole number
    np.testing.assert_array_equal(got[clear], np.trunc(exact[clear]))
    assert np.all(np.abs(got - exact) < 1 + 1e-9)


def test_the_norm_of_large_int32_does_not_wrap_around_within() -> None:
    assert handler("reduce_l2_norm")(np.array([300000, 400000], np.int32)).item() == 500000


def test_log_sum_exp_is_finite_where_exponentials_overflow_and_underflow() -> None:
    x = np.array([[1000, 1000], [-1000, -1000], [np.inf, 1], [-np.inf, -np.inf]], np.float32)
    got = handler("reduce_log_sum_exp")(x, axes=[1])
    np.testing.assert_allclose(got, [1000 + np.log(2), -1000 + np.log(2), np.inf, -np.inf], rtol=1e-6)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_one_nan_makes_its_own_reduction_nan(name: str) -> None:
    x = np.abs(values(name, (2, 3)))
    x[0, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(handler(name)(x, axes=[1])), [True, False])


@pytest.mark.parametrize(
    ("name", "wanted"), [("reduce_sum", 0), ("reduce_prod", 1), ("reduce_l2_norm", 0), ("reduce_log_sum_exp", -np.inf)]
)
def test_reductions_of_nothing_give_the_neutral_element(name: str, wanted: float) -> None:
    np.testing.assert_array_equal(handler(name)(np.zeros((2, 0), np.float32), axes=[1]), np.full(2, wanted))


@pytest.mark.parametrize("axes", [[3], [-4], [0, 0], [0, -3]], ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_axes_that_do_not_exist_or_come_twice_are_refused(name: str, axes: list[int]) -> None:
    with pytest.raises(PackageError, match="not different axes"):
        handler(name)(np.ones((2, 3, 4), np.float32), axes=axes)


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("name", POSITIONS)
@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), data=st.data())
@few
def test_positions_match_numpy_with_the_first_of_equals(name: str, dtype: type, opset: str, shape: tuple[int, ...], data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    keep_dims = data.draw(st.booleans())
    x = np.random.default_rng(shape).integers(-2, 3, shape).astype(dtype)  # many are equal
    got = handler(name, opset)(x, axis=axis, keep_dims=keep_dims)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, POSITIONS[name](x, axis=axis, keepdims=keep_dims))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_the_first_of_equals_on_long_axes_and_default_to_the_last(name: str, dtype: type) -> None:
    x = np.zeros((3, 1000), dtype)
    x[:, [500, 700, 999]] = 1 if name == "reduce_argmax" else -1
    np.testing.assert_array_equal(handler(name)(x), [500, 500, 500])
    np.testing.assert_array_equal(handler(name)(x.T.copy(), axis=0), [500, 500, 500])


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_find_nan_first_and_tell_large_int32_apart(name: str) -> None:
    assert handler(name)(np.array([1, np.nan, np.inf, -np.inf, np.nan], np.float32)).item() == 1
    x = np.array([1 << 24, (1 << 24) + 1, 1 << 24], np.int32)
    assert handler(name)(x if name == "reduce_argmax" else -x).item() == 1


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_have_two_types_and_no_other(name: str) -> None:
    x = values(name, (2, 5))
    for dtype in ("int32", "uint16", "UINT16"):
        np.testing.assert_array_equal(handler(name)(x, output_dtype=dtype), POSITIONS[name](x, axis=-1))
    with pytest.raises(PackageError, match="output_dtype is 'int64'"):
        handler(name)(x, output_dtype="int64")


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_in_a_package_over_each_kind_of_axes_give_what_coremltools_infers(name: str) -> None:
    x = values(name, (2, 3, 4))
    cases = [(axes, keep_dims) for axes in AXES for keep_dims in (False, True)]

    def arguments(axes: list[int] | None, keep_dims: bool) -> dict[str, Any]:
        return {"keep_dims": keep_dims} | ({} if axes is None else {"axes": np.array(axes, np.int32)})

    results = run_program(lambda x: [getattr(mb, name)(x=x, **arguments(*case)) for case in cases], x, opset="iOS15")
    for got, (axes, keep_dims) in zip(results, cases, strict=True):
        wanted = infer(name, "iOS15", x=x, **arguments(axes, keep_dims))
        close(got, wanted if wanted.ndim else wanted.reshape(1))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_in_a_package_round_fp16_only_at_the_end(name: str) -> None:
    x = (values(name, (2, 40)) * (1 if name == "reduce_prod" else 4)).astype(np.float16)
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, axes=[1]), x, opset="iOS15")
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, reduced(name, x.astype(np.float64), [1], False).astype(np.float16), rtol=2**-10, atol=2**-24)


def test_a_sum_of_fp16_beyond_its_range_is_infinite_only_where_the_policy_stores_half() -> None:
    x = np.full((2, 40), 4000, np.float16)

    def build(x: Any) -> Any:
        return mb.mul(x=mb.cast(x=mb.reduce_sum(x=x, axes=[1]), dtype="fp32"), y=0.5)

    np.testing.assert_array_equal(run_program(build, x)[0], [np.inf, np.inf])
    np.testing.assert_array_equal(run_program(build, x, numerics="float32")[0], [80000, 80000])


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_int32_in_a_package_give_what_coremltools_infers(name: str) -> None:
    x = whole((3, 4))
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, axes=[-1], keep_dims=True), x, opset="iOS15")
    wanted = infer(name, "iOS15", x=x, axes=[-1], keep_dims=True)
    assert got.dtype == wanted.dtype == np.int32
    np.testing.assert_array_equal(got, wanted)


def test_the_mean_of_negative_int32_in_a_package_goes_towards_zero() -> None:
    x = np.array([[-3, -4], [3, 4]], np.int32)
    (got,) = run_program(lambda x: mb.reduce_mean(x=x, axes=[1]), x)
    np.testing.assert_array_equal(got, [-3, 3])
    np.testing.assert_array_equal(got, infer("reduce_mean", x=x, axes=[1]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32])
@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name in POSITIONS for opset in definitions(name)])
def test_positions_in_a_package_match_numpy(name: str, opset: str, keep_dims: bool, dtype: type) -> None:
    x = (values(name, (2, 3, 4)) * 5).astype(dtype)
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, axis=1, keep_dims=keep_dims), x, opset=opset)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, POSITIONS[name](x, axis=1, keepdims=keep_dims))
    np.testing.assert_array_equal(got, infer(name, opset, x=x, axis=1, keep_dims=keep_dims))


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_of_ios17_can_be_uint16(name: str) -> None:
    x = np.zeros((2, 50000), np.float32)
    x[:, 40000] = 1 if name == "reduce_argmax" else -1  # beyond int16
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, output_dtype="uint16"), x, opset="iOS17")
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, [40000, 40000])


def test_positions_beyond_uint16_wrap_around_within_the_program_too() -> None:
    x = np.zeros((1, 70000), np.float32)
    x[0, 65540] = 1
    (got,) = run_program(lambda x: mb.cast(x=mb.reduce_argmax(x=x, output_dtype="uint16"), dtype="int32"), x)
    np.testing.assert_array_equal(got, [4])


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_float64_policy_keeps_the_precision_of_reductions(name: str) -> None:
    x = values(name, (3, 50))
    got = run_unrounded(lambda x: getattr(mb, name)(x=x, axes=[1]), x)
    assert got.dtype == np.float64
    close(got, reduced(name, x.astype(np.float64), [1], False), 1e-13)


class Reductions(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        best, position = torch.max(x, dim=1)
        norms = torch.linalg.vector_norm(x, ord=1, dim=(0, 2)), torch.norm(x, dim=2, keepdim=True)
        return (*norms, x.mean(dim=(1, 2)), x.sum(), x.amin(dim=-1, keepdim=True), best, position, x.logsumexp(dim=1))


def test_traced_reductions_match_torch() -> None:
    got, wanted, operations = run_module(Reductions(), torch.from_numpy(values("", (2, 3, 4))))
    for one, other in zip(got, wanted, strict=True):
        close(one, other if other.ndim else other.reshape(1))
    assert {"reduce_l2_norm", "reduce_mean", "reduce_sum", "reduce_min", "reduce_max", "reduce_argmax"} <= set(operations)
