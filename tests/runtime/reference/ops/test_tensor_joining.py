from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from support.programs import close, handler, normal, run_module, run_program

X = normal(3, 4, 5)
STORED = [np.float32, np.float16, np.int32, np.bool_]
NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@pytest.mark.parametrize("reps", [[1, 1, 1], [2, 1, 1], [1, 3, 2]], ids=str)
def test_tile_repeats_like_numpy(reps: list[int]) -> None:
    np.testing.assert_array_equal(handler("tile")(X, reps=reps), np.tile(X, reps))
    (got,) = run_program(lambda x: mb.tile(x=x, reps=reps), X)
    np.testing.assert_array_equal(got, np.tile(X, reps))


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


@pytest.mark.parametrize("dtype", STORED, ids=lambda dtype: dtype.__name__)
def test_joining_operations_keep_stored_types_bit_for_bit(dtype: type) -> None:
    x = (100 * X).astype(dtype)
    for name, arguments, wanted in [
        ("identity", {}, x),
        ("tile", {"reps": [1, 2, 1]}, np.tile(x, [1, 2, 1])),
        ("pad", {"pad": [1, 1]}, np.pad(x, [(0, 0), (0, 0), (1, 1)])),
    ]:
        got = handler(name)(x, **arguments)
        assert got.dtype == dtype, name
        np.testing.assert_array_equal(got, wanted, err_msg=name)


class Joining(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        doubled = x.repeat_interleave(2, dim=-1)
        return (
            torch.cat([x[:, 1:], x[:, :1]], dim=1).unsqueeze(0),
            torch.nn.functional.pad(doubled, (3, 1)),
            torch.nn.functional.pad(x, (2, 1), mode="reflect"),
            torch.nn.functional.pad(x, (2, 1), mode="replicate"),
        )


def test_traced_joining_matches_torch() -> None:
    got, wanted, operations = run_module(Joining(), torch.from_numpy(X))
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"output {index}")
    assert {"concat", "pad"} <= set(operations)


def test_traced_shift_by_padding_and_reshaping_matches_torch() -> None:
    """The relative-attention trick: pad, flatten, cut and view again."""

    class Shift(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            padded = torch.nn.functional.pad(x, (0, 1)).reshape(1, 2, 4 * 8)
            return torch.nn.functional.pad(padded, (0, 3)).reshape(1, 2, 5, 7)[:, :, :4, 3:]

    (got,), (wanted,), _operations = run_module(Shift(), torch.from_numpy(normal(1, 2, 4, 7)))
    close(got, wanted)
