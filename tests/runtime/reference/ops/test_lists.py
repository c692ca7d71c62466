from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.ops.lists import MAX_LENGTH
from rvc_coreml.runtime.reference.program import ListType, TensorType
from rvc_coreml.runtime.reference.registry import find_handler
from support.programs import build_program, definitions, normal, run_program, write_program

OPERATIONS = ("make_list", "list_length", "list_read", "list_gather", "list_write", "list_scatter")
ELEMENT = TensorType("fp32", (2,))


def call(name: str, *arguments: Any, element: TensorType = ELEMENT) -> Any:
    """A handler, given tensors as arrays and told the type that a program would declare for its result."""
    handler = find_handler(name, "iOS15")
    assert handler is not None
    declared = {
        "list_read": element,
        "list_gather": TensorType(element.dtype, (None, *element.shape)),
        "list_write": ListType(element, None),
        "list_scatter": ListType(element, None),
    }
    tensors = [torch.from_numpy(item) if isinstance(item, np.ndarray) else item for item in arguments]
    return handler.function(*tensors, **({"declared": (declared[name],)} if handler.injected else {}))


def grown(model: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([model, np.zeros((max(length - len(model), 0), *model.shape[1:]), model.dtype)])


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(0, 4), st.lists(st.sampled_from(["write", "scatter"]), max_size=6))
def test_lists_behave_as_an_array_that_grows_with_zeros(data: st.DataObject, length: int, changes: Sequence[str]) -> None:
    ls, model, versions = call("make_list", [2], length), np.zeros((length, 2), np.float32), []
    for step, change in enumerate(changes):
        versions.append((ls, model.copy()))
        indices = data.draw(st.lists(st.integers(0, 7), min_size=change == "write", max_size=1 if change == "write" else 4))
        values = normal(len(indices), 2, seed=step)
        ls = call("list_write", ls, indices[0], values[0]) if change == "write" else call("list_scatter", ls, indices, values)
        model = grown(model, max(indices, default=-1) + 1)
        for index, value in zip(indices, values, strict=True):
            model[index] = value
    for version, wanted in [*versions, (ls, model)]:  # an earlier list is as it was
        assert call("list_length", version).item() == len(wanted)
        for index in range(len(wanted)):
            np.testing.assert_array_equal(call("list_read", version, index).numpy(), wanted[index])
        order = data.draw(st.lists(st.integers(0, len(wanted) - 1), max_size=5)) if len(wanted) else []
        np.testing.assert_array_equal(call("list_gather", version, order).numpy(), wanted[order])


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int32", "bool"])
@pytest.mark.parametrize("opset", definitions("make_list"))
def test_lists_in_packages_hold_every_type(opset: str, dtype: str) -> None:
    """The example of coremltools' own test: reads before a write, and writes beyond the end."""
    numpy_type = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}[dtype]
    a, b, rows = (np.array(value).astype(numpy_type) for value in ([1, 3], [2, 0], [[-1, 0], [-4, -5]]))

    def build(a: Any, b: Any) -> Any:
        ls = mb.make_list(init_length=2, elem_shape=(2,), dtype=dtype)
        first = mb.list_read(ls=ls, index=0)
        ls = mb.list_write(ls=ls, index=0, value=a)
        short = ls
        ls = mb.list_write(ls=ls, index=4, value=b)
        ls = mb.list_scatter(ls=ls, indices=[2, 1], value=rows)
        lengths = [mb.list_length(ls=short), mb.list_length(ls=ls)]
        return [first, mb.list_read(ls=ls, index=0), mb.list_gather(ls=ls, indices=[4, 2, 3, 1]), mb.list_read(ls=short, index=1), *lengths]

    got = run_program(build, a, b, opset=opset)
    zero = np.zeros(2, numpy_type)
    for value, wanted in zip(got[:4], [zero, a, [b, rows[0], zero, rows[1]], zero], strict=True):
        assert value.dtype == numpy_type
        np.testing.assert_array_equal(value, wanted)
    assert [value.item() for value in got[4:]] == [2, 5]


def test_indices_and_lengths_may_be_computed() -> None:
    x = normal(3, 4)

    def build(x: Any, start: Any) -> Any:
        start = mb.squeeze(x=start)
        ls = mb.make_list(init_length=mb.add(x=start, y=1), elem_shape=(3, 4))
        ls = mb.list_write(ls=ls, index=mb.add(x=start, y=start), value=x)
        indices = mb.mul(x=start, y=[2, 1, 0])
        return mb.list_gather(ls=ls, indices=indices), mb.list_read(ls=ls, index=mb.mul(x=start, y=2))

    gathered, read = run_program(build, x, np.array([1], np.int32))
    np.testing.assert_array_equal(gathered, [x, 0 * x, 0 * x])
    np.testing.assert_array_equal(read, x)


def test_elements_without_axes_and_with_several() -> None:
    x = normal(2, 3, 4)

    def build(x: Any) -> Any:
        single, cube = mb.make_list(init_length=1, elem_shape=()), mb.make_list(init_length=0, elem_shape=(2, 3, 4))
        single = mb.list_scatter(ls=single, indices=[1, 2], value=np.array([5, 6], np.float32))
        cube = mb.list_write(ls=cube, index=1, value=x)
        return mb.list_gather(ls=single, indices=[2, 0, 1]), mb.list_gather(ls=cube, indices=[0, 1])

    single, cube = run_program(build, x)
    np.testing.assert_array_equal(single, [6, 0, 5])
    np.testing.assert_array_equal(cube, [0 * x, x])


def test_an_open_shape_is_that_of_what_is_written() -> None:
    x = normal(3, 2)

    def build(x: Any) -> Any:
        ls = mb.make_list(init_length=2, elem_shape=("rows", 2))
        before = mb.list_read(ls=ls, index=0)
        ls = mb.list_write(ls=ls, index=1, value=x)
        return before, mb.list_read(ls=ls, index=0), mb.list_gather(ls=ls, indices=[1, 0])

    before, after, gathered = run_program(build, x)
    np.testing.assert_array_equal(before, np.zeros((1, 2)))
    np.testing.assert_array_equal(after, 0 * x)
    np.testing.assert_array_equal(gathered, [x, 0 * x])


def test_a_list_of_fixed_length_takes_writes_inside_it() -> None:
    x = normal(2)

    def build(x: Any) -> Any:
        ls = mb.make_list(init_length=3, dynamic_length=False, elem_shape=(2,))
        ls = mb.list_scatter(ls=mb.list_write(ls=ls, index=2, value=x), indices=[0], value=x_rows)
        return mb.list_gather(ls=ls, indices=[0, 1, 2]), mb.list_length(ls=ls)

    x_rows = 2 * x[None]
    gathered, length = run_program(build, x)
    np.testing.assert_array_equal(gathered, [2 * x, 0 * x, x])
    assert length.item() == 3


@pytest.mark.parametrize("write", ["list_write", "list_scatter"])
def test_a_list_of_fixed_length_does_not_grow(write: str) -> None:
    ls = call("make_list", [2], 3, False)
    last = call("list_write", ls, 2, normal(2))
    value = (3, normal(2)) if write == "list_write" else ([0, 3], normal(2, 2))
    for fixed in (ls, last):
        with pytest.raises(PackageError, match="the index 3 lies outside a list of 3 elements"):
            call(write, fixed, *value)


def loop_over_rows(x: Any, remaining: Any) -> Any:
    """Writes x * 1, x * 2, ... to a list for as many rounds as are asked for, last round first."""
    remaining = mb.squeeze(x=remaining)

    def body(remaining: Any, ls: Any) -> Any:
        following = mb.sub(x=remaining, y=1)
        return following, mb.list_write(ls=ls, index=following, value=mb.mul(x=x, y=mb.cast(x=remaining, dtype="fp32")))

    ls = mb.make_list(init_length=2, elem_shape=(2,))
    _remaining, ls = mb.while_loop(_cond=lambda remaining, ls: mb.cast(x=remaining, dtype="bool"), _body=body, loop_vars=(remaining, ls))
    return mb.list_length(ls=ls), mb.list_gather(ls=ls, indices=[0, 1])


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_lists_are_carried_through_loops(rounds: int) -> None:
    x = normal(2)
    length, gathered = run_program(loop_over_rows, x, np.array([rounds], np.int32))
    assert length.item() == max(rounds, 2)
    np.testing.assert_array_equal(gathered, [(index + 1) * x if index < rounds else 0 * x for index in range(2)])


def test_a_list_can_be_a_loops_only_variable() -> None:
    x = normal(2)

    def build(x: Any) -> Any:
        def body(ls: Any) -> Any:
            return mb.list_write(ls=ls, index=mb.list_length(ls=ls), value=mb.add(x=x, y=mb.list_read(ls=ls, index=0)))

        def unfinished(ls: Any) -> Any:
            return mb.cast(x=mb.sub(x=mb.list_length(ls=ls), y=4), dtype="bool")

        ls = mb.list_write(ls=mb.make_list(init_length=1, elem_shape=(2,)), index=0, value=x)
        ls = mb.while_loop(_cond=unfinished, _body=body, loop_vars=(ls,))
        return mb.list_gather(ls=ls[0] if isinstance(ls, tuple) else ls, indices=[0, 1, 2, 3])

    np.testing.assert_array_equal(run_program(build, x)[0], [x, 2 * x, 2 * x, 2 * x])


@pytest.mark.parametrize("wide", [False, True])
def test_a_branch_can_hand_back_a_list(wide: bool) -> None:
    x = normal(2)

    def build(x: Any, wide: Any) -> Any:
        ls = mb.list_write(ls=mb.make_list(init_length=1, elem_shape=(2,)), index=0, value=x)
        longer = mb.cond(
            pred=mb.cast(x=mb.squeeze(x=wide), dtype="bool"), _true_fn=lambda: mb.list_write(ls=ls, index=3, value=x), _false_fn=lambda: ls
        )
        return mb.list_length(ls=longer), mb.list_length(ls=ls), mb.list_read(ls=longer, index=0)

    length, before, first = run_program(build, x, np.array([wide], np.int32))
    assert (length.item(), before.item()) == (4 if wide else 1, 1)
    np.testing.assert_array_equal(first, x)


LIST = call("make_list", [2], 3)
BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "read behind the end": (("list_read", LIST, 3), "the index 3 lies outside a list of 3 elements"),
    "read before the start": (("list_read", LIST, -1), "the index -1 lies outside"),
    "gather behind the end": (("list_gather", LIST, [0, 7]), "the index 7 lies outside"),
    "gather before the start": (("list_gather", LIST, [-4]), "the index -4 lies outside"),
    "write before the start": (("list_write", LIST, -1, normal(2)), "the index -1 lies outside"),
    "scatter before the start": (("list_scatter", LIST, [1, -2], normal(2, 2)), "the index -2 lies outside"),
    "scatter of another number": (("list_scatter", LIST, [1], normal(2, 2)), "cannot be scattered to 1 indices"),
    "scatter of a scalar": (("list_scatter", LIST, [1], np.array(1.0)), "cannot be scattered"),
    "write of another shape": (("list_write", LIST, 0, normal(3)), r"shape \(3,\) is written to a list of \(2,\)"),
    "scatter of another rank": (("list_scatter", LIST, [0], normal(1, 2, 1)), r"shape \(2, 1\) is written to a list of \(2,\)"),
    "write far behind the end": (("list_write", LIST, MAX_LENGTH, normal(2)), "more than 1048576 are not supported"),
    "scatter far behind the end": (("list_scatter", LIST, [2**31 - 1], normal(1, 2)), "more than 1048576 are not supported"),
    "too long from the start": (("make_list", [2], 2**31 - 1), "more than 1048576 are not supported"),
    "shorter than nothing": (("make_list", [2], -1), "cannot have -1 elements"),
    "unknown type": (("make_list", [2], 1, True, "fp8"), "no lists of 'fp8'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_a_list_is_refused(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(PackageError, match=message):
        call(*arguments)


def test_memory_for_what_was_never_written_is_limited(tmp_path: Path) -> None:
    x = normal(2)
    program = build_program(
        lambda x, end: mb.list_gather(
            ls=mb.list_write(ls=mb.make_list(elem_shape=(2,)), index=mb.squeeze(x=end), value=x), indices=np.arange(100_000)
        ),
        [x, np.array([0], np.int32)],
    )
    path = write_program(program, tmp_path / "model.mlpackage")
    inputs = {"x": x, "end": np.array([99_999], np.int32)}
    assert next(iter(ReferenceModel(path).predict(inputs).values())).shape == (100_000, 2)
    with pytest.raises(PackageError, match=r"list_gather.*(limit|more than)"):
        ReferenceModel(path, memory_limit=500_000).predict(inputs)


def test_an_error_in_a_package_names_the_operation() -> None:
    with pytest.raises(PackageError, match=r"too_far \(list_read\): the index 5 lies outside a list of 1 elements"):
        run_program(
            lambda x, at: mb.list_read(ls=mb.make_list(elem_shape=(2,)), index=mb.squeeze(x=at), name="too_far"),
            normal(2),
            np.array([5], np.int32),
        )


def test_every_list_operation_has_one_definition() -> None:
    assert {name: definitions(name) for name in OPERATIONS} == {name: ["iOS15"] for name in OPERATIONS}
