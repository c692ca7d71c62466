from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from rvc_coreml.errors import PackageError
from support.programs import by_name, definitions, handler, inferred, normal, numbered, run_module, run_program

X = normal(3, 4, 5)
MASKS = ("begin_mask", "end_mask", "squeeze_mask")
BOUNDS = [0, 1, 3, 6, -1, -3, -6, 9, -9]


def numpy_index(arguments: dict[str, list[Any]]) -> tuple[slice | int, ...]:
    """The index that numpy would be written with."""
    rank = len(arguments["begin"])
    strides = arguments.get("stride") or [1] * rank
    open_begin, open_end, squeezed = (arguments.get(name) or [False] * rank for name in MASKS)
    return tuple(
        (0 if open_begin[axis] else arguments["begin"][axis])
        if squeezed[axis]
        else slice(
            None if open_begin[axis] else arguments["begin"][axis], None if open_end[axis] else arguments["end"][axis], strides[axis]
        )
        for axis in range(rank)
    )


@st.composite
def slices(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """A tensor, and arguments of a slice of it that uses any of the settings, also beyond the tensor's ends."""
    x = numbered(*draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    bounds, flags = st.integers(-8, 8), st.booleans()
    arguments: dict[str, list[Any]] = {name: [draw(bounds) for _ in x.shape] for name in ("begin", "end")}
    if draw(flags):
        arguments["stride"] = [draw(st.sampled_from([1, 2, 3, 7, -1, -2, -3, -7])) for _ in x.shape]
    for name in MASKS:
        if draw(flags):
            arguments[name] = [draw(flags) for _ in x.shape]
    for axis, size in enumerate(x.shape):
        if arguments.get("squeeze_mask", [False] * x.ndim)[axis]:
            arguments["begin"][axis] = draw(st.integers(-size, size - 1))
    return x, arguments


@pytest.mark.parametrize("stride", [1, 2, 4, -1, -2, -4])
@pytest.mark.parametrize(("begin", "end"), list(product(BOUNDS, BOUNDS)), ids=str)
def test_slice_of_one_axis_is_numpys(begin: int, end: int, stride: int) -> None:
    x = np.arange(7, dtype=np.float32)
    np.testing.assert_array_equal(handler("slice_by_index")(x, begin=[begin], end=[end], stride=[stride]), x[begin:end:stride])


@given(case=slices())
@settings(max_examples=100, deadline=None)
def test_slice_by_index_is_numpys_for_all_settings_at_once(case: tuple[np.ndarray, dict[str, list[Any]]]) -> None:
    x, arguments = case
    np.testing.assert_array_equal(handler("slice_by_index")(x, **arguments), x[numpy_index(arguments)])


@pytest.mark.parametrize("opset", definitions("slice_by_index"))
@pytest.mark.parametrize("stride", [1, 3, -1, -3])
@pytest.mark.parametrize("end_mask", [False, True])
@pytest.mark.parametrize("begin_mask", [False, True])
def test_slice_masks_open_their_side(begin_mask: bool, end_mask: bool, stride: int, opset: str) -> None:
    x = normal(2, 9)
    begin, end = (2, 7) if stride > 0 else (7, 2)
    wanted = x[:, None if begin_mask else begin : None if end_mask else end : stride]
    arguments = {
        "begin": [0, begin],
        "end": [2, end],
        "stride": [1, stride],
        "begin_mask": [True, begin_mask],
        "end_mask": [True, end_mask],
    }
    np.testing.assert_array_equal(handler("slice_by_index", opset)(x, **arguments), wanted)
    (got,) = run_program(lambda x: mb.slice_by_index(x=x, **arguments), x, opset=opset)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("opset", definitions("slice_by_index"))
@pytest.mark.parametrize("index", [0, 2, -1, -3])
@pytest.mark.parametrize("squeezed", [[True, False, False], [False, True, False], [True, False, True]], ids=str)
def test_slice_squeezes_single_indices(squeezed: list[bool], index: int, opset: str) -> None:
    wanted = X[tuple(index if drop else slice(1, 3) for drop in squeezed)]
    arguments = {
        "begin": [index if drop else 1 for drop in squeezed],
        "end": [0 if drop else 3 for drop in squeezed],
        "squeeze_mask": squeezed,
    }
    np.testing.assert_array_equal(handler("slice_by_index", opset)(X, **arguments), wanted)
    (got,) = run_program(lambda x: mb.slice_by_index(x=x, **arguments), X, opset=opset)
    np.testing.assert_array_equal(got, wanted)


def test_slice_flips_the_right_axis_behind_a_squeezed_one() -> None:
    arguments = {
        "begin": [1, 0, 4],
        "end": [0, 0, 0],
        "stride": [1, 1, -2],
        "begin_mask": [False, True, False],
        "end_mask": [False, True, True],
        "squeeze_mask": [True, False, False],
    }
    (got,) = run_program(lambda x: mb.slice_by_index(x=x, **arguments), X)
    np.testing.assert_array_equal(got, X[1, :, 4::-2])


def test_slice_takes_index_zero_where_a_squeezed_axis_is_masked_as_coremltools_does() -> None:
    arguments = {"begin": [2, 3, 4], "end": [0, 4, 5], "begin_mask": [True, False, False], "squeeze_mask": [True, False, True]}
    (got,) = run_program(lambda x: mb.slice_by_index(x=x, **arguments), X)
    np.testing.assert_array_equal(got, inferred("slice_by_index", x=X, **arguments))
    np.testing.assert_array_equal(got, X[0, 3:4, 4])


@pytest.mark.parametrize("opset", definitions("slice_by_index"))
def test_slice_takes_bounds_computed_while_running(opset: str) -> None:
    """Bounds may be of narrower types from iOS 17 on."""
    kind = np.int32 if opset == "iOS15" else np.int8
    for begin, end in [([0, 1, -2], [3, 3, 9]), ([-9, 3, 4], [2, 4, 5])]:

        def build(x: Any, begin: Any, end: Any) -> Any:
            return mb.slice_by_index(x=x, begin=begin, end=end, stride=np.array([2, 1, 1], kind))

        (got,) = run_program(build, X, np.array(begin, kind), np.array(end, kind), opset=opset)
        np.testing.assert_array_equal(got, X[numpy_index({"begin": begin, "end": end, "stride": [2, 1, 1]})])


@pytest.mark.parametrize("opset", definitions("slice_by_index"))
def test_slice_of_single_values_leaves_a_scalar_that_broadcasts(opset: str) -> None:
    def build(x: Any) -> Any:
        return mb.add(x=x, y=mb.slice_by_index(x=x, begin=[1, -1, 2], end=[0, 0, 0], squeeze_mask=[True] * 3))

    (got,) = run_program(build, X, opset=opset)
    np.testing.assert_array_equal(got, X + X[1, -1, 2])


REFUSED_SLICES = {
    "begin is short": ({"begin": [0, 0], "end": [1, 1, 1]}, "begin has 2 values, and x has 3 axes"),
    "end is long": ({"begin": [0, 0, 0], "end": [1, 1, 1, 1]}, "end has 4 values"),
    "stride is short": ({"begin": [0, 0, 0], "end": [1, 1, 1], "stride": [1]}, "stride has 1 values"),
    "a mask is short": ({"begin": [0, 0, 0], "end": [1, 1, 1], "end_mask": [True]}, "end_mask has 1 values"),
    "index is beyond the end": ({"begin": [3, 0, 0], "end": [0, 1, 1], "squeeze_mask": [True, False, False]}, "no index 3 on axis 0"),
    "index is before the start": ({"begin": [-4, 0, 0], "end": [0, 1, 1], "squeeze_mask": [True, False, False]}, "no index -4 on axis 0"),
}


@pytest.mark.parametrize("case", by_name(REFUSED_SLICES))
@pytest.mark.parametrize("operation", ["slice_by_index", "slice_update"])
def test_slices_that_do_not_fit_are_refused(operation: str, case: tuple[dict[str, list[Any]], str]) -> None:
    arguments, message = case
    with pytest.raises(PackageError, match=message):
        handler(operation, "iOS18")(*[X, X][: 1 + (operation == "slice_update")], **arguments)


def test_slice_of_stride_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        handler("slice_by_index")(X, begin=[0, 0, 0], end=[1, 1, 1], stride=[1, 0, 1])


def test_slice_that_is_declared_with_another_size_than_it_has_is_refused() -> None:
    """coremltools declares one value for any slice of an axis of size 1; here numpy has none."""
    with pytest.raises(PackageError, match="is declared"):
        run_program(lambda x: mb.slice_by_index(x=x, begin=[0], end=[-1]), normal(1))


@given(case=slices())
@settings(max_examples=100, deadline=None)
def test_slice_update_is_numpys_assignment_for_all_settings_at_once(case: tuple[np.ndarray, dict[str, list[Any]]]) -> None:
    x, arguments = case
    index = numpy_index(arguments)
    update = -1 - numbered(*x[index].shape)
    wanted = x.copy()
    wanted[index] = update
    before = x.copy()
    np.testing.assert_array_equal(handler("slice_update", "iOS18")(x, update, **arguments), wanted)
    np.testing.assert_array_equal(x, before)


UPDATES: dict[str, dict[str, list[Any]]] = {
    "forwards": {"begin": [1, 0, 1], "end": [3, 3, 4]},
    "from the end": {"begin": [-2, -4, -3], "end": [-1, -1, -1]},
    "steps": {"begin": [0, 1, 0], "end": [3, 4, 5], "stride": [2, 2, 3]},
    "backwards": {"begin": [2, 3, 4], "end": [0, 1, 0], "stride": [-1, -1, -2]},
    "open at both sides": {"begin": [1] * 3, "end": [2] * 3, "begin_mask": [True, False, True], "end_mask": [True, True, False]},
    "open backwards": {"begin": [1] * 3, "end": [2] * 3, "stride": [-1, 1, -2], "begin_mask": [True] * 3, "end_mask": [True] * 3},
    "squeezed": {"begin": [1, 0, -1], "end": [0, 4, 0], "squeeze_mask": [True, False, True]},
    "squeezed before a backward axis": {"begin": [1, 3, 0], "end": [0, 0, 5], "stride": [1, -1, 1], "squeeze_mask": [True, False, False]},
    "squeezed and open": {
        "begin": [2, 1, 1],
        "end": [0, 0, 4],
        "begin_mask": [True, False, False],
        "end_mask": [False, True, False],
        "squeeze_mask": [True, False, False],
    },
}


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("arguments", by_name(UPDATES))
def test_slice_update_in_a_package_leaves_its_input_alone(arguments: dict[str, list[Any]], computed: bool) -> None:
    wanted = X.copy()
    index = numpy_index(arguments)
    update = normal(*X[index].shape, seed=1)
    wanted[index] = update
    fixed = {name: value for name, value in arguments.items() if not (computed and name in ("begin", "end"))}
    if computed and "stride" in fixed:
        fixed["stride"] = np.array(fixed["stride"], np.int16)

    def build(x: Any, update: Any, **bounds: Any) -> Any:
        return mb.slice_update(x=x, update=update, **fixed, **bounds), mb.identity(x=x)

    def build_computed(x: Any, update: Any, begin: Any, end: Any) -> Any:
        return build(x, update, begin=begin, end=end)

    bounds = [np.array(arguments[name], np.int16) for name in ("begin", "end")] if computed else []
    got, before = run_program(build_computed if computed else build, X, update, *bounds, opset="iOS18")
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(before, X)


def test_slice_update_of_constants_is_coremltools_own() -> None:
    arguments, update = UPDATES["squeezed before a backward axis"], normal(3, 5, seed=1)
    (got,) = run_program(lambda x: mb.slice_update(x=x, update=update, **arguments), X, opset="iOS18")
    np.testing.assert_array_equal(got, inferred("slice_update", "iOS18", x=X, update=update, **arguments))


@pytest.mark.parametrize("shape", [(1, 4, 5), (5,), (1, 1, 1), (2, 4, 5, 1), (40,)], ids=str)
def test_slice_update_refuses_an_update_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(PackageError, match="is given for a slice of shape"):
        handler("slice_update", "iOS18")(X, normal(*shape), begin=[0, 0, 0], end=[2, 4, 5])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_slice_by_size_takes_so_many_values_or_the_rest(data: st.DataObject) -> None:
    x = numbered(*data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    begin = [data.draw(st.integers(0, size - 1)) for size in x.shape]
    count = [data.draw(st.just(-1) | st.integers(0, size - first)) for size, first in zip(x.shape, begin, strict=True)]
    signed = [first - size if data.draw(st.booleans()) else first for size, first in zip(x.shape, begin, strict=True)]
    wanted = x[tuple(slice(first, None if number == -1 else first + number) for first, number in zip(begin, count, strict=True))]
    np.testing.assert_array_equal(handler("slice_by_size")(x, begin=signed, size=count), wanted)


@pytest.mark.parametrize("computed", [(), ("begin",), ("size",), ("begin", "size")], ids=str)
@pytest.mark.parametrize("opset", definitions("slice_by_size"))
def test_slice_by_size_in_a_package_takes_constant_and_computed_bounds(opset: str, computed: tuple[str, ...]) -> None:
    """Bounds may be of narrower types from iOS 17 on."""
    kind = np.int32 if opset == "iOS15" else np.int16
    bounds = {"begin": np.array([1, 0, 2], kind), "size": np.array([2, -1, 1], kind)}
    fixed = {name: value for name, value in bounds.items() if name not in computed}
    builds = {
        (): lambda x: mb.slice_by_size(x=x, **fixed),
        ("begin",): lambda x, begin: mb.slice_by_size(x=x, begin=begin, **fixed),
        ("size",): lambda x, size: mb.slice_by_size(x=x, size=size, **fixed),
        ("begin", "size"): lambda x, begin, size: mb.slice_by_size(x=x, begin=begin, size=size),
    }
    (got,) = run_program(builds[computed], X, *[bounds[name] for name in computed], opset=opset)
    np.testing.assert_array_equal(got, X[1:, :, 2:3])


def test_slice_by_size_counts_a_negative_begin_from_the_end_as_coremltools_does() -> None:
    begin, size = [0, -2, -5], [-1, -1, 3]
    (got,) = run_program(lambda x, begin: mb.slice_by_size(x=x, begin=begin, size=size), X, np.array(begin, np.int32))
    np.testing.assert_array_equal(got, inferred("slice_by_size", x=X, begin=begin, size=size))
    np.testing.assert_array_equal(got, X[:, -2:, :3])


@pytest.mark.parametrize(("begin", "size"), [([3], [3]), ([6], [-1]), ([-6], [1]), ([0], [-2]), ([2], [2**40])], ids=str)
def test_slice_by_size_refuses_what_leaves_the_tensor(begin: list[int], size: list[int]) -> None:
    with pytest.raises(PackageError, match="leave axis 0 of size 5"):
        handler("slice_by_size")(normal(5), begin=begin, size=size)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_sliding_windows_puts_the_windows_axis_behind_the_one_they_come_from(data: st.DataObject) -> None:
    x = numbered(*data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    axis = data.draw(st.integers(0, x.ndim - 1))
    size, stride = data.draw(st.integers(1, x.shape[axis])), data.draw(st.integers(1, 7))
    windows = np.moveaxis(sliding_window_view(x, size, axis), -1, axis + 1)
    wanted = windows[(slice(None),) * axis + (slice(None, None, stride),)]
    signed = axis - x.ndim if data.draw(st.booleans()) else axis
    np.testing.assert_array_equal(handler("sliding_windows")(x, axis=signed, size=size, stride=stride), wanted)


@pytest.mark.parametrize("stride", [None, 1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", definitions("sliding_windows"))
def test_sliding_windows_in_a_package_are_one_apart_by_default(opset: str, axis: int, stride: int | None) -> None:
    settings = {} if stride is None else {"stride": stride}
    (got,) = run_program(lambda x: mb.sliding_windows(x=x, axis=axis, size=2, **settings), X, opset=opset)
    starts = range(0, X.shape[axis] - 1, stride or 1)
    wanted = np.stack([np.take(X, [start, start + 1], axis % 3) for start in starts], axis % 3)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("size", "stride"), [(6, 1), (0, 1), (2, 0), (2, -1)])
def test_sliding_windows_refuses_windows_that_do_not_fit(size: int, stride: int) -> None:
    with pytest.raises(PackageError, match="do not fit an axis of size 5"):
        handler("sliding_windows")(X, axis=2, size=size, stride=stride)


class Assignments(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        last, row, strided, single = x + 0, x + 0, x + 0, x + 0
        last[:, :, 1:3] = y
        row[1] = y[0, :, :1]
        strided[:, ::2, 3:] = y[:, :2]
        single[2, 1, -1] = 7.0
        return last, row, strided, single


def test_traced_assignments_to_slices_match_torch() -> None:
    """From iOS 18 on coremltools has an operation of its own for these."""
    y = normal(3, 4, 2, seed=1)
    got, wanted, operations = run_module(Assignments(), torch.from_numpy(X), torch.from_numpy(y), opset="iOS18")
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"output {index}")
    assert operations.count("slice_update") == 4


class Slices(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x[1], x[:, -1], x[..., 1::2], x[:, 1:-1, -3:], x.narrow(2, 1, 3), x.select(1, -2)[:2]


def test_traced_slices_match_torch() -> None:
    got, wanted, operations = run_module(Slices(), torch.from_numpy(X))
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"output {index}")
    assert {"slice_by_index"} <= set(operations)
