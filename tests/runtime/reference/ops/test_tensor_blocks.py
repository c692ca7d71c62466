from __future__ import annotations

from itertools import product
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
from support.programs import build_program, by_name, close, definitions, handler, normal, numbered, run_module, run_program, write_program

FACTORS = {
    "depth_to_space": "block_size",
    "space_to_depth": "block_size",
    "pixel_shuffle": "upscale_factor",
    "pixel_unshuffle": "downscale_factor",
}
INVERSES = {"space_to_depth": "depth_to_space", "pixel_unshuffle": "pixel_shuffle"}
SIZES = st.integers(1, 3)


def spread(x: np.ndarray, factor: int, operation: str) -> np.ndarray:
    """Channels into blocks, one place of all blocks at a time."""
    n, c, h, w = x.shape
    depth = c // factor**2
    out = np.full((n, depth, h * factor, w * factor), np.nan, x.dtype)
    for channel, row, column in product(range(depth), range(factor), range(factor)):
        place = row * factor + column
        source = place * depth + channel if operation == "depth_to_space" else channel * factor**2 + place
        out[:, channel, row::factor, column::factor] = x[:, source]
    return out


@pytest.mark.parametrize("operation", ["depth_to_space", "pixel_shuffle"])
@given(n=SIZES, depth=SIZES, h=SIZES, w=SIZES, factor=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_channels_become_blocks_in_the_order_of_the_operation(operation: str, n: int, depth: int, h: int, w: int, factor: int) -> None:
    x = numbered(n, depth * factor**2, h, w)
    np.testing.assert_array_equal(handler(operation)(x, **{FACTORS[operation]: factor}), spread(x, factor, operation))


@pytest.mark.parametrize("operation", INVERSES)
@given(n=SIZES, depth=SIZES, h=SIZES, w=SIZES, factor=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_blocks_become_channels_in_the_order_of_the_operation(operation: str, n: int, depth: int, h: int, w: int, factor: int) -> None:
    x = numbered(n, depth * factor**2, h, w)
    np.testing.assert_array_equal(handler(operation)(spread(x, factor, INVERSES[operation]), **{FACTORS[operation]: factor}), x)


def test_depth_to_space_and_pixel_shuffle_are_those_of_core_mls_specification() -> None:
    """The example of ReorganizeDataLayerParams in NeuralNetwork.proto."""
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 8, 1, 2)
    np.testing.assert_array_equal(
        handler("depth_to_space")(x, block_size=2)[0],
        [[[1, 5, 2, 6], [9, 13, 10, 14]], [[3, 7, 4, 8], [11, 15, 12, 16]]],
    )
    np.testing.assert_array_equal(
        handler("pixel_shuffle")(x, upscale_factor=2)[0],
        [[[1, 3, 2, 4], [5, 7, 6, 8]], [[9, 11, 10, 12], [13, 15, 14, 16]]],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("operation", "opset"), [(name, opset) for name in FACTORS for opset in definitions(name)])
@pytest.mark.parametrize("factor", [2, 3])
def test_blocks_and_channels_in_a_package(operation: str, opset: str, factor: int, dtype: type) -> None:
    channels = normal(2, 2 * factor**2, 2, 3).astype(dtype)
    blocks = spread(channels, factor, INVERSES.get(operation, operation))
    x, wanted = (blocks, channels) if operation in INVERSES else (channels, blocks)
    value = np.uint32(factor) if operation == "pixel_unshuffle" else factor
    (got,) = run_program(lambda x: getattr(mb, operation)(x=x, **{FACTORS[operation]: value}), x, opset=opset)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("factor", [0, -2, 2])
@pytest.mark.parametrize("operation", FACTORS)
def test_sizes_that_cannot_be_divided_are_refused(operation: str, factor: int) -> None:
    with pytest.raises(PackageError, match="cannot be divided by"):
        handler(operation)(normal(1, 6, 3, 5), **{FACTORS[operation]: factor})
    with pytest.raises(PackageError, match="3 axes where 4 are expected"):
        handler(operation)(normal(4, 4, 4), **{FACTORS[operation]: 2})


def batched(x: np.ndarray, block: tuple[int, int], paddings: list[list[int]]) -> np.ndarray:
    """One item of the result for each place in a block, and then for each item of the input."""
    padded = np.pad(x, [(0, 0), (0, 0), *map(tuple, paddings)])
    return np.concatenate([padded[:, :, row :: block[0], column :: block[1]] for row in range(block[0]) for column in range(block[1])])


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int], list[list[int]]]:
    """An input, a block and paddings that make it divisible."""
    block = draw(SIZES), draw(SIZES)
    margins = [[draw(st.integers(0, 3)), draw(st.integers(0, 3))] for _ in block]
    sizes = []
    for factor, margin in zip(block, margins, strict=True):
        blocks = draw(st.integers(-(-(sum(margin) + 1) // factor), -(-(sum(margin) + 1) // factor) + 2))
        sizes.append(blocks * factor - sum(margin))
    return 1 + numbered(draw(SIZES), draw(SIZES), *sizes), block, margins


@given(case=batches())
@settings(max_examples=50, deadline=None)
def test_space_to_batch_gives_each_place_of_the_blocks_an_item(case: tuple[np.ndarray, tuple[int, int], list[list[int]]]) -> None:
    x, block, paddings = case
    wanted = batched(x, block, paddings)
    np.testing.assert_array_equal(handler("space_to_batch")(x, block_shape=list(block), paddings=[*paddings[0], *paddings[1]]), wanted)


@given(case=batches())
@settings(max_examples=50, deadline=None)
def test_batch_to_space_puts_them_back_and_crops(case: tuple[np.ndarray, tuple[int, int], list[list[int]]]) -> None:
    x, block, crops = case
    got = handler("batch_to_space")(batched(x, block, crops), block_shape=list(block), crops=[*crops[0], *crops[1]])
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("margins", [[[0, 0], [0, 0]], [[1, 1], [0, 3]], [[2, 0], [3, 0]]], ids=str)
def test_space_to_batch_and_back_in_a_package(margins: list[list[int]], dtype: type) -> None:
    x = normal(2, 3, 4, 6).astype(dtype)
    (got,) = run_program(lambda x: mb.space_to_batch(x=x, block_shape=[2, 3], paddings=margins), x, opset="iOS15")
    wanted = batched(x, (2, 3), margins)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, wanted)
    (got,) = run_program(lambda x: mb.batch_to_space(x=x, block_shape=[2, 3], crops=margins), wanted, opset="iOS15")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x)


REFUSED: dict[str, tuple[str, dict[str, list[int]], str]] = {
    "not divisible": ("space_to_batch", {"block_shape": [2, 2], "paddings": [1, 0, 0, 0]}, "cannot be divided"),
    "negative padding": ("space_to_batch", {"block_shape": [1, 1], "paddings": [-1, 0, 0, 0]}, "are not the amounts"),
    "three axes": ("space_to_batch", {"block_shape": [1, 1, 1], "paddings": [0, 0, 0, 0]}, "not a height and a width"),
    "empty block": ("space_to_batch", {"block_shape": [0, 1], "paddings": [0, 0, 0, 0]}, "cannot be divided"),
    "batch not divisible": ("batch_to_space", {"block_shape": [3, 1], "crops": [0, 0, 0, 0]}, "cannot be divided"),
    "too few crops": ("batch_to_space", {"block_shape": [1, 1], "crops": [0, 0]}, "are not the amounts"),
    "crops more than there is": ("batch_to_space", {"block_shape": [2, 2], "crops": [8, 9, 0, 0]}, "more than 16 by 8"),
}


@pytest.mark.parametrize("case", by_name(REFUSED))
def test_blocks_of_the_batch_that_do_not_fit_are_refused(case: tuple[str, dict[str, list[int]], str]) -> None:
    operation, arguments, message = case
    with pytest.raises(PackageError, match=message):
        handler(operation)(normal(4, 2, 8, 4), **arguments)


def test_moving_operations_keep_double_precision_on_the_way(tmp_path: Path) -> None:
    """As the interface has no float64, the value is looked at where it is computed."""
    x = normal(1, 4, 6, 4)

    def build(x: Any) -> Any:
        y = mb.depth_to_space(x=mb.mul(x=x, y=np.float32(1 / 3)), block_size=2)
        y = mb.space_to_batch(x=y, block_shape=[2, 2], paddings=[[0, 0], [0, 0]])
        y = mb.slice_by_index(x=mb.reshape(x=y, shape=[4, -1]), begin=[0, 20], end=[4, 0], stride=[1, -1])
        y = mb.slice_update(x=y, update=mb.reverse(x=mb.slice_by_size(x=y, begin=[0, 0], size=[2, 20])), begin=[0, 0], end=[2, 20])
        return mb.sliding_windows(x=mb.transpose(x=y, perm=[1, 0]), axis=0, size=3, name="y")

    y = batched(spread(x.astype(np.float64) * np.float64(np.float32(1 / 3)), 2, "depth_to_space"), (2, 2), [[0, 0], [0, 0]])
    y = y.reshape(4, -1)[:, 20:0:-1]
    y[:2] = y[:2, :][::-1, ::-1].copy()
    wanted = np.stack([y.T[start : start + 3] for start in range(18)])
    model = ReferenceModel(write_program(build_program(build, [x], "iOS18"), tmp_path / "model.mlpackage", "iOS18"), numerics="float64")
    *_, last = model.trace({"x": x})
    (got,) = last.results.values()
    assert got.dtype == torch.float64
    close(got.numpy(), wanted, 1e-15)


class Shuffles(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        up = torch.nn.functional.pixel_shuffle(x, 2)
        return up, torch.nn.functional.pixel_unshuffle(x, 3), torch.nn.functional.pixel_unshuffle(up * 2, 2)


def test_traced_pixel_shuffles_match_torch() -> None:
    got, wanted, operations = run_module(Shuffles(), torch.from_numpy(normal(2, 8, 3, 6)))
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(left, right, err_msg=f"output {index}")
    assert {"pixel_shuffle", "pixel_unshuffle"} <= set(operations)
