from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.program import TensorType
from support.inference import infer, run_unrounded
from support.programs import close, definitions, handler, normal, run_module, run_program

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
TYPES = [np.float32, np.float16, np.int32, np.bool_]
X = normal(2, 3, 4)


def named(dtype: type) -> str:
    return dtype.__name__


def as_type(x: np.ndarray, dtype: type) -> np.ndarray:
    """Some values of each sign, some of them 0."""
    return np.round(2 * x).astype(dtype)


@pytest.mark.parametrize("dtype", [*TYPES, np.int8, np.uint8, np.uint16], ids=named)
def test_identity_gives_what_it_gets(dtype: type) -> None:
    (got,) = run_program(lambda x: mb.identity(x=x), X.astype(dtype), opset="iOS17")
    np.testing.assert_array_equal(got, X.astype(dtype), strict=True)


def test_identity_passes_lists_on() -> None:
    def build(x: Any) -> Any:
        written = mb.list_write(ls=mb.make_list(init_length=2, elem_shape=(3,)), index=0, value=x)
        return mb.list_read(ls=mb.identity(x=written), index=0)

    (got,) = run_program(build, X[0, :, 0], opset="iOS15")
    np.testing.assert_array_equal(got, X[0, :, 0])


@pytest.mark.parametrize(("value", "dtype"), [(1.5, np.float32), (1.5, np.float16), (2**31 - 1, np.int32), (True, np.bool_)])
@pytest.mark.parametrize("shape", [[3], [2, 1, 3], [1, 2, 3, 1, 2]], ids=str)
def test_fill_has_the_type_of_its_value(shape: list[int], value: Any, dtype: type) -> None:
    wanted = np.full(shape, value, dtype)
    np.testing.assert_array_equal(handler("fill", "iOS15")(shape, np.array(value, dtype)), wanted, strict=True)
    (got,) = run_program(lambda x: mb.fill(shape=shape, value=dtype(value)), X, opset="iOS15")
    np.testing.assert_array_equal(got, wanted, strict=True)


def test_fill_takes_its_shape_from_a_tensor_and_is_0_by_default() -> None:
    (got,) = run_program(lambda x, s: mb.fill(shape=s), X, np.array([2, 0, 3], np.int32), opset="iOS15")
    np.testing.assert_array_equal(got, np.zeros((2, 0, 3), np.float32), strict=True)
    (got,) = run_program(lambda x: mb.fill(shape=mb.shape(x=x), value=np.int32(7)), X, opset="iOS15")
    np.testing.assert_array_equal(got, np.full(X.shape, 7, np.int32), strict=True)


@pytest.mark.parametrize("dtype", TYPES, ids=named)
@pytest.mark.parametrize("reference", TYPES, ids=named)
def test_fill_like_has_the_shape_of_its_reference_and_the_type_of_its_value(reference: type, dtype: type) -> None:
    (got,) = run_program(lambda x: mb.fill_like(ref_tensor=x, value=dtype(1)), X.astype(reference), opset="iOS16")
    np.testing.assert_array_equal(got, np.ones(X.shape, dtype), strict=True)
    (default,) = run_program(lambda x: mb.fill_like(ref_tensor=x), X.astype(reference), opset="iOS16")
    np.testing.assert_array_equal(default, np.zeros(X.shape, np.float32), strict=True)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.sampled_from(TYPES))
def test_shape_tells_every_axis(shape: tuple[int, ...], dtype: type) -> None:
    np.testing.assert_array_equal(handler("shape")(np.zeros(shape, dtype)), np.array(shape, np.int32), strict=True)


@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_shape_in_a_package_is_an_int32_vector(dtype: type) -> None:
    (got,) = run_program(lambda x: mb.shape(x=x), X.astype(dtype), opset="iOS15")
    np.testing.assert_array_equal(got, np.array([2, 3, 4], np.int32), strict=True)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.data())
def test_flatten2d_cuts_the_axes_in_two_groups(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape)))
    x = normal(*shape)
    place = axis if axis >= 0 else axis + len(shape)
    got = handler("flatten2d")(x, axis=axis)
    np.testing.assert_array_equal(got, x.reshape(int(np.prod(shape[:place])), int(np.prod(shape[place:]))), strict=True)


@pytest.mark.parametrize(("axis", "wanted"), [(None, (2, 12)), (0, (1, 24)), (2, (6, 4)), (3, (24, 1)), (-1, (6, 4)), (-3, (1, 24))])
@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_flatten2d_in_a_package_has_two_axes(dtype: type, axis: int | None, wanted: tuple[int, int]) -> None:
    x = as_type(X, dtype)
    (got,) = run_program(lambda x: mb.flatten2d(x=x, **({} if axis is None else {"axis": axis})), x, opset="iOS15")
    np.testing.assert_array_equal(got, x.reshape(wanted), strict=True)


def banded(x: np.ndarray, lower: int, upper: int) -> np.ndarray:
    return (np.tril(x, upper) if upper >= 0 else x) - (np.tril(x, -lower - 1) if lower >= 0 else 0)


@settings(max_examples=60, deadline=None)
@given(hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), st.integers(-2, 6), st.integers(-2, 6), st.sampled_from(TYPES))
def test_band_part_keeps_diagonals_around_the_main_one(shape: tuple[int, ...], lower: int, upper: int, dtype: type) -> None:
    x = as_type(normal(*shape), dtype)
    got = handler("band_part")(x, lower=lower, upper=upper)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, banded(x.astype(np.float64), lower, upper).astype(dtype))


@pytest.mark.parametrize(("lower", "upper"), product([None, -1, 0, 1], [None, -1, 0, 2]))
@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_band_part_in_a_package_agrees_with_coremltools_own_inference(dtype: type, lower: int | None, upper: int | None) -> None:
    x = as_type(X, dtype)
    arguments = {name: value for name, value in (("lower", lower), ("upper", upper)) if value is not None}
    (got,) = run_program(lambda x: mb.band_part(x=x, **arguments), x, opset="iOS15")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, infer("band_part", "iOS15", x=x, **arguments))


def test_band_part_replaces_infinities_outside_of_the_band_by_0() -> None:
    np.testing.assert_array_equal(handler("band_part")(np.full((2, 2), np.inf, np.float32), lower=0, upper=0), [[np.inf, 0], [0, np.inf]])


def summed(x: np.ndarray, axis: int, exclusive: bool, reverse: bool) -> np.ndarray:
    """Each value from those before it, by its definition."""
    x = np.moveaxis(x, axis, 0)
    ends = [slice(i + exclusive, None) if reverse else slice(0, i + 1 - exclusive) for i in range(len(x))]
    return np.moveaxis(np.stack([x[end].sum(0) for end in ends]), 0, axis)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.booleans(), st.booleans(), st.sampled_from([np.float32, np.float64, np.int32]), st.data())
def test_cumsum_sums_up_to_each_place(shape: tuple[int, ...], exclusive: bool, reverse: bool, dtype: type, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = (100 * normal(*shape)).astype(dtype)
    got = handler("cumsum")(x, axis=axis, exclusive=exclusive, reverse=reverse)
    assert got.dtype == dtype
    wanted = summed(x.astype(np.float64), axis, exclusive, reverse)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 if dtype == np.float32 else 1e-10)


@pytest.mark.parametrize(("exclusive", "reverse", "axis"), product([None, False, True], [None, False, True], [None, 1, -1]))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32], ids=named)
def test_cumsum_in_a_package_is_exclusive_or_reversed(dtype: type, axis: int | None, exclusive: bool | None, reverse: bool | None) -> None:
    x = as_type(X, dtype)
    settings_ = {name: value for name, value in (("axis", axis), ("exclusive", exclusive), ("reverse", reverse)) if value is not None}
    (got,) = run_program(lambda x: mb.cumsum(x=x, **settings_), x, opset="iOS15")
    np.testing.assert_array_equal(got, summed(x, axis or 0, bool(exclusive), bool(reverse)).astype(dtype), strict=True)


def test_cumsum_accumulates_in_the_precision_of_the_policy() -> None:
    x = normal(2, 2000)
    close(run_unrounded(lambda x: mb.cumsum(x=x, axis=-1), x), np.cumsum(x.astype(np.float64), -1), 1e-12)
    half = np.full(4096, 0.1, np.float16)
    (got,) = run_program(lambda x: mb.cumsum(x=x), half)
    np.testing.assert_allclose(got, np.cumsum(half.astype(np.float64)), rtol=1e-3)


def test_cumsum_of_nothing_is_nothing() -> None:
    assert handler("cumsum")(np.zeros((2, 0), np.float32), axis=1, exclusive=True).shape == (2, 0)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(st.sampled_from([np.float32, np.int32, np.bool_]), SHAPES, elements=st.sampled_from([0, 1])))
def test_non_zero_lists_places_in_order(x: np.ndarray) -> None:
    np.testing.assert_array_equal(handler("non_zero")(x), np.argwhere(x))


@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_non_zero_in_a_package_has_as_many_rows_as_there_are(dtype: type) -> None:
    for x in (as_type(X, dtype), np.zeros_like(X).astype(dtype), np.ones_like(X).astype(dtype)):
        (got,) = run_program(lambda x: mb.non_zero(x=x), x, opset="iOS15")
        np.testing.assert_array_equal(got, np.argwhere(x).astype(np.int32), strict=True)


def one_hot(indices: np.ndarray, size: int, axis: int, on: Any, off: Any, dtype: type) -> np.ndarray:
    """Written place by place; an index outside of the new axis has none."""
    result = np.full((*indices.shape, size), off, dtype)
    for place in np.ndindex(indices.shape):
        if 0 <= indices[place] < size:
            result[(*place, indices[place])] = on
    return np.moveaxis(result, -1, axis)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.int32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.integers(-2, 6)), st.integers(0, 5), st.data()
)
def test_one_hot_marks_each_index_on_a_new_axis(indices: np.ndarray, size: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-indices.ndim - 1, indices.ndim))
    on, off, dtype = data.draw(st.sampled_from([(1, 0, np.int32), (2.5, -1, np.float32), (0.5, 0, np.float16), (True, False, np.bool_)]))
    got = handler("one_hot")(indices, size, axis=axis, on_value=np.array(on, dtype), off_value=np.array(off, dtype))
    np.testing.assert_array_equal(got, one_hot(indices, size, axis, on, off, dtype), strict=True)


@pytest.mark.parametrize("dtype", [*TYPES, None])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -2, -3])
def test_one_hot_in_a_package_has_the_type_of_its_values(axis: int | None, dtype: type | None) -> None:
    indices = np.array([[0, 3, 2], [1, 1, 4]], np.int32)
    arguments: dict[str, Any] = {} if axis is None else {"axis": axis}
    if dtype is not None:
        arguments |= {"on_value": dtype(0), "off_value": dtype(1)}
    (got,) = run_program(lambda i: mb.one_hot(indices=i, one_hot_vector_size=5, **arguments), indices, opset="iOS15")
    on, off = (0, 1) if dtype is not None else (1, 0)
    np.testing.assert_array_equal(got, one_hot(indices, 5, -1 if axis is None else axis, on, off, dtype or np.int32), strict=True)


def test_one_hot_takes_its_size_from_a_tensor() -> None:
    indices = np.array([2, 0], np.int32)
    (got,) = run_program(lambda i, n: mb.one_hot(indices=i, one_hot_vector_size=mb.squeeze(x=n)), indices, np.array([4], np.int32))
    np.testing.assert_array_equal(got, np.eye(4, dtype=np.int32)[indices], strict=True)


def test_one_hot_refuses_an_axis_outside_of_the_result() -> None:
    for axis in (2, -3):
        with pytest.raises(PackageError, match="out of bounds for 2 axes"):
            handler("one_hot")(np.array([1], np.int32), 2, axis=axis)


def ranged(start: float, end: float, step: float, dtype: str) -> np.ndarray:
    return handler("range_1d")(start, end, step, (TensorType(dtype, (None,)),))


@settings(max_examples=60, deadline=None)
@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7).filter(bool))
def test_range_1d_of_integers_is_pythons(start: int, end: int, step: int) -> None:
    np.testing.assert_array_equal(ranged(start, end, step, "int32"), list(range(start, end, step)))


FINE = st.integers(-400, 400).map(lambda value: value / 16)  # exact in half precision


@settings(max_examples=60, deadline=None)
@given(FINE, FINE, FINE.filter(bool), st.sampled_from(["fp16", "fp32"]))
def test_range_1d_of_fractions_stays_before_its_end(start: float, end: float, step: float, dtype: str) -> None:
    count = 0
    while (start + count * step - end) * np.sign(step) < 0:
        count += 1
    got = ranged(start, end, step, dtype)
    np.testing.assert_array_equal(got, [start + index * step for index in range(count)])


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # coremltools', about its own limit in half precision
@pytest.mark.parametrize(
    ("start", "end", "step", "dtype"),
    [(0, 7, 0.7, np.float32), (0, 1, 0.1, np.float32), (5, -5, -0.3, np.float32), (0, 2, 0.3, np.float16), (-3, 9, 2, np.int32)],
)
def test_range_1d_in_a_package_has_as_many_values_as_coremltools_infers(start: float, end: float, step: float, dtype: type) -> None:
    """Whether its arguments are constants, so that the count is declared, or not."""
    wanted = infer("range_1d", "iOS15", start=dtype(start), end=dtype(end), step=dtype(step))
    values = [np.array([value], dtype) for value in (start, end, step)]
    (fixed,) = run_program(lambda x: mb.range_1d(start=dtype(start), end=dtype(end), step=dtype(step)), X, opset="iOS15")

    def build(start: Any, end: Any, step: Any) -> Any:
        return mb.range_1d(start=mb.squeeze(x=start), end=mb.squeeze(x=end), step=mb.squeeze(x=step))

    (computed,) = run_program(build, *values, opset="iOS15")
    for got in (fixed, computed):
        assert got.dtype == dtype
        close(got.astype(np.float64), wanted.astype(np.float64), 1e-3 if dtype == np.float16 else 1e-5)


def test_range_1d_tells_large_integers_apart() -> None:
    (got,) = run_program(lambda x: mb.range_1d(start=np.int32(2**31 - 4), end=np.int32(2**31 - 1), step=np.int32(1)), X)
    np.testing.assert_array_equal(got, [2**31 - 4, 2**31 - 3, 2**31 - 2])
    np.testing.assert_array_equal(ranged(-(2**31), 2**31 - 1, 2**31 - 1, "int32"), [-(2**31), -1, 2**31 - 2])


def test_range_1d_keeps_double_precision() -> None:
    got = run_unrounded(lambda x: mb.range_1d(start=mb.squeeze(x=x), end=np.float32(9), step=np.float32(0.7)), np.array([0.1], np.float32))
    close(got, np.float64(np.float32(0.1)) + np.float64(np.float32(0.7)) * np.arange(13), 1e-13)


def test_range_1d_refuses_endless_ranges() -> None:
    with pytest.raises(PackageError, match="the step is 0"):
        ranged(0, 1, 0, "fp32")
    with pytest.raises(OverflowError):
        ranged(0, 1e38, 1e-38, "fp32")


SELECTED = [((2, 3), (2, 3), (2, 3)), ((3,), (2, 3), (2, 3)), ((2, 1), (2, 3), (3,)), ((2, 3), (2, 1), (3,)), ((1,), (2, 1), (1, 3))]


@pytest.mark.parametrize(("cond", "a", "b"), SELECTED)
@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_select_in_a_package_broadcasts(dtype: type, cond: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> None:
    chosen, left, right = normal(*cond) > 0, as_type(normal(*a), dtype), as_type(normal(*b, seed=1), dtype)
    (got,) = run_program(lambda c, a, b: mb.select(cond=c, a=a, b=b), chosen, left, right, opset="iOS15")
    np.testing.assert_array_equal(got, np.where(chosen, left, right), strict=True)


def test_select_takes_scalars() -> None:
    chosen = normal(2, 3) > 0
    (got,) = run_program(lambda c, b: mb.select(cond=c, a=np.float32(-1), b=b), chosen, X[:, :, 0])
    np.testing.assert_array_equal(got, np.where(chosen, np.float32(-1), X[:, :, 0]), strict=True)


@settings(max_examples=40, deadline=None)
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=3), st.sampled_from(TYPES))
def test_select_broadcasts_all_three(shapes: hnp.BroadcastableShapes, dtype: type) -> None:
    chosen = normal(*shapes.input_shapes[0]) > 0
    left, right = (as_type(normal(*shape, seed=seed), dtype) for seed, shape in enumerate(shapes.input_shapes[1:]))
    got = handler("select")(np.asarray(chosen), np.asarray(left), np.asarray(right))
    np.testing.assert_array_equal(got, np.where(chosen, left, right), strict=True)


def test_select_does_not_mix_in_what_it_leaves_out() -> None:
    (got,) = run_program(lambda x: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=np.float32(0)), np.array([np.nan, -np.inf, 2], np.float32))
    np.testing.assert_array_equal(got, [0, 0, 2])


class Counted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            x.cumsum(1),
            x.triu(1) + x.tril(-1),
            torch.full_like(x, 3.0),
            torch.nn.functional.one_hot(x[0].argsort(), 4),
            torch.where(x > 0, x, -x),
            x.masked_fill(x > 0.5, 9.0),
            torch.nonzero(x > 0),
            torch.arange(x.shape[0]) * 2,
        )


def test_traced_counting_matches_torch() -> None:
    got, wanted, operations = run_module(Counted(), torch.from_numpy(X[:, 0]))
    for left, right in zip(got, wanted, strict=True):
        close(left, right)
    assert {"cumsum", "band_part", "one_hot", "select", "non_zero"} <= set(operations)


CHECKED: list[Callable[[], Any]] = [
    lambda: handler("band_part")(np.zeros(3, np.float32)),
    lambda: handler("cumsum")(X, axis=3),
    lambda: handler("fill")([-1]),
    lambda: handler("one_hot")(np.array([0], np.int32), -1),
]


@pytest.mark.parametrize("call", CHECKED)
def test_what_has_no_result_is_an_error(call: Callable[[], Any]) -> None:
    with pytest.raises((PackageError, RuntimeError, IndexError)):
        call()


def test_these_operations_are_defined_once() -> None:
    """Should a later coremltools define one anew, its tests above need that opset too."""
    once = ["identity", "fill", "shape", "flatten2d", "band_part", "cumsum", "non_zero", "one_hot", "range_1d", "select"]
    assert all(definitions(name) == ["iOS15"] for name in once)
    assert definitions("fill_like") == ["iOS16"]
