from __future__ import annotations

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
from support.programs import definitions, handler, normal, run_module, run_program

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
TYPES = [np.float32, np.float16, np.int32, np.bool_]
NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
X = normal(2, 3, 4)


def named(dtype: type) -> str:
    return dtype.__name__


def part(shape: tuple[int, ...], seed: int, dtype: type = np.float32) -> np.ndarray:
    return np.round(2 * normal(*shape, seed=seed)).astype(dtype)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from(TYPES), st.data())
def test_concat_joins_parts_of_any_length(shape: tuple[int, ...], lengths: list[int], dtype: type, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    place = axis % len(shape)
    parts = [part((*shape[:place], length, *shape[place + 1 :]), seed, dtype) for seed, length in enumerate(lengths)]
    np.testing.assert_array_equal(handler("concat")(parts, axis), np.concatenate(parts, axis), strict=True)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(1, 4), st.sampled_from(TYPES), st.data())
def test_concat_interleaves_parts_of_one_shape(shape: tuple[int, ...], number: int, dtype: type, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = [part(shape, seed, dtype) for seed in range(number)]
    got = handler("concat")(parts, axis, interleave=True)
    for index, item in enumerate(parts):
        np.testing.assert_array_equal(np.take(got, range(index, got.shape[axis], number), axis), item, strict=True)


@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_concat_in_a_package_joins_scalars_to_a_vector(dtype: type) -> None:
    x = np.array([3, 0, 1], dtype)
    scalars = lambda x: [mb.squeeze(x=item) for item in mb.split(x=x, num_splits=3, axis=0)]  # noqa: E731
    (got,) = run_program(lambda x: mb.concat(values=scalars(x), axis=0), x, opset="iOS15")
    np.testing.assert_array_equal(got, x, strict=True)


@settings(max_examples=50, deadline=None)
@given(hnp.array_shapes(min_dims=0, max_dims=4, max_side=4), st.integers(1, 4), st.sampled_from(TYPES), st.data())
def test_stack_adds_an_axis(shape: tuple[int, ...], number: int, dtype: type, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    parts = [np.asarray(part(shape, seed, dtype)) for seed in range(number)]
    np.testing.assert_array_equal(handler("stack")(parts, axis), np.stack(parts, axis), strict=True)


@pytest.mark.parametrize("axis", [0, 1, 3, -1, -3])
@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_stack_in_a_package_adds_an_axis(dtype: type, axis: int) -> None:
    first, second = part(X.shape, 1, dtype), part(X.shape, 2, dtype)
    (got,) = run_program(lambda x, y: mb.stack(values=(x, y, x), axis=axis), first, second, opset="iOS15")
    np.testing.assert_array_equal(got, np.stack([first, second, first], axis), strict=True)


def declared(number: int) -> tuple[TensorType, ...]:
    return (TensorType("fp32", (None,)),) * number


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans(), st.sampled_from(TYPES), st.data())
def test_split_cuts_parts_of_the_given_sizes(
    shape: tuple[int, ...], sizes: list[int], counted: bool, dtype: type, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    place = axis % len(shape)
    x = part((*shape[:place], sum(sizes), *shape[place + 1 :]), 0, dtype)
    arguments = {"num_splits": len(sizes)} if counted else {}
    got = handler("split")(x, axis, declared(len(sizes)), split_sizes=sizes, **arguments)
    for left, right in zip(got, np.split(x, np.cumsum(sizes)[:-1], axis), strict=True):
        np.testing.assert_array_equal(left, right, strict=True)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(1, 4), st.data())
def test_split_cuts_equal_parts(shape: tuple[int, ...], number: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    place = axis % len(shape)
    x = normal(*shape[:place], number * shape[place], *shape[place + 1 :])
    got = handler("split")(x, axis, declared(number), num_splits=number)
    for left, right in zip(got, np.split(x, number, axis), strict=True):
        np.testing.assert_array_equal(left, right, strict=True)


@pytest.mark.parametrize(
    ("axis", "arguments", "cuts"),
    [
        (0, {"num_splits": 2}, [1]),
        (-1, {"num_splits": 4}, [1, 2, 3]),
        (1, {"num_splits": 1}, []),
        (1, {"split_sizes": [1, 2]}, [1]),
        (-1, {"split_sizes": [3, 0, 1], "num_splits": 3}, [3, 3]),
    ],
)
@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_split_in_a_package_gives_every_part(dtype: type, axis: int, arguments: dict[str, Any], cuts: list[int]) -> None:
    x = part(X.shape, 0, dtype)
    got = run_program(lambda x: mb.split(x=x, axis=axis, **arguments), x, opset="iOS15")
    for left, right in zip(got, np.split(x, cuts, axis), strict=True):
        np.testing.assert_array_equal(left, right, strict=True)


def test_split_refuses_what_does_not_add_up() -> None:
    for number, results in ((3, 3), (0, 0), (2, 3), (None, 2), (-2, 2)):
        with pytest.raises(PackageError, match="cannot be split into"):
            handler("split")(X, -1, declared(results), num_splits=number)
    with pytest.raises(RuntimeError):
        handler("split")(X, -1, declared(2), split_sizes=[1, 2])


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.sampled_from(TYPES), st.data())
def test_tile_repeats_each_axis(shape: tuple[int, ...], dtype: type, data: st.DataObject) -> None:
    reps = [data.draw(st.integers(1, 3)) for _axis in shape]
    x = part(shape, 0, dtype)
    got = handler("tile")(x, reps)
    index = np.ix_(*(np.arange(size * times) % size for size, times in zip(shape, reps, strict=True)))
    np.testing.assert_array_equal(got, x[index], strict=True)


@pytest.mark.parametrize("dtype", TYPES, ids=named)
def test_tile_takes_its_counts_from_a_tensor(dtype: type) -> None:
    x = part(X.shape, 0, dtype)
    (got,) = run_program(lambda x, r: mb.tile(x=x, reps=r), x, np.array([2, 1, 3], np.int32), opset="iOS15")
    np.testing.assert_array_equal(got, np.tile(x, (2, 1, 3)), strict=True)


@settings(max_examples=80, deadline=None)
@given(hnp.array_shapes(min_dims=1, max_dims=6, max_side=4), st.sampled_from(list(NUMPY_MODES)), st.data())
def test_pad_surrounds_any_number_of_axes(shape: tuple[int, ...], mode: str, data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, min(len(shape), 4)))
    limits = [size - 1 if mode == "reflect" else 3 for size in shape[len(shape) - axes :] for _side in range(2)]
    pad = [data.draw(st.integers(0, min(limit, 3))) for limit in limits]
    x = normal(*shape)
    amounts = [(0, 0)] * (len(shape) - axes) + list(zip(pad[::2], pad[1::2], strict=True))
    got = handler("pad")(x, pad, mode)
    np.testing.assert_array_equal(got, np.pad(x, amounts, mode=NUMPY_MODES[mode]), strict=True)  # pyright: ignore


@pytest.mark.parametrize("mode", NUMPY_MODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=named)
def test_pad_in_a_package_takes_all_five_axes_and_computed_amounts(dtype: type, mode: str) -> None:
    x = normal(2, 3, 2, 3, 4).astype(dtype)
    pad = np.array([1, 0, 2, 1, 0, 1, 1, 2, 3, 0], np.int32)
    wanted = np.pad(x, pad.reshape(-1, 2), mode=NUMPY_MODES[mode])  # pyright: ignore
    (fixed,) = run_program(lambda x: mb.pad(x=x, pad=pad, mode=mode), x, opset="iOS15")
    np.testing.assert_array_equal(fixed, wanted, strict=True)
    (computed,) = run_program(lambda x, p: mb.pad(x=x, pad=p, mode=mode), x, pad, opset="iOS15")
    np.testing.assert_array_equal(computed, wanted, strict=True)


@pytest.mark.parametrize("value", [0.0, -1e4, 0.5, -np.inf])
def test_pad_in_a_package_fills_half_precision_with_its_constant(value: float) -> None:
    x = X.astype(np.float16)
    (got,) = run_program(lambda x: mb.pad(x=x, pad=[1, 2], constant_val=np.float16(value)), x, opset="iOS15")
    np.testing.assert_array_equal(got, np.pad(x, [(0, 0), (0, 0), (1, 2)], constant_values=value), strict=True)


@pytest.mark.parametrize(
    ("pad", "mode", "message"),
    [
        ([1], "constant", "does not fit 3 axes"),
        ([0] * 8, "constant", "does not fit 3 axes"),
        ([-1, 0], "constant", "does not fit 3 axes"),
        ([1, 1], "symmetric", "no pad mode 'symmetric'"),
        ([4, 0], "reflect", "reflect cannot pad 4 values by 4 and 0"),
    ],
)
def test_pad_refuses_what_no_definition_knows(pad: list[int], mode: str, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        handler("pad")(X, pad, mode)


def test_nothing_can_be_reflected_or_repeated_from_an_empty_axis() -> None:
    for mode in ("reflect", "replicate"):
        with pytest.raises(PackageError, match="cannot pad 0 values"):
            handler("pad")(X[..., :0], [1, 0], mode)
    np.testing.assert_array_equal(handler("pad")(X[..., :0], [1, 0]), np.zeros((2, 3, 1), np.float32))


class Parted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = x.chunk(2, dim=-1)
        left, right = x.split([1, 2], dim=1)
        both = torch.nn.functional.pad(x[None], (2, 1, 1, 2), mode="reflect")
        return torch.stack([first, second], 1), right, left.repeat(2, 1, 3), both, torch.nn.functional.pad(x, (1, 1, 0, 2, 1, 0), value=2.5)


def test_traced_parts_match_torch() -> None:
    got, wanted, operations = run_module(Parted(), torch.from_numpy(X))
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(left, right)
    assert {"stack", "split", "pad", "tile"} <= set(operations)


def test_these_operations_are_defined_once() -> None:
    """Should a later coremltools define one anew, its tests above need that opset too."""
    assert all(definitions(name) == ["iOS15"] for name in ("concat", "stack", "split", "tile", "pad"))
