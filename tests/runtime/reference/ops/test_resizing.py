from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.ops.resizing import SAMPLING_MODES, UNVERIFIED
from support.onnx_models import run_onnx
from support.programs import by_name, close, definitions, handler, normal, run_program
from support.resized import chosen, interpolated, sampled

SIZE = st.integers(1, 9)


def onnx_resize(x: np.ndarray, sizes: list[int], **attributes: Any) -> np.ndarray:
    shape = np.array([*x.shape[: x.ndim - len(sizes)], *sizes], np.int64)
    return run_onnx("Resize", x, None, None, shape, **attributes)


def onnx_linear(x: np.ndarray, sizes: list[int], mode: str) -> np.ndarray:
    """OFFSET_CORNERS is RoiAlign of the whole image with one sample a bin, ALIGN_CORNERS a crop of all of it."""
    if mode == "OFFSET_CORNERS":
        box = np.array([[0, 0, x.shape[3] - 1, x.shape[2] - 1]] * len(x), np.float32)
        return run_onnx(
            "RoiAlign",
            x,
            box,
            np.arange(len(x), dtype=np.int64),
            output_height=sizes[0],
            output_width=sizes[1],
            sampling_ratio=1,
            coordinate_transformation_mode="output_half_pixel",
        )
    if mode == "ALIGN_CORNERS":
        shape = np.array([*x.shape[:2], *sizes], np.int64)
        roi = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
        return run_onnx("Resize", x, roi, None, shape, mode="linear", coordinate_transformation_mode="tf_crop_and_resize")
    names = {"STRICT_ALIGN_CORNERS": "align_corners", "DEFAULT": "asymmetric", "UNALIGN_CORNERS": "half_pixel"}
    return onnx_resize(x, sizes, mode="linear", coordinate_transformation_mode=names[mode])


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("mode", SAMPLING_MODES)
@settings(max_examples=40, deadline=None)
@given(lead=st.lists(st.integers(0, 3), max_size=2), height=SIZE, width=SIZE, sizes=st.tuples(SIZE, SIZE))
def test_resize_bilinear_matches_the_grid_of_its_mode(
    mode: str, double: bool, lead: list[int], height: int, width: int, sizes: tuple[int, int]
) -> None:
    x = normal(*lead, height, width).astype(np.float64 if double else np.float32)
    wanted = interpolated(x, list(sizes), mode) if x.size else np.zeros((*lead, *sizes))
    got = handler("resize_bilinear")(x, sizes[0], sizes[1], sampling_mode=mode)
    assert got.dtype == x.dtype
    close(got, wanted, 1e-12 if double else 1e-5)


@pytest.mark.parametrize("mode", SAMPLING_MODES)
@settings(max_examples=25, deadline=None)
@given(height=SIZE, width=SIZE, sizes=st.tuples(SIZE, SIZE))
def test_resize_bilinear_matches_onnx_runtime(mode: str, height: int, width: int, sizes: tuple[int, int]) -> None:
    x = normal(2, 2, height, width)
    close(handler("resize_bilinear")(x, *sizes, sampling_mode=mode), onnx_linear(x, list(sizes), mode), 1e-5)


def test_resize_bilinear_defaults_to_one_pixel_of_the_default_mode() -> None:
    x = normal(2, 3, 4, 5)
    close(handler("resize_bilinear")(x), x[:, :, :1, :1])


# What Core ML itself gives for 0 and 1, as coremltools' tests have it (mil/ops/tests/iOS14/test_image_resizing.py).
MEASURED = {
    "STRICT_ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
    "DEFAULT": [0, 0.4, 0.8, 1, 1],
    "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
    "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1],
}


@pytest.mark.parametrize("opset", definitions("resize_bilinear"))
@pytest.mark.parametrize("mode", MEASURED)
def test_resize_bilinear_in_a_package_gives_what_core_ml_gives(mode: str, opset: str) -> None:
    x = np.array([[[0, 1]]], np.float32)
    (got,) = run_program(lambda x: mb.resize_bilinear(x=x, target_size_height=1, target_size_width=5, sampling_mode=mode), x, opset=opset)
    close(got, np.array([[MEASURED[mode]]]), 1e-6)


@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_resize_bilinear_in_a_package_computes_in_doubles_where_asked(mode: str) -> None:
    """Then what comes out is the true value, rounded to the output's type once."""
    x, arguments = normal(1, 2, 5, 4), {"target_size_height": 7, "target_size_width": 3, "sampling_mode": mode}
    (got,) = run_program(lambda x: mb.resize_bilinear(x=x, **arguments), x, numerics="float64")
    np.testing.assert_array_equal(got, interpolated(x, [7, 3], mode).astype(np.float32))


def test_resize_bilinear_of_halves_rounds_once() -> None:
    x = normal(1, 2, 5, 4).astype(np.float16)
    (got,) = run_program(lambda x: mb.resize_bilinear(x=x, target_size_height=7, target_size_width=3), x, opset="iOS16")
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, interpolated(x, [7, 3], "DEFAULT"), rtol=2**-11, atol=1e-6)


def test_an_unknown_sampling_mode_is_refused() -> None:
    with pytest.raises(PackageError, match="sampling_mode 'CORNERS' is unknown"):
        handler("resize_bilinear")(normal(1, 1, 2, 2), 2, 2, sampling_mode="CORNERS")


@pytest.mark.parametrize("sizes", [(-1, 2), (2, -3)], ids=str)
def test_a_negative_size_is_refused(sizes: tuple[int, int]) -> None:
    for name in ("resize_bilinear", "resize_nearest_neighbor"):
        with pytest.raises(PackageError, match="cannot resize axis"):
            handler(name)(normal(1, 1, 2, 2), *sizes)


def test_an_axis_of_nothing_is_not_resized() -> None:
    with pytest.raises(PackageError, match="cannot resize axis 2 from 0 to 3"):
        handler("resize_nearest_neighbor")(normal(1, 1, 0, 2), 3, 2)


@settings(max_examples=50, deadline=None)
@given(height=SIZE, width=SIZE, sizes=st.tuples(SIZE, SIZE))
def test_resize_nearest_neighbor_takes_the_input_below_each_centre(height: int, width: int, sizes: tuple[int, int]) -> None:
    x = np.arange(2 * height * width, dtype=np.float16).reshape(2, height, width)
    got = handler("resize_nearest_neighbor")(x, *sizes)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, chosen(x, list(sizes), "half pixel"))


@settings(max_examples=30, deadline=None)
@given(have=SIZE, size=SIZE)
def test_nearest_neighbours_match_onnx_runtime_where_no_two_are_equally_near(have: int, size: int) -> None:
    x = normal(1, 1, 1, have)
    upsampled = handler("upsample_nearest_neighbor")(x, 1.0, (size + 1e-4) / have)
    if not any(i * have % size == 0 for i in range(1, size)):
        wanted = onnx_resize(x, [1, size], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        np.testing.assert_array_equal(upsampled, wanted)
    assume(not any((2 * i + 1) * have % (2 * size) == 0 for i in range(size)))
    wanted = onnx_resize(x, [1, size], mode="nearest", coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil")
    np.testing.assert_array_equal(handler("resize_nearest_neighbor")(x, 1, size), wanted)


@pytest.mark.parametrize("opset", definitions("resize_nearest_neighbor"))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_resize_nearest_neighbor_in_a_package_takes_inputs_as_they_are(dtype: type, opset: str) -> None:
    x = normal(2, 2, 3, 5).astype(dtype)
    (got,) = run_program(lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=5, target_size_width=2), x, opset=opset)
    np.testing.assert_array_equal(got, chosen(x, [5, 2], "half pixel"))
    assert not np.array_equal(got, chosen(x, [5, 2], "asymmetric"))


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data())
def test_resize_takes_the_last_sizes_of_its_shape(shape: list[int], data: Any) -> None:
    mode = data.draw(st.sampled_from(SAMPLING_MODES))
    wanted = data.draw(st.lists(st.integers(0, 7), min_size=0, max_size=len(shape)))
    count = data.draw(st.integers(0, len(wanted)))
    x = normal(*shape).astype(np.float64)
    sizes = [size or shape[len(shape) - count + i] for i, size in enumerate(wanted[len(wanted) - count :])]
    close(handler("resize")(x, wanted, count, sampling_mode=mode), interpolated(x, sizes, mode), 1e-12)
    near = handler("resize")(x, wanted, count, interpolation_mode="NEAREST_NEIGHBOR")
    np.testing.assert_array_equal(near, chosen(x, sizes, "half pixel"))


@pytest.mark.parametrize("mode", SAMPLING_MODES)
@settings(max_examples=25, deadline=None)
@given(have=SIZE, size=SIZE)
def test_resize_to_the_nearest_takes_the_nearest_of_the_grid(mode: str, have: int, size: int) -> None:
    """From documentation, unverified, but for DEFAULT (half pixels, see there) and UNALIGN_CORNERS."""
    points = sampled("UNALIGN_CORNERS" if mode == "DEFAULT" else mode, have, size)
    assume(np.abs(points % 1 - 0.5).min() > 1e-9)
    got = handler("resize")(np.arange(have), [size], 1, interpolation_mode="NEAREST_NEIGHBOR", sampling_mode=mode)
    np.testing.assert_array_equal(got, np.rint(points))


def test_resize_of_integers_cuts_fractions_off() -> None:
    """From documentation, unverified."""
    x = np.array([-5, 0, 7], np.int32)
    got = handler("resize")(x, [5], 1, sampling_mode="STRICT_ALIGN_CORNERS")
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [-5, -2, 0, 3, 7])


INTERPOLATION = {"linear": {}, "nearest": {"interpolation_mode": "NEAREST_NEIGHBOR"}}


@pytest.mark.parametrize("opset", definitions("resize"))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("arguments", by_name(INTERPOLATION))
def test_resize_in_a_package_resizes_every_type(arguments: dict[str, str], dtype: type, opset: str) -> None:
    x = (10 * normal(2, 3, 4)).astype(dtype)
    (got,) = run_program(lambda x: mb.resize(x=x, shape=[9, 0, 6], resized_dims=np.uint32(2), **arguments), x, opset=opset)
    wanted = chosen(x, [3, 6], "half pixel") if arguments else interpolated(x, [3, 6], "DEFAULT")
    wanted = np.trunc(wanted.round(9)) if dtype == np.int32 else wanted
    assert got.dtype == dtype
    np.testing.assert_allclose(got, wanted, rtol=2**-11 if dtype == np.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint16, np.uint32])
def test_resize_in_a_package_takes_a_shape_computed_at_run_time(dtype: type) -> None:
    x, shape = normal(1, 2, 1, 2), np.array([3, 0, 5], dtype)
    (got,) = run_program(lambda x, shape: mb.resize(x=x, shape=shape, resized_dims=np.uint32(2)), x, shape)
    close(got, interpolated(x, [1, 5], "DEFAULT"))


def test_resize_to_the_nearest_in_a_package_gives_what_core_ml_gives() -> None:
    """Values of coremltools' tests, mil/ops/tests/iOS17/test_image_resizing.py."""
    x = np.array([-6.174, 9.371], np.float32).reshape(1, 1, 1, 2, 1)
    arguments = {"shape": [1, 1, 3, 2], "resized_dims": np.uint32(2), "interpolation_mode": "NEAREST_NEIGHBOR"}
    (got,) = run_program(lambda x: mb.resize(x=x, **arguments), x)
    np.testing.assert_array_equal(got, np.array([[-6.174] * 2, [9.371] * 2, [9.371] * 2], np.float32).reshape(1, 1, 1, 3, 2))


@pytest.mark.parametrize(("shape", "count"), [([4, 4], 3), ([1, 1, 1, 1], 2), ([2], -1)], ids=str)
def test_resize_of_more_axes_than_there_are_is_refused(shape: list[int], count: int) -> None:
    with pytest.raises(PackageError, match="cannot be those of a tensor of 3 axes"):
        handler("resize")(normal(1, 2, 3), shape, count)


def test_resize_by_an_unknown_interpolation_is_refused() -> None:
    with pytest.raises(PackageError, match="interpolation_mode 'CUBIC' is unknown"):
        handler("resize")(normal(1, 2, 3), [4], 1, interpolation_mode="CUBIC")


@settings(max_examples=30, deadline=None)
@given(lead=st.lists(st.integers(1, 3), max_size=3), cut=st.tuples(*[st.integers(0, 3)] * 4), left=st.tuples(SIZE, SIZE))
def test_crop_cuts_the_ends_off(lead: list[int], cut: tuple[int, ...], left: tuple[int, int]) -> None:
    x = normal(*lead, cut[0] + left[0] + cut[1], cut[2] + left[1] + cut[3]).astype(np.float16)
    got = handler("crop")(x, list(cut[:2]), list(cut[2:]))
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, x[..., cut[0] : cut[0] + left[0], cut[2] : cut[2] + left[1]])


@pytest.mark.parametrize("opset", definitions("crop"))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_crop_in_a_package_cuts_the_ends_off(dtype: type, opset: str) -> None:
    x = normal(2, 4, 5, 6).astype(dtype)
    (got,) = run_program(lambda x: mb.crop(x=x, crop_height=[0, 2], crop_width=[3, 1]), x, opset=opset)
    np.testing.assert_array_equal(got, x[:, :, :3, 3:5])


@pytest.mark.parametrize(("height", "width"), [([-1, 0], [0, 0]), ([0, 0], [2, 2]), ([0, 4], [0, 0])], ids=str)
def test_crop_beyond_the_image_is_refused(height: list[int], width: list[int]) -> None:
    with pytest.raises(PackageError, match="cannot crop"):
        handler("crop")(normal(1, 3, 3), height, width)


def test_what_is_unverified_is_said_with_its_reason() -> None:
    assert UNVERIFIED
    assert all(name.split()[0] in ("resize", "upsample_nearest_neighbor") and len(reason) > 20 for name, reason in UNVERIFIED.items())
