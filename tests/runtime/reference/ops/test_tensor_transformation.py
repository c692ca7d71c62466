from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.programs import by_name, definitions, handler, inferred, normal, numbered, run_module, run_program

X = normal(3, 4, 5)
STORED = [np.float32, np.float16, np.int32, np.bool_]
WIDENED = [*STORED, np.int8, np.uint8, np.int16, np.uint16]
STORED_BY_OPSET = {"iOS15": STORED, "iOS16": STORED, "iOS17": WIDENED, "iOS18": WIDENED}
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=5)
RESHAPES = {
    "all given": ([5, 4, 3], (5, 4, 3)),
    "flattened": ([-1], (60,)),
    "rest inferred": ([2, -1, 3], (2, 10, 3)),
    "axis kept": ([0, 5, 4], (3, 5, 4)),
    "axes kept, rest inferred": ([0, 0, -1], (3, 4, 5)),
    "rest inferred, last axis kept": ([-1, 4, 0], (3, 4, 5)),
    "rank raised": ([1, 3, 2, 2, 5], (1, 3, 2, 2, 5)),
}


@pytest.mark.parametrize("opset", definitions("reshape"))
@pytest.mark.parametrize("case", by_name(RESHAPES))
@pytest.mark.parametrize("dtype", STORED, ids=lambda dtype: dtype.__name__)
def test_reshape_keeps_values_and_type(dtype: type, case: tuple[list[int], tuple[int, ...]], opset: str) -> None:
    shape, wanted = case
    got = handler("reshape", opset)(X.astype(dtype), shape=shape)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, X.astype(dtype).reshape(wanted))


@pytest.mark.parametrize("opset", definitions("reshape"))
@pytest.mark.parametrize("case", by_name(RESHAPES))
def test_reshape_in_a_package_keeps_values(case: tuple[list[int], tuple[int, ...]], opset: str) -> None:
    (got,) = run_program(lambda x: mb.reshape(x=x, shape=case[0]), X, opset=opset)
    np.testing.assert_array_equal(got, X.reshape(case[1]))


@st.composite
def reshapes(draw: st.DrawFn, aligned_right: bool) -> tuple[list[int], list[int], list[int]]:
    """A shape, a shape of as many values, and how a program may write the latter."""
    shape, wanted = draw(SHAPES), [1] * draw(st.integers(1, 5))
    for size in shape:  # each axis goes into one of the new ones whole
        wanted[draw(st.integers(0, len(wanted) - 1))] *= size
    written = list(wanted)
    if aligned_right or len(shape) == len(wanted):
        for back in range(1, len(wanted) + 1):
            if wanted[-back] == (shape[-back] if back <= len(shape) else 1) and draw(st.booleans()):
                written[-back] = 0
    if draw(st.booleans()):
        written[draw(st.integers(0, len(wanted) - 1))] = -1
    return shape, wanted, written


@pytest.mark.parametrize("opset", definitions("reshape"))
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_reshape_finds_the_shape_that_zeros_and_minus_one_stand_for(opset: str, data: st.DataObject) -> None:
    shape, wanted, written = data.draw(reshapes(opset == "iOS17"))
    x = numbered(*shape)
    np.testing.assert_array_equal(handler("reshape", opset)(x, shape=written), x.reshape(wanted))


@pytest.mark.parametrize(
    ("shape", "wanted"), [([0, -1], (4, 15)), ([1, 0, -1, 0], (1, 3, 4, 5)), ([0, 0, -1, 4, 5], (1, 1, 3, 4, 5))], ids=str
)
def test_reshape_aligns_zeros_to_the_right_where_ranks_differ(shape: list[int], wanted: tuple[int, ...]) -> None:
    (got,) = run_program(lambda x: mb.reshape(x=x, shape=shape), X, opset="iOS17")
    np.testing.assert_array_equal(got, X.reshape(wanted))
    with pytest.raises(PackageError, match="has a 0"):
        handler("reshape", "iOS16")(X, shape=shape)


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
def test_reshape_takes_a_shape_computed_while_running(opset: str) -> None:
    for shape in ([6, 10], [-1, 4, 0], [5, -1, 1]):
        target = np.array(shape, np.int32)
        (got,) = run_program(lambda x, shape: mb.reshape(x=x, shape=shape), X, target, opset=opset)
        np.testing.assert_array_equal(got, X.reshape([5 if size == 0 else size for size in shape]))


@pytest.mark.parametrize("shape", [[7, -1], [-1, -1], [3, 4, 6], [-2, -30]], ids=str)
@pytest.mark.parametrize("opset", definitions("reshape"))
def test_reshape_refuses_shapes_of_another_size(opset: str, shape: list[int]) -> None:
    with pytest.raises(PackageError, match="reshape"):
        run_program(lambda x, shape: mb.reshape(x=x, shape=shape), X, np.array(shape, np.int32), opset=opset)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_reshape_like_joins_parts_of_the_references_shapes(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.tuples(SHAPES, st.integers(-6, 6), st.integers(-6, 6), st.booleans()), min_size=1, max_size=3))
    wanted = [size for shape, begin, end, mask in parts for size in (shape[begin:] if mask else shape[begin:end])]
    x = numbered(*data.draw(st.permutations(wanted)))
    references, begins, ends, masks = zip(*parts, strict=True)
    got = handler("reshape_like")(
        x,
        [np.zeros(shape, np.int8) for shape in references],
        begins=[torch.tensor(begin) for begin in begins],
        ends=[torch.tensor(end) for end in ends],
        end_masks=[torch.tensor(mask) for mask in masks],
    )
    np.testing.assert_array_equal(got, x.reshape(wanted))


@pytest.mark.parametrize("masks", [(False, True), (False, False), (True, False)], ids=str)
@pytest.mark.parametrize(("opset", "kind"), [("iOS16", np.int32), ("iOS16", np.bool_), ("iOS17", np.uint8), ("iOS17", np.int16)])
def test_reshape_like_in_a_package_reads_references_of_any_type(opset: str, kind: type, masks: tuple[bool, bool]) -> None:
    x = normal(120)
    first, second = np.zeros((2, 3, 4) if not masks[0] else (2, 3), kind), np.zeros((1, 5, 4), kind)

    def build(x: Any, first: Any, second: Any) -> Any:
        return mb.reshape_like(x=x, ref_tensors=(first, second), begins=(0, 1), ends=(2, 3), end_masks=masks)

    (got,) = run_program(build, x, first, second, opset=opset)
    np.testing.assert_array_equal(got, x.reshape(2, 3, 5, 4))


def test_reshape_like_refuses_lists_of_different_lengths() -> None:
    one, yes = torch.tensor(1), torch.tensor(True)
    with pytest.raises(ValueError, match="shorter"):
        handler("reshape_like")(X, [X, X], begins=[one], ends=[one], end_masks=[yes])


@pytest.mark.parametrize("opset", definitions("transpose"))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("perm", list(permutations(range(3))), ids=str)
def test_transpose_orders_axes(perm: tuple[int, ...], signed: bool, opset: str) -> None:
    axes = [axis - 3 if signed else axis for axis in perm]
    np.testing.assert_array_equal(handler("transpose", opset)(X, perm=axes), X.transpose(perm))
    (got,) = run_program(lambda x: mb.transpose(x=x, perm=axes), X, opset=opset)
    np.testing.assert_array_equal(got, X.transpose(perm))


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_transpose_orders_axes_of_any_rank(data: st.DataObject) -> None:
    x = numbered(*data.draw(SHAPES))
    perm = list(data.draw(st.permutations(range(x.ndim))))
    signed = [axis - x.ndim if data.draw(st.booleans()) else axis for axis in perm]
    np.testing.assert_array_equal(handler("transpose")(x, perm=signed), np.einsum(x, list(range(x.ndim)), perm))


@pytest.mark.parametrize("perm", [[0, 1], [0, 1, 3], [0, 1, 1], [0, 1, -4]], ids=str)
def test_transpose_refuses_what_is_no_permutation(perm: list[int]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        handler("transpose")(X, perm=perm)


@pytest.mark.parametrize("opset", definitions("expand_dims"))
@pytest.mark.parametrize("axes", [[0], [1], [3], [-1], [-4], [0, 1], [1, 3], [3, 1], [0, -1], [-1, -3], [2, 0]], ids=str)
def test_expand_dims_inserts_axes_counted_in_the_result(axes: list[int], opset: str) -> None:
    wanted = np.expand_dims(X, tuple(axes))
    np.testing.assert_array_equal(handler("expand_dims", opset)(X, axes=axes), wanted)
    (got,) = run_program(lambda x: mb.expand_dims(x=x, axes=axes), X, opset=opset)
    np.testing.assert_array_equal(got, wanted)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_expand_dims_is_coremltools_own(data: st.DataObject) -> None:
    """Axes that are named twice are among these."""
    x = numbered(*data.draw(st.lists(st.integers(1, 3), max_size=3)))
    number = data.draw(st.integers(1, 3))
    rank = x.ndim + number
    axes = data.draw(st.lists(st.integers(-rank, rank - 1), min_size=number, max_size=number))
    np.testing.assert_array_equal(handler("expand_dims")(x, axes=axes), inferred("expand_dims", x=x, axes=axes))


@pytest.mark.parametrize("axes", [[4], [-5], [0, 5]], ids=str)
def test_expand_dims_refuses_axes_beyond_the_result(axes: list[int]) -> None:
    with pytest.raises(PackageError, match="there is no axis"):
        handler("expand_dims")(X, axes=axes)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_squeeze_drops_axes_of_size_one_among_those_named(data: st.DataObject) -> None:
    x = numbered(*data.draw(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=5)))
    named = data.draw(st.none() | st.lists(st.integers(0, x.ndim - 1), unique=True))
    axes = None if named is None else [axis - x.ndim if data.draw(st.booleans()) else axis for axis in named]
    kept = [size for axis, size in enumerate(x.shape) if size != 1 or (named is not None and axis not in named)]
    np.testing.assert_array_equal(handler("squeeze")(x, axes=axes), x.reshape(kept))


@pytest.mark.parametrize("opset", definitions("squeeze"))
@pytest.mark.parametrize("axes", [None, [0], [-1], [0, 2], [1], [2, -1, 0]], ids=str)
def test_squeeze_in_a_package_leaves_larger_axes(axes: list[int] | None, opset: str) -> None:
    x = normal(1, 3, 1, 2, 1)
    gone = {axis % 5 for axis in axes} if axes is not None else set(range(5))
    wanted = x.reshape([size for axis, size in enumerate(x.shape) if size > 1 or axis not in gone])
    (got,) = run_program(lambda x: mb.squeeze(x=x, **({} if axes is None else {"axes": axes})), x, opset=opset)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("opset", definitions("squeeze"))
def test_squeeze_of_all_axes_leaves_a_scalar_that_broadcasts(opset: str) -> None:
    (got,) = run_program(lambda x, y: mb.add(x=mb.squeeze(x=x), y=y), normal(1, 1), X, opset=opset)
    np.testing.assert_array_equal(got, X + normal(1, 1)[0, 0])


@pytest.mark.parametrize("opset", definitions("reverse"))
@pytest.mark.parametrize("axes", [None, [0], [-1], [0, 2], [-1, -2]], ids=str)
def test_reverse_flips_axes_and_all_by_default(axes: list[int] | None, opset: str) -> None:
    wanted = np.flip(X, axes)
    np.testing.assert_array_equal(handler("reverse", opset)(X, axes=axes), wanted)
    (got,) = run_program(lambda x: mb.reverse(x=x, **({} if axes is None else {"axes": axes})), X, opset=opset)
    np.testing.assert_array_equal(got, wanted)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_reverse_flips_any_axes(data: st.DataObject) -> None:
    x = numbered(*data.draw(SHAPES))
    axes = data.draw(st.none() | st.lists(st.integers(0, x.ndim - 1), unique=True))
    signed = None if axes is None else [axis - x.ndim if data.draw(st.booleans()) else axis for axis in axes]
    flipped = range(x.ndim) if axes is None else axes
    wanted = x[tuple(slice(None, None, -1 if axis in flipped else 1) for axis in range(x.ndim))]
    np.testing.assert_array_equal(handler("reverse")(x, axes=signed), wanted)


def reversed_sequences(x: np.ndarray, lengths: list[int], seq_axis: int, batch_axis: int) -> np.ndarray:
    out = x.copy()
    items, results = np.moveaxis(x, (batch_axis, seq_axis), (0, 1)), np.moveaxis(out, (batch_axis, seq_axis), (0, 1))
    for item, length in enumerate(lengths):
        results[item, :length] = items[item, :length][::-1]
    return out


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_reverse_sequence_reverses_the_first_values_of_each_item(data: st.DataObject) -> None:
    x = numbered(*data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    batch, along = data.draw(st.permutations(range(x.ndim)))[:2]
    lengths = [data.draw(st.integers(0, x.shape[along])) for _ in range(x.shape[batch])]
    signed = [axis - x.ndim if data.draw(st.booleans()) else axis for axis in (along, batch)]
    got = handler("reverse_sequence")(x, lengths=lengths, seq_axis=signed[0], batch_axis=signed[1])
    np.testing.assert_array_equal(got, reversed_sequences(x, lengths, along, batch))


@pytest.mark.parametrize("opset", definitions("reverse_sequence"))
@pytest.mark.parametrize("along", [1, -1])
def test_reverse_sequence_in_a_package_takes_constant_and_computed_lengths(opset: str, along: int) -> None:
    """Lengths may be of narrower types from iOS 17 on. The batch's axis is 0 if it is not named."""
    kind = np.int32 if opset == "iOS15" else np.int16
    lengths = [2, 0, 4]
    wanted = reversed_sequences(X, lengths, along, 0)
    (got,) = run_program(lambda x: mb.reverse_sequence(x=x, lengths=np.array(lengths, kind), seq_axis=along), X, opset=opset)
    np.testing.assert_array_equal(got, wanted)

    def build(x: Any, lengths: Any) -> Any:
        return mb.reverse_sequence(x=x, lengths=lengths, seq_axis=along, batch_axis=0)

    (got,) = run_program(build, X, np.array(lengths, kind), opset=opset)
    np.testing.assert_array_equal(got, wanted)


REFUSED = {
    "one axis for both, as by default": ([1, 1, 1], {}, "both the sequence's and the batch's"),
    "too few lengths": ([1, 1], {"seq_axis": 1}, "2 lengths are given for a batch of 3"),
    "too long": ([1, 5, 1], {"seq_axis": 1}, "leave the range 0 to 4"),
    "negative": ([1, -1, 1], {"seq_axis": 1}, "leave the range 0 to 4"),
    "no such axis": ([1, 1, 1], {"seq_axis": 3}, "there is no axis 3"),
}


@pytest.mark.parametrize("case", by_name(REFUSED))
def test_reverse_sequence_refuses_what_has_no_meaning(case: tuple[list[int], dict[str, int], str]) -> None:
    lengths, axes, message = case
    with pytest.raises(PackageError, match=message):
        handler("reverse_sequence")(X, lengths=lengths, **axes)


Build = Callable[[Any], Any]
MOVES: dict[str, tuple[Build, Callable[[np.ndarray], np.ndarray]]] = {
    "reshape": (lambda x: mb.reshape(x=x, shape=[4, -1]), lambda x: x.reshape(4, 15)),
    "reshape_like": (
        lambda x: mb.reshape_like(x=x, ref_tensors=(x, x), begins=(1, 0), ends=(0, 1), end_masks=(True, False)),
        lambda x: x.reshape(4, 5, 3),
    ),
    "transpose": (lambda x: mb.transpose(x=x, perm=[2, 0, 1]), lambda x: np.moveaxis(x, 2, 0)),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[0, 2]), lambda x: x[None, :, None]),
    "squeeze": (lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[1])), lambda x: x),
    "reverse": (lambda x: mb.reverse(x=x, axes=[1]), lambda x: x[:, ::-1]),
    "reverse_sequence": (
        lambda x: mb.reverse_sequence(x=x, lengths=[4, 1, 3], seq_axis=1),
        lambda x: reversed_sequences(x, [4, 1, 3], 1, 0),
    ),
    "slice_by_index": (
        lambda x: mb.slice_by_index(x=x, begin=[0, 3, 1], end=[3, 0, 5], stride=[2, -1, 1]),
        lambda x: x[::2, 3:0:-1, 1:],
    ),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[1, 0, 2], size=[2, -1, 1]), lambda x: x[1:, :, 2:3]),
    "sliding_windows": (
        lambda x: mb.sliding_windows(x=x, axis=2, size=3, stride=2),
        lambda x: np.stack([x[:, :, :3], x[:, :, 2:]], 2),
    ),
    "slice_update": (
        lambda x: mb.slice_update(x=x, update=mb.reverse(x=x), begin=[2, 3, 4], end=[0, 0, 0], stride=[-1] * 3, end_mask=[True] * 3),
        lambda x: x,
    ),
}
DEFINED = [
    (operation, opset, dtype)
    for operation in MOVES
    for opset in definitions(operation)
    for dtype in STORED_BY_OPSET[opset]
    if (operation, opset, dtype) != ("sliding_windows", "iOS15", np.bool_)
]


@pytest.mark.parametrize(("operation", "opset", "dtype"), DEFINED, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_moving_operations_keep_every_type_of_their_definition_bit_for_bit(operation: str, opset: str, dtype: type) -> None:
    x = (100 * X).astype(dtype) if dtype != np.bool_ else X > 0
    build, wanted = MOVES[operation]
    (got,) = run_program(build, x, opset=opset)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, wanted(x))


class Arrangement(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            x.transpose(1, 2).flip(1),
            x.reshape(1, 3, 2, 2, 5).permute(0, 2, 1, 4, 3).flatten(1, 2),
            x.unsqueeze(0).unsqueeze(-1).squeeze(0),
            x.flip((0, -1)),
            x[..., 1::2][:, -1],
        )


def test_traced_arrangement_matches_torch() -> None:
    got, wanted, operations = run_module(Arrangement(), torch.from_numpy(X))
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"output {index}")
    assert {"transpose", "reshape", "squeeze", "expand_dims", "slice_by_index", "reverse"} <= set(operations)
