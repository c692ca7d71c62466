from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.inference import run_unrounded
from support.programs import close, definitions, handler, normal, run_module, run_program

MODES: dict[str, Callable[[Any, Any], Any]] = {
    "update": lambda old, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "div": lambda old, new: old / new,
    "max": max,
    "min": min,
}
OPERATIONS = ["scatter", "scatter_along_axis", "scatter_nd"]
SIZES = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def scattered(data: np.ndarray, updates: np.ndarray, mode: str, places: Iterator[tuple[tuple, tuple]]) -> np.ndarray:
    """Each (source in `updates`, target in the result) after the other, as in a plain loop; integers divide like C."""
    result = data.copy()
    for source, target in places:
        new = MODES[mode](result[target].item(), updates[source].item())
        result[target] = int(new) if np.issubdtype(data.dtype, np.integer) else new
    return result


def scatter_places(data: np.ndarray, indices: np.ndarray, axis: int) -> Iterator[tuple[tuple, tuple]]:
    for before in np.ndindex(data.shape[:axis]):
        for index in np.ndindex(indices.shape):
            for after in np.ndindex(data.shape[axis + 1 :]):
                yield (*before, *index, *after), (*before, indices[index], *after)


def along_places(indices: np.ndarray, axis: int) -> Iterator[tuple[tuple, tuple]]:
    for source in np.ndindex(indices.shape):
        yield source, (*source[:axis], indices[source], *source[axis + 1 :])


def nd_places(data: np.ndarray, indices: np.ndarray) -> Iterator[tuple[tuple, tuple]]:
    for row in np.ndindex(indices.shape[:-1]):
        for after in np.ndindex(data.shape[indices.shape[-1] :]):
            yield (*row, *after), (*indices[row], *after)


def values(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    """Positive and away from 0, so that products and quotients stay in range."""
    generator = np.random.default_rng([seed, *shape])
    return (
        generator.integers(1, 9, shape).astype(dtype)
        if np.issubdtype(dtype, np.integer)
        else generator.uniform(0.5, 2, shape).astype(dtype)
    )


def drawn_indices(data: st.DataObject, opset: str, shape: tuple[int, ...], size: int) -> np.ndarray:
    lowest = -size if opset < "iOS17" else 0
    count = int(np.prod(shape))
    return np.array(data.draw(st.lists(st.integers(lowest, size - 1), min_size=count, max_size=count)), np.int32).reshape(shape)


opsets_modes_and_types = st.tuples(
    st.sampled_from(definitions("scatter")), st.sampled_from(list(MODES)), st.sampled_from([np.float32, np.float64, np.int32])
)


def check(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype
    close(got, wanted, 1e-5 if got.dtype == np.float32 else 1e-12)


@settings(max_examples=60, deadline=None)
@given(opsets_modes_and_types, SIZES, SIZES, SIZES, st.integers(1, 3), st.booleans(), st.data())
def test_scatter_applies_slices_in_order(
    chosen: tuple[str, str, type], before: tuple, after: tuple, new: tuple, size: int, signed: bool, data: st.DataObject
) -> None:
    opset, mode, dtype = chosen
    x = values((*before, size, *after), dtype, 0)
    indices = drawn_indices(data, opset, new, size)
    updates = values((*before, *new, *after), dtype, 1)
    axis = len(before)
    got = handler("scatter", opset)(x, indices, updates, axis=axis - x.ndim if signed else axis, mode=mode)
    check(got, scattered(x, updates, mode, scatter_places(x, indices, axis)))


@settings(max_examples=60, deadline=None)
@given(opsets_modes_and_types, SIZES, SIZES, st.integers(1, 3), st.integers(0, 5), st.booleans(), st.data())
def test_scatter_along_axis_applies_values_in_order(
    chosen: tuple[str, str, type], before: tuple, after: tuple, size: int, number: int, signed: bool, data: st.DataObject
) -> None:
    opset, mode, dtype = chosen
    x = values((*before, size, *after), dtype, 0)
    indices = drawn_indices(data, opset, (*before, number, *after), size)
    updates = values(indices.shape, dtype, 1)
    axis = len(before)
    got = handler("scatter_along_axis", opset)(x, indices, updates, axis=axis - x.ndim if signed else axis, mode=mode)
    check(got, scattered(x, updates, mode, along_places(indices, axis)))


@settings(max_examples=60, deadline=None)
@given(opsets_modes_and_types, st.lists(st.integers(1, 3), max_size=3).map(tuple), SIZES, SIZES, st.data())
def test_scatter_nd_applies_values_or_slices_in_order(
    chosen: tuple[str, str, type], sizes: tuple, after: tuple, new: tuple, data: st.DataObject
) -> None:
    opset, mode, dtype = chosen
    x = values((*sizes, *after), dtype, 0)
    columns = [drawn_indices(data, opset, new, size) for size in sizes]
    indices = np.stack(columns, -1) if sizes else np.zeros((*new, 0), np.int32)
    updates = values((*new, *after), dtype, 1)
    got = handler("scatter_nd", opset)(x, indices, updates, mode=mode)
    check(got, scattered(x, updates, mode, nd_places(x, indices)))


@pytest.mark.parametrize("opset", definitions("scatter"))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("mode", MODES)
def test_every_scatter_of_a_package_accumulates_repeated_indices(mode: str, dtype: type, opset: str) -> None:
    x = values((3, 4), dtype, 0)
    rows, columns = np.array([2, 0, 2, 2], np.int32), np.array([[1, 3, 1], [0, 0, 0], [3, 2, 3]], np.int32)
    places = np.array([[2, 1], [0, 3], [2, 1]], np.int32)
    slices, along, single = values((4, 4), dtype, 1), values((3, 3), dtype, 2), values((3,), dtype, 3)

    def build(x: Any, s: Any, a: Any, v: Any) -> tuple[Any, ...]:
        return (
            mb.scatter(data=x, indices=rows, updates=s, axis=0, mode=mode),
            mb.scatter_along_axis(data=x, indices=columns, updates=a, axis=1, mode=mode),
            mb.scatter_nd(data=x, indices=places, updates=v, mode=mode),
        )

    got = run_program(build, x, slices, along, single, opset=opset)
    precise = x if dtype == np.int32 else x.astype(np.float32)  # results are rounded once, at the end
    wanted = [
        scattered(precise, slices, mode, scatter_places(x, rows, 0)),
        scattered(precise, along, mode, along_places(columns, 1)),
        scattered(precise, single, mode, nd_places(x, places)),
    ]
    for left, right in zip(got, wanted, strict=True):
        assert left.dtype == dtype
        close(left.astype(np.float64), right.astype(dtype).astype(np.float64), 1e-3 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("opset", definitions("scatter"))
def test_scatters_add_along_the_first_axis_by_default(opset: str) -> None:
    x, updates = normal(3, 2), normal(2, 2, seed=1)
    rows = np.array([2, 2], np.int32)
    along = np.array([[2, 0], [2, 1]], np.int32)

    def build(x: Any, u: Any) -> tuple[Any, ...]:
        return (
            mb.scatter(data=x, indices=rows, updates=u),
            mb.scatter_along_axis(data=x, indices=along, updates=u),
            mb.scatter_nd(data=x, indices=rows[:, None], updates=u),
        )

    whole, single, slices = run_program(build, x, updates, opset=opset)
    wanted = x.copy()
    wanted[2] += updates[0] + updates[1]
    close(whole, wanted)
    close(slices, wanted)
    close(single, x + np.array([[0, updates[0, 1]], [0, updates[1, 1]], [updates[0, 0] + updates[1, 0], 0]], np.float32))


def test_the_last_of_several_updates_stays() -> None:
    """More of them than a parallel kernel would keep in order."""
    x, number = np.zeros(3, np.float32), 100_000
    indices = np.random.default_rng(0).integers(0, 3, number).astype(np.int32)
    updates = np.arange(number, dtype=np.float32)
    last = np.array([np.flatnonzero(indices == place)[-1] for place in range(3)], np.float32)
    for operation, places in (("scatter", indices), ("scatter_along_axis", indices), ("scatter_nd", indices[:, None])):
        np.testing.assert_array_equal(handler(operation)(x, places, updates, mode="update"), last)


@pytest.mark.parametrize("opset", definitions("scatter_along_axis"))
def test_scatter_along_axis_agrees_with_coremltools_own_inference(opset: str) -> None:
    """Which knows `update` only."""
    x, updates = normal(3, 4), normal(2, 4, seed=1)
    indices = np.array([[0, 1, 2, 0], [2, 1, 0, 1]], np.int32)
    found = []

    def build(x: Any) -> Any:
        found.append(mb.scatter_along_axis(data=normal(3, 4), indices=indices, updates=updates, axis=0, mode="update"))
        return mb.add(x=x, y=found[0])

    (got,) = run_program(build, np.zeros_like(x), opset=opset)
    np.testing.assert_array_equal(got, found[0].val)


@pytest.mark.parametrize("mode", MODES)
def test_scatters_keep_double_precision(mode: str) -> None:
    x, updates = values((3, 4), np.float32, 0), values((5, 4), np.float32, 1)
    indices = np.array([0, 2, 0, 0, 2], np.int32)
    got = run_unrounded(lambda x, u: mb.scatter(data=x, indices=indices, updates=u, mode=mode), x, updates)
    wanted = scattered(x.astype(np.float64), updates, mode, scatter_places(x, indices, 0))
    assert got.dtype == np.float64
    close(got, wanted, 1e-13)


def test_integer_division_drops_the_remainder_after_each_step() -> None:
    data = np.array([7, -7, 2**31 - 1, -(2**31), 49], np.int32)
    updates = np.array([[2, 2, 3, 3, 7], [-2, 2, 5, 7, 7]], np.int32)
    got = handler("scatter")(data[None], np.zeros(2, np.int32), updates[:, None].reshape(2, 5), mode="div")
    wanted = [int(int(value / first) / second) for value, (first, second) in zip(data.tolist(), updates.T.tolist(), strict=True)]
    np.testing.assert_array_equal(got, np.array([wanted], np.int32), strict=True)


def test_scatters_leave_their_inputs_alone() -> None:
    x, updates = normal(3, 4), normal(1, 4, seed=1)
    kept = x.copy()
    indices = np.array([1], np.int32)
    handler("scatter")(x, indices, updates)
    handler("scatter")(x, indices, updates, mode="update")
    handler("scatter_nd")(x.T.copy().T, indices[:, None], updates, mode="max")
    np.testing.assert_array_equal(x, kept)


def test_scatters_take_data_in_any_memory_order() -> None:
    x, updates = normal(4, 3).T, normal(1, 4, seed=1)
    wanted = x.copy()
    wanted[1] += updates[0]
    np.testing.assert_array_equal(handler("scatter")(x, np.array([1], np.int32), updates), wanted)


def shaped(operation: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and updates for data of (3, 2): an allowed index, then `index`."""
    indices = {"scatter": [1, index], "scatter_along_axis": [[1, 1], [index, index]], "scatter_nd": [[1], [index]]}[operation]
    return np.array(indices, np.int32), np.ones((2, 2), np.float32)


@pytest.mark.parametrize(("operation", "opset"), product(OPERATIONS, ["iOS15", "iOS16"]))
def test_negative_indices_count_from_the_end_before_ios17(operation: str, opset: str) -> None:
    x, (indices, updates) = normal(3, 2), shaped(operation, -1)
    (got,) = run_program(lambda x, i, u: getattr(mb, operation)(data=x, indices=i, updates=u), x, indices, updates, opset=opset)
    close(got, x + np.array([[0], [1], [1]], np.float32))


@pytest.mark.parametrize(("opset", "validation"), [("iOS15", {}), ("iOS16", {}), ("iOS17", {"validate_indices": True})])
@pytest.mark.parametrize(("operation", "index"), product(OPERATIONS, [3, -4]))
def test_an_index_outside_of_its_axis_is_refused(operation: str, index: int, opset: str, validation: dict[str, bool]) -> None:
    with pytest.raises(PackageError, match=f"the index {index} is out of bounds"):
        handler(operation, opset)(normal(3, 2), *shaped(operation, index), **validation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_negative_index_is_refused_since_ios17_where_indices_are_validated(operation: str) -> None:
    def build(x: Any, i: Any, u: Any) -> Any:
        return getattr(mb, operation)(data=x, indices=i, updates=u, validate_indices=True)

    with pytest.raises(PackageError, match=rf"\({operation}\): the index -1 is out of bounds; allowed are \[0, 3\)"):
        run_program(build, normal(3, 2), *shaped(operation, -1))
    (got,) = run_program(build, normal(3, 2), *shaped(operation, 2))
    close(got, normal(3, 2) + np.array([[0], [1], [1]], np.float32))


@pytest.mark.parametrize(("operation", "index", "mode"), product(OPERATIONS, [-1, 3, 2**31 - 1], ["update", "add"]))
def test_an_update_outside_is_left_out_where_indices_are_not_validated(operation: str, index: int, mode: str) -> None:
    x, (indices, updates) = normal(3, 2), shaped(operation, index)
    wanted = x.copy()
    wanted[1] = updates[0] if mode == "update" else x[1] + updates[0]
    np.testing.assert_array_equal(handler(operation)(x, indices, updates, mode=mode), wanted)


def test_an_unknown_mode_is_refused() -> None:
    for operation in OPERATIONS:
        with pytest.raises(PackageError, match="no scatter mode 'pow'"):
            handler(operation)(normal(3, 2), *shaped(operation, 0), mode="pow")


def test_updates_of_another_shape_are_refused() -> None:
    for operation in OPERATIONS:
        indices, updates = shaped(operation, 0)
        with pytest.raises(PackageError, match=r"updates have the shape \(2, 1\)"):
            handler(operation)(normal(3, 2), indices, updates[:, :1])


def test_scattering_nothing_changes_nothing() -> None:
    x, nothing = normal(3, 2), np.zeros((0, 2), np.float32)
    for operation, shape in (("scatter", (0,)), ("scatter_along_axis", (0, 2)), ("scatter_nd", (0, 1))):
        np.testing.assert_array_equal(handler(operation)(x, np.zeros(shape, np.int32), nothing), x)


class Written(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        order = x.argsort(1)
        replaced = x.clone()
        replaced[:, 1:3] = y[:, :2]
        rows = torch.zeros(3, 4).index_put((order[:, 0],), y, accumulate=True)
        return x.scatter(1, order, y), x.scatter_add(1, order[:, :2], y[:, :2]), x.index_put((order[0, :3],), y), replaced, rows


def test_traced_scattering_matches_torch() -> None:
    x = torch.from_numpy(np.array([[0.1, 3, 2, 1], [2, 1, 0, 5], [1, 2, 0, -1]], np.float32))
    x[:, 3] = torch.tensor([9.0, 8, 7])
    got, wanted, operations = run_module(Written(), x, torch.from_numpy(normal(3, 4)))
    for left, right in zip(got, wanted, strict=True):
        close(left, right)
    assert {"scatter_nd", "scatter_along_axis"} <= set(operations)
