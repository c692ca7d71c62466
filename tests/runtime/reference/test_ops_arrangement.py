from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from support.programs import by_name, close, handler, normal, run_module, run_program

X = normal(3, 4, 5)
STORED = [np.float32, np.float16, np.int32, np.bool_]
NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
RESHAPES = {
    "all given": ([5, 4, 3], (5, 4, 3)),
    "flattened": ([-1], (60,)),
    "rest inferred": ([2, -1, 3], (2, 10, 3)),
    "axis kept": ([0, 5, 4], (3, 5, 4)),
    "axes kept, rest inferred": ([0, 0, -1], (3, 4, 5)),
    "rank raised": ([1, 3, 2, 2, 5], (1, 3, 2, 2, 5)),
}


@pytest.mark.parametrize("case", by_name(RESHAPES))
@pytest.mark.parametrize("dtype", STORED, ids=lambda dtype: dtype.__name__)
def test_reshape_keeps_values_and_type(dtype: type, case: tuple[list[int], tuple[int, ...]]) -> None:
    shape, wanted = case
    got = handler("reshape")(X.astype(dtype), shape=shape)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, X.astype(dtype).reshape(wanted))


@pytest.mark.parametrize("case", by_name(RESHAPES))
def test_reshape_in_a_package_keeps_values(case: tuple[list[int], tuple[int, ...]]) -> None:
    (got,) = run_program(lambda x: mb.reshape(x=x, shape=case[0]), X)
    np.testing.assert_array_equal(got, X.reshape(case[1]))


@pytest.mark.parametrize(("shape", "wanted"), [([0, -1], (4, 15)), ([1, 0, -1, 0], (1, 3, 4, 5))], ids=str)
def test_reshape_aligns_zeros_to_the_right_where_ranks_differ(shape: list[int], wanted: tuple[int, ...]) -> None:
    (got,) = run_program(lambda x: mb.reshape(x=x, shape=shape), X)
    np.testing.assert_array_equal(got, X.reshape(wanted))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("perm", list(permutations(range(3))), ids=str)
def test_transpose_orders_axes(perm: tuple[int, ...], signed: bool) -> None:
    axes = [axis - 3 if signed else axis for axis in perm]
    np.testing.assert_array_equal(handler("transpose")(X, perm=axes), X.transpose(perm))
    (got,) = run_program(lambda x: mb.transpose(x=x, perm=axes), X)
    np.testing.assert_array_equal(got, X.transpose(perm))


@pytest.mark.parametrize("axes", [[0], [1], [3], [-1], [-4], [0, 1], [1, 3], [3, 1], [0, -1], [-1, -3], [2, 0]], ids=str)
def test_expand_dims_inserts_axes_counted_in_the_result(axes: list[int]) -> None:
    wanted = np.expand_dims(X, tuple(axes))
    np.testing.assert_array_equal(handler("expand_dims")(X, axes=axes), wanted)
    (got,) = run_program(lambda x: mb.expand_dims(x=x, axes=axes), X)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("reps", [[1, 1, 1], [2, 1, 1], [1, 3, 2]], ids=str)
def test_tile_repeats_like_numpy(reps: list[int]) -> None:
    np.testing.assert_array_equal(handler("tile")(X, reps=reps), np.tile(X, reps))
    (got,) = run_program(lambda x: mb.tile(x=x, reps=reps), X)
    np.testing.assert_array_equal(got, np.tile(X, reps))


@pytest.mark.parametrize("axes", [None, [0], [-1], [0, 2], [-1, -2]], ids=str)
def test_reverse_flips_axes_and_all_by_default(axes: list[int] | None) -> None:
    wanted = np.flip(X, axes)
    np.testing.assert_array_equal(handler("reverse")(X, axes=axes), wanted)
    (got,) = run_program(lambda x: mb.reverse(x=x, **({} if axes is None else {"axes": axes})), X)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_concat_joins_or_interleaves(number: int, axis: int, interleave: bool) -> None:
    parts = [normal(2, 3, 4, seed=seed) for seed in range(number)]
    wanted = np.concatenate(parts, axis)
    if interleave:
        lanes = np.moveaxis(np.empty_like(wanted), axis, 0)
        for lane, part in enumerate(parts):
            lanes[lane::number] = np.moveaxis(part, axis, 0)
        wanted = np.moveaxis(lanes, 0, axis)
    np.testing.assert_array_equal(handler("concat")(parts, axis=axis, interleave=interleave), wanted)
    if number == 2:
        (got,) = run_program(lambda x, y: mb.concat(values=(x, y), axis=axis, interleave=interleave), *parts)
        np.testing.assert_array_equal(got, wanted)


def test_concat_joins_values_with_constants_of_other_lengths_in_order() -> None:
    first, last = normal(2, 1, 4, seed=1), normal(2, 5, 4, seed=2)
    x = normal(2, 3, 4)
    (got,) = run_program(lambda x: mb.concat(values=(first, x, last), axis=1), x)
    np.testing.assert_array_equal(got, np.concatenate([first, x, last], 1))


PADS = [[1, 2], [0, 3], [2, 0], [0, 0], [1, 2, 0, 3], [0, 0, 2, 1], [2, 1, 0, 0], [1, 0, 2, 1, 3, 2]]


@pytest.mark.parametrize("pad", PADS, ids=str)
@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_pad_surrounds_the_last_axes(mode: str, pad: list[int]) -> None:
    amounts = [(0, 0)] * (3 - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    wanted = np.pad(X, amounts, mode=NUMPY_MODES[mode])
    np.testing.assert_array_equal(handler("pad")(X, pad=pad, mode=mode), wanted)
    (got,) = run_program(lambda x: mb.pad(x=x, pad=pad, mode=mode), X)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("value", [0.0, -1e4, 0.5])
def test_pad_fills_with_its_constant(value: float) -> None:
    wanted = np.pad(X, [(0, 0), (1, 2), (3, 0)], constant_values=value)
    np.testing.assert_array_equal(handler("pad")(X, pad=[1, 2, 3, 0], constant_val=value), wanted)
    (got,) = run_program(lambda x: mb.pad(x=x, pad=[1, 2, 3, 0], mode="constant", constant_val=np.float32(value)), X)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("mode", NUMPY_MODES)
@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 4, 6), (1, 2, 3, 4, 6)], ids=str)
def test_pad_of_the_last_axis_works_at_every_rank(shape: tuple[int, ...], mode: str) -> None:
    x = normal(*shape)
    wanted = np.pad(x, [(0, 0)] * (len(shape) - 1) + [(2, 3)], mode=NUMPY_MODES[mode])
    np.testing.assert_array_equal(handler("pad")(x, pad=[2, 3], mode=mode), wanted)


BOUNDS = [0, 1, 3, 6, -1, -3, -6, 9, -9]


@pytest.mark.parametrize("stride", [1, 2, 4, -1, -2, -4])
@pytest.mark.parametrize(("begin", "end"), list(product(BOUNDS, BOUNDS)), ids=str)
def test_slice_of_one_axis_is_numpys(begin: int, end: int, stride: int) -> None:
    x = np.arange(7, dtype=np.float32)
    np.testing.assert_array_equal(handler("slice_by_index")(x, begin=[begin], end=[end], stride=[stride]), x[begin:end:stride])


@pytest.mark.parametrize("stride", [1, 3, -1, -3])
@pytest.mark.parametrize("end_mask", [False, True])
@pytest.mark.parametrize("begin_mask", [False, True])
def test_slice_masks_open_their_side(begin_mask: bool, end_mask: bool, stride: int) -> None:
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
    np.testing.assert_array_equal(handler("slice_by_index")(x, **arguments), wanted)
    (got,) = run_program(lambda x: mb.slice_by_index(x=x, **arguments), x)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("index", [0, 2, -1, -3])
@pytest.mark.parametrize("squeezed", [[True, False, False], [False, True, False], [True, False, True]], ids=str)
def test_slice_squeezes_single_indices(squeezed: list[bool], index: int) -> None:
    wanted = X[tuple(index if drop else slice(1, 3) for drop in squeezed)]
    arguments = {
        "begin": [index if drop else 1 for drop in squeezed],
        "end": [0 if drop else 3 for drop in squeezed],
        "squeeze_mask": squeezed,
    }
    np.testing.assert_array_equal(handler("slice_by_index")(X, **arguments), wanted)
    (got,) = run_program(lambda x: mb.slice_by_index(x=x, **arguments), X)
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


@pytest.mark.parametrize("dtype", STORED, ids=lambda dtype: dtype.__name__)
def test_moving_operations_keep_stored_types_bit_for_bit(dtype: type) -> None:
    x = (100 * X).astype(dtype)
    for name, arguments, wanted in [
        ("transpose", {"perm": [2, 0, 1]}, x.transpose(2, 0, 1)),
        ("slice_by_index", {"begin": [0, 3, 1], "end": [3, 0, 5], "stride": [2, -1, 1]}, x[:, 3:0:-1, 1:][::2]),
        ("tile", {"reps": [1, 2, 1]}, np.tile(x, [1, 2, 1])),
        ("reverse", {"axes": [1]}, x[:, ::-1]),
        ("expand_dims", {"axes": [0]}, x[None]),
        ("pad", {"pad": [1, 1]}, np.pad(x, [(0, 0), (0, 0), (1, 1)])),
    ]:
        got = handler(name)(x, **arguments)
        assert got.dtype == dtype, name
        np.testing.assert_array_equal(got, wanted, err_msg=name)


class Arrangement(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        doubled = x.repeat_interleave(2, dim=-1)
        return (
            x.transpose(1, 2).flip(1),
            x.reshape(1, 3, 2, 2, 5).permute(0, 2, 1, 4, 3).flatten(1, 2),
            torch.cat([x[:, 1:], x[:, :1]], dim=1).unsqueeze(0),
            torch.nn.functional.pad(doubled, (3, 1)),
            torch.nn.functional.pad(x, (2, 1), mode="reflect"),
            torch.nn.functional.pad(x, (2, 1), mode="replicate"),
            x[..., 1::2][:, -1],
        )


def test_traced_arrangement_matches_torch() -> None:
    got, wanted, operations = run_module(Arrangement(), torch.from_numpy(X))
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"output {index}")
    assert {"transpose", "reshape", "concat", "pad", "slice_by_index", "reverse"} <= set(operations)


def test_traced_shift_by_padding_and_reshaping_matches_torch() -> None:
    """The relative-attention trick: pad, flatten, cut and view again."""

    class Shift(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            padded = torch.nn.functional.pad(x, (0, 1)).reshape(1, 2, 4 * 8)
            return torch.nn.functional.pad(padded, (0, 3)).reshape(1, 2, 5, 7)[:, :, :4, 3:]

    (got,), (wanted,), _operations = run_module(Shift(), torch.from_numpy(normal(1, 2, 4, 7)))
    close(got, wanted)
