from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.inference import infer
from support.programs import definitions, handler, normal, run_module, run_program

SIZES = st.lists(st.integers(1, 4), max_size=2).map(tuple)
INDEX_TYPES = {
    "iOS15": [np.int32],
    "iOS16": [np.int32, np.int16, np.uint16],
    "iOS17": [np.int32, np.int16, np.uint16, np.int8, np.uint8],
}
VALUE_TYPES = {
    "iOS15": [np.float32, np.float16, np.int32],
    "iOS16": [np.float32, np.float16, np.int32],
    "iOS17": [np.float32, np.float16, np.int32, np.int16, np.uint16, np.int8, np.uint8],
}
OPSETS_AND_TYPES = [(opset, values, indices) for opset in INDEX_TYPES for values in VALUE_TYPES[opset] for indices in INDEX_TYPES[opset]]
UNDEFINED = {np.float32: np.nan, np.float16: np.nan, np.int32: -(2**31), np.int8: -128, np.uint8: 0, np.bool_: False}
X = normal(2, 3, 4)


def drawn_indices(data: st.DataObject, opset: str, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Indices that an opset defines for an axis: negative ones before iOS 17."""
    lowest = -size if opset < "iOS17" else 0
    count = int(np.prod(shape))
    values = data.draw(st.lists(st.integers(lowest, size - 1), min_size=count, max_size=count))
    return np.array(values, np.int32).reshape(shape)


def batched_take(x: np.ndarray, indices: np.ndarray, axis: int, batch_dims: int) -> np.ndarray:
    """np.take for each place of the batch axes."""
    batch = x.shape[:batch_dims]
    parts = [np.take(x[place], indices[place], axis - batch_dims) for place in np.ndindex(batch)]
    return np.stack(parts).reshape((*batch, *parts[0].shape))


def batched_take_nd(x: np.ndarray, indices: np.ndarray, batch_dims: int) -> np.ndarray:
    """One value or slice of `x` for each row of the last axis of `indices`."""
    found = [x[place[:batch_dims]][tuple(indices[place])] for place in np.ndindex(indices.shape[:-1])]
    return np.array(found, x.dtype).reshape(indices.shape[:-1] + x.shape[batch_dims + indices.shape[-1] :])


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(definitions("gather")), SIZES, SIZES, SIZES, SIZES, st.integers(1, 5), st.booleans(), st.data())
def test_gather_puts_the_indices_axes_where_the_chosen_axis_was(
    opset: str, batch: tuple, before: tuple, after: tuple, new: tuple, size: int, signed: bool, data: st.DataObject
) -> None:
    batch = () if opset == "iOS15" else batch
    x = normal(*batch, *before, size, *after)
    indices = drawn_indices(data, opset, (*batch, *new), size)
    axis = len(batch) + len(before)
    arguments: dict[str, Any] = {"axis": axis - x.ndim if signed else axis}
    if opset != "iOS15":
        arguments["batch_dims"] = len(batch)
    got = handler("gather", opset)(x, indices, **arguments)
    np.testing.assert_array_equal(got, batched_take(x, indices, axis, len(batch)), strict=True)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(definitions("gather_along_axis")), SIZES, SIZES, st.integers(1, 5), st.integers(0, 6), st.booleans(), st.data())
def test_gather_along_axis_chooses_for_every_place_beside_the_axis(
    opset: str, before: tuple, after: tuple, size: int, number: int, signed: bool, data: st.DataObject
) -> None:
    x = normal(*before, size, *after)
    indices = drawn_indices(data, opset, (*before, number, *after), size)
    axis = len(before) - x.ndim if signed else len(before)
    got = handler("gather_along_axis", opset)(x, indices, axis=axis)
    np.testing.assert_array_equal(got, np.take_along_axis(x, indices, axis), strict=True)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(definitions("gather_nd")), SIZES, st.lists(st.integers(1, 4), max_size=3).map(tuple), SIZES, SIZES, st.data())
def test_gather_nd_looks_up_rows_of_the_last_axis(
    opset: str, batch: tuple, sizes: tuple, after: tuple, new: tuple, data: st.DataObject
) -> None:
    batch = () if opset == "iOS15" else batch
    x = normal(*batch, *sizes, *after)
    if not sizes:
        indices = np.zeros((*batch, *new, 0), np.int32)
    else:
        indices = np.stack([drawn_indices(data, opset, (*batch, *new), size) for size in sizes], -1)
    if indices.ndim == len(batch):  # a batch axis cannot be the one that lists places
        return
    arguments = {} if opset == "iOS15" else {"batch_dims": len(batch)}
    got = handler("gather_nd", opset)(x, indices, **arguments)
    np.testing.assert_array_equal(got, batched_take_nd(x, indices, len(batch)), strict=True)


@pytest.mark.parametrize("opset", definitions("gather"))
def test_gather_in_a_package_takes_slices(opset: str) -> None:
    indices = np.array([[2, 0, 1], [1, 2, 2]], np.int32)
    (got,) = run_program(lambda x, i: mb.gather(x=x, indices=i, axis=1), X, indices, opset=opset)
    np.testing.assert_array_equal(got, np.take(X, indices, 1))
    (first,) = run_program(lambda x, i: mb.gather(x=x, indices=i), X, indices[:, :2] % 2, opset=opset)
    np.testing.assert_array_equal(first, np.take(X, indices[:, :2] % 2, 0))


@pytest.mark.parametrize("opset", definitions("gather")[1:])
@pytest.mark.parametrize(("axis", "batch_dims"), [(1, 0), (1, 1), (2, 1), (2, 2), (-1, 2), (-2, 1)])
def test_gather_in_a_package_walks_batch_axes_together(axis: int, batch_dims: int, opset: str) -> None:
    indices = np.array([[2, 0, 1], [1, 2, 2]], np.int32)
    build: Callable[..., Any] = lambda x, i: mb.gather(x=x, indices=i, axis=axis, batch_dims=batch_dims)  # noqa: E731
    (got,) = run_program(build, X, indices, opset=opset)
    np.testing.assert_array_equal(got, batched_take(X, indices, axis % 3, batch_dims), strict=True)


@pytest.mark.parametrize("opset", definitions("gather"))
def test_gather_of_one_index_drops_the_axis_down_to_a_scalar(opset: str) -> None:
    (got,) = run_program(lambda x: mb.gather(x=x, indices=np.int32(2), axis=1), X, opset=opset)
    np.testing.assert_array_equal(got, X[:, 2])
    build: Callable[..., Any] = lambda x, i: mb.expand_dims(x=mb.gather(x=x, indices=mb.squeeze(x=i)), axes=[0])  # noqa: E731
    (scalar,) = run_program(build, X[0, 0], np.array([3], np.int32), opset=opset)
    np.testing.assert_array_equal(scalar, X[0, 0, 3:])


@pytest.mark.parametrize("opset", definitions("gather_along_axis"))
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_along_axis_in_a_package_is_numpys(axis: int, opset: str) -> None:
    indices = np.random.default_rng(0).integers(0, 2, X.shape).astype(np.int32)
    (got,) = run_program(lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=axis), X, indices, opset=opset)
    np.testing.assert_array_equal(got, np.take_along_axis(X, indices, axis))


@pytest.mark.parametrize("opset", definitions("gather_nd"))
def test_gather_nd_in_a_package_takes_values_or_slices(opset: str) -> None:
    places = np.array([[[1, 0], [0, 2]], [[0, 0], [1, 1]]], np.int32)
    (got,) = run_program(lambda x, i: mb.gather_nd(x=x, indices=i), X, places, opset=opset)
    np.testing.assert_array_equal(got, batched_take_nd(X, places, 0), strict=True)
    if opset != "iOS15":
        (batched,) = run_program(lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1), X, places, opset=opset)
        np.testing.assert_array_equal(batched, batched_take_nd(X, places, 1), strict=True)


@pytest.mark.parametrize(("opset", "values", "indices"), OPSETS_AND_TYPES)
def test_every_type_of_values_and_indices_of_an_opset_is_gathered_unchanged(opset: str, values: type, indices: type) -> None:
    x = (50 * X).astype(values)
    chosen = np.array([[1, 0, 1, 2]], indices).repeat(2, 0)

    def build(x: Any) -> tuple[Any, ...]:
        return (
            mb.gather(x=x, indices=chosen[0], axis=1),
            mb.gather_along_axis(x=x, indices=chosen[:, None], axis=1),
            mb.gather_nd(x=x, indices=chosen[:, 1:3]),
        )

    rows, along, places = run_program(build, x, opset=opset)
    np.testing.assert_array_equal(rows, x[:, chosen[0]], strict=True)
    np.testing.assert_array_equal(along, np.take_along_axis(x, chosen[:, None].astype(int), 1), strict=True)
    np.testing.assert_array_equal(places, x[chosen[:, 1], chosen[:, 2]], strict=True)


def test_unsigned_indices_computed_in_a_program_reach_far_places() -> None:
    x = np.arange(60000, dtype=np.int32)
    indices = np.array([59999, 40000, 7], np.uint16)
    (got,) = run_program(lambda x, i: mb.gather(x=x, indices=i), x, indices)
    np.testing.assert_array_equal(got, indices)


@pytest.mark.parametrize("opset", definitions("gather"))
def test_gathers_agree_with_coremltools_own_inference(opset: str) -> None:
    indices = np.array([[2, 0, 1], [1, 2, 2]], np.int32)
    arguments: dict[str, Any] = {"axis": 2} if opset == "iOS15" else {"axis": 2, "batch_dims": 1}
    np.testing.assert_array_equal(
        handler("gather", opset)(X, indices, **arguments), infer("gather", opset, x=X, indices=indices, **arguments)
    )
    along = np.random.default_rng(0).integers(0, 3, (2, 5, 4)).astype(np.int32)
    wanted = infer("gather_along_axis", opset, x=X, indices=along, axis=1)
    np.testing.assert_array_equal(handler("gather_along_axis", opset)(X, along, axis=1), wanted)


@pytest.mark.parametrize("opset", ["iOS15", "iOS16"])
def test_negative_indices_count_from_the_end_before_ios17(opset: str) -> None:
    indices = np.array([-1, -3, 2], np.int32)
    (rows,) = run_program(lambda x, i: mb.gather(x=x, indices=i, axis=1), X, indices, opset=opset)
    np.testing.assert_array_equal(rows, X[:, [2, 0, 2]])
    (along,) = run_program(lambda x, i: mb.gather_along_axis(x=x, indices=i), X[0], -np.ones((2, 4), np.int32), opset=opset)
    np.testing.assert_array_equal(along, X[0][[2, 2]])
    (places,) = run_program(lambda x, i: mb.gather_nd(x=x, indices=i), X, np.array([[-1, -1], [-2, 0]], np.int32), opset=opset)
    np.testing.assert_array_equal(places, X[[1, 0], [2, 0]])


GATHERS: list[tuple[str, np.ndarray]] = [
    ("gather", np.array([0, 3])),
    ("gather", np.array([0, -4])),
    ("gather", np.array(3)),
    ("gather_along_axis", np.array([[0, 0, 3, 0]])),
    ("gather_along_axis", np.array([[0, 0, -4, 0]])),
    ("gather_nd", np.array([[0, 0], [0, 4]])),
    ("gather_nd", np.array([[0, 0], [-4, 0]])),
]


@pytest.mark.parametrize(("opset", "validation"), [("iOS15", {}), ("iOS16", {}), ("iOS17", {"validate_indices": True})])
@pytest.mark.parametrize(("operation", "indices"), GATHERS)
def test_an_index_outside_of_its_axis_is_refused(operation: str, indices: np.ndarray, opset: str, validation: dict[str, bool]) -> None:
    with pytest.raises(PackageError, match=r"the index -?\d is out of bounds"):
        handler(operation, opset)(X[0], indices.astype(np.int32), **validation)


@pytest.mark.parametrize("operation", ["gather", "gather_along_axis", "gather_nd"])
def test_a_negative_index_is_refused_since_ios17_where_indices_are_validated(operation: str) -> None:
    indices = np.full((1, 4) if operation == "gather_along_axis" else (1,), -1, np.int32)

    def build(x: Any, i: Any) -> Any:
        return getattr(mb, operation)(x=x, indices=i, validate_indices=True)

    with pytest.raises(PackageError, match=rf"\({operation}\): the index -1 is out of bounds; allowed are \[0, 3\)"):
        run_program(build, X[0], indices)
    (got,) = run_program(build, X[0], np.zeros_like(indices))
    np.testing.assert_array_equal(got.reshape(4), X[0, 0])


@pytest.mark.parametrize("dtype", UNDEFINED, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("index", [-1, 3, 2**31 - 1, -(2**31)])
def test_an_index_outside_gives_a_visible_value_where_indices_are_not_validated(index: int, dtype: type) -> None:
    x = (50 * X[0]).astype(dtype)
    missing = np.full(4, UNDEFINED[dtype], dtype)
    rows = handler("gather")(x, np.array([1, index], np.int32))
    np.testing.assert_array_equal(rows, np.stack([x[1], missing]), strict=True)
    along = handler("gather_along_axis")(x, np.array([[1, 1, 1, 1], [index, 0, 0, 0]], np.int32))
    np.testing.assert_array_equal(along, np.stack([x[1], [missing[0], *x[0, 1:]]]), strict=True)
    places = handler("gather_nd")(x, np.array([[1, 2], [index, 0], [0, 2**30]], np.int32))
    np.testing.assert_array_equal(places, np.array([x[1, 2], missing[0], missing[0]]), strict=True)


@pytest.mark.parametrize(
    ("operation", "indices", "arguments"),
    [
        ("gather", [0], {"axis": 3}),
        ("gather", [0], {"axis": -4}),
        ("gather", [[0], [0]], {"axis": 1, "batch_dims": 2}),
        ("gather", [[0], [0], [0]], {"axis": 1, "batch_dims": 1}),
        ("gather", [0], {"axis": 2, "batch_dims": -1}),
        ("gather_along_axis", [[[0]]], {"axis": 0}),
        ("gather_along_axis", [0], {"axis": 0}),
        ("gather_nd", [[0, 0, 0, 0]], {}),
        ("gather_nd", [[0, 0], [0, 0], [0, 0]], {"batch_dims": 1}),
        ("gather_nd", [0, 0], {"batch_dims": 1}),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(operation: str, indices: list, arguments: dict[str, int]) -> None:
    with pytest.raises(PackageError):
        handler(operation)(X, np.array(indices, np.int32), **arguments)


@pytest.mark.parametrize("opset", definitions("gather"))
def test_gathering_nothing_gives_nothing(opset: str) -> None:
    nothing = np.zeros(0, np.int32)
    assert handler("gather", opset)(X, nothing, axis=1).shape == (2, 0, 4)
    assert handler("gather_nd", opset)(X, nothing.reshape(0, 2)).shape == (0, 4)
    assert handler("gather", opset)(X[:, :0], nothing, axis=1).shape == (2, 0, 4)
    assert handler("gather_along_axis", opset)(X, nothing.reshape(2, 0, 4), axis=1).shape == (2, 0, 4)


class Indexed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        i = x[0, :, 0].argsort()
        spread = i[None, :, None].expand(2, 3, 4)
        return (
            x[:, i],
            x.index_select(2, i),
            x.gather(1, spread),
            x[:, i, i],
            torch.nn.functional.embedding(i, x[0]),
            x[:, -1],
        )


def test_traced_indexing_matches_torch() -> None:
    got, wanted, operations = run_module(Indexed(), torch.from_numpy(X))
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"output {index}")
    assert {"gather", "gather_nd", "gather_along_axis"} <= set(operations)
