from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.ops.resizing import SAMPLING_MODES
from support.onnx_models import run_onnx
from support.programs import close, definitions, handler, normal, run_program

SIZE = st.integers(1, 5)
ORDERS = {  # from corners (y0, x0, y1, x1) to what a mode holds
    "CORNERS_HEIGHT_FIRST": lambda y0, x0, y1, x1: (y0, x0, y1, x1),
    "CORNERS_WIDTH_FIRST": lambda y0, x0, y1, x1: (x0, y0, x1, y1),
    "CENTER_SIZE_HEIGHT_FIRST": lambda y0, x0, y1, x1: ((y0 + y1) / 2, (x0 + x1) / 2, y1 - y0, x1 - x0),
    "CENTER_SIZE_WIDTH_FIRST": lambda y0, x0, y1, x1: ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
}
SETTINGS = ("target_height", "target_width", "normalized_coordinates", "spatial_scale", "box_coordinate_mode", "sampling_mode")
X = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)


def points(mode: str, start: float, end: float, count: int) -> list[float]:
    """Where a box is sampled along an axis: as a line of |end - start| + 1 pixels would be, from its start on."""
    length, found = abs(end - start), []
    for i in range(count):
        at = {
            "STRICT_ALIGN_CORNERS": length * i / max(1, count - 1),
            "ALIGN_CORNERS": length / 2 if count == 1 else length * i / (count - 1),
            "DEFAULT": i / count * (length + 1),
            "OFFSET_CORNERS": max(1, length) / count * (i + 0.5),
            "UNALIGN_CORNERS": (i + 0.5) / count * (length + 1) - 0.5,
        }[mode]
        found.append(start + np.sign(end - start) * min(length, max(0.0, at)))
    return found


def cropped(x: np.ndarray, boxes: np.ndarray, images: list[int], size: tuple[int, int], mode: str, pad: float = 0.0) -> np.ndarray:
    """Crops of boxes (y0, x0, y1, x1) in pixels, point by point."""
    out = np.full((len(boxes), x.shape[1], *size), pad, np.float64)
    height, width = x.shape[2:]
    for box, (y0, x0, y1, x1) in enumerate(boxes.astype(np.float64)):
        for row, y in enumerate(points(mode, y0, y1, size[0])):
            for column, across in enumerate(points(mode, x0, x1, size[1])):
                if 0 <= y <= height - 1 and 0 <= across <= width - 1:
                    top, left = int(y), int(across)
                    patch = x[images[box], :, top : top + 2, left : left + 2].astype(np.float64)
                    down = np.array([1 - (y - top), y - top])[: patch.shape[1]]
                    side = np.array([1 - (across - left), across - left])[: patch.shape[2]]
                    out[box, :, row, column] = np.einsum("chw,h,w->c", patch, down, side)
    return out


def random_boxes(seed: int, count: int, x: np.ndarray, inverted: bool = True) -> np.ndarray:
    """Corners in pixels, some beyond the image."""
    found = np.random.default_rng(seed).uniform(-1, 1.2, (count, 2, 2)) * np.array(x.shape[2:])
    return (found if inverted else np.sort(found, axis=1)).reshape(count, 4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", SAMPLING_MODES)
@settings(max_examples=10, deadline=None)
@given(image=st.tuples(SIZE, SIZE), size=st.tuples(SIZE, SIZE), count=st.integers(0, 3), normalized=st.booleans(), seed=st.integers(0, 999))
def test_crop_resize_samples_each_box(
    mode: str, order: str, image: tuple[int, int], size: tuple[int, int], count: int, normalized: bool, seed: int
) -> None:
    """Boxes by centre, DEFAULT, UNALIGN_CORNERS and inverted boxes but for aligned corners: from documentation, unverified."""
    x = normal(3, 2, *image, seed=seed).astype(np.float64)
    unit = np.array([max(1, side - 1) for side in image] * 2) if normalized else np.ones(4)
    pixels, scale = random_boxes(seed, count, x), 0.25
    if normalized and 1 in image:
        pixels[:, [axis + corner for axis in (0, 1) if image[axis] == 1 for corner in (0, 2)]] = 0  # all of such an axis is at 0
    boxes = np.array([ORDERS[order](*box) for box in pixels / unit / scale]).reshape(-1, 4)
    images = [(seed + i) % 3 for i in range(count)]
    arguments = dict(zip(SETTINGS, (*size, normalized, scale, order, mode), strict=True))
    wanted = cropped(x, pixels, images, size, mode, 0.5)
    close(handler("crop_resize")(x, boxes, np.array(images, np.int32), **arguments, pad_value=0.5), wanted, 1e-10)
    roi = np.concatenate([np.array(images, np.float64).reshape(-1, 1), boxes], 1)[:, None, :, None, None]
    close(handler("crop_resize", "iOS16")(x, roi, **arguments, pad_value=0.5), wanted[:, None], 1e-10)
    close(handler("crop_resize", "iOS15")(x, roi, **arguments), cropped(x, pixels, images, size, mode)[:, None], 1e-10)
    every = np.stack([cropped(x, pixels, [image] * count, size, mode, 0.5) for image in range(3)], 1)
    close(handler("crop_resize", "iOS16")(x, roi[:, :, 1:], **arguments, pad_value=0.5), every, 1e-10)


@settings(max_examples=25, deadline=None)
@given(image=st.tuples(SIZE, SIZE), size=st.tuples(SIZE, SIZE), seed=st.integers(0, 999))
def test_crop_resize_of_aligned_corners_matches_onnx_runtime(image: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    """TensorFlow's crop_and_resize, which coremltools converts to this mode; boxes may be inverted and reach outside."""
    assume(image[0] != size[0] and image[1] != size[1])  # ONNX Runtime keeps such an axis, whatever the box
    x = normal(1, 2, *image)
    box = np.random.default_rng(seed).uniform(-0.3, 1.3, 4).astype(np.float32)
    roi = np.array([0, 0, *box[:2], 1, 1, *box[2:]], np.float32)
    wanted = run_onnx(
        "Resize",
        x,
        roi,
        None,
        np.array([1, 2, *size], np.int64),
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=7.0,
    )
    got = handler("crop_resize")(x, box[None], None, *size, True, sampling_mode="ALIGN_CORNERS", pad_value=7.0)
    close(got, wanted, 2e-5)


@settings(max_examples=25, deadline=None)
@given(image=st.tuples(st.integers(2, 6), st.integers(2, 6)), size=st.tuples(SIZE, SIZE), seed=st.integers(0, 999))
def test_crop_resize_of_offset_corners_matches_roi_align(image: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    """With one sample a bin, for boxes inside the image and wider than a pixel."""
    x, random = normal(2, 3, *image), np.random.default_rng(seed)
    last = np.array(image) - 1
    start = random.uniform(0, last - 1, (4, 2))
    boxes = np.concatenate([start, start + 1 + random.uniform(0, 1, (4, 2)) * (last - 1 - start)], 1).astype(np.float32)
    images = random.integers(0, 2, 4)
    wanted = run_onnx(
        "RoiAlign",
        x,
        boxes[:, [1, 0, 3, 2]] * 4,
        images,
        output_height=size[0],
        output_width=size[1],
        sampling_ratio=1,
        spatial_scale=0.25,
        coordinate_transformation_mode="output_half_pixel",
    )
    arguments = (False, 0.25, "CORNERS_HEIGHT_FIRST", "OFFSET_CORNERS")
    close(handler("crop_resize")(x, boxes * 4, images, *size, *arguments), wanted, 2e-5)


@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_crop_resize_of_whole_pixels_is_a_resize_of_them(mode: str) -> None:
    """So the modes documented for resize_bilinear apply to boxes: from documentation, unverified, for DEFAULT and UNALIGN_CORNERS."""
    x = normal(1, 2, 7, 6).astype(np.float64)
    got = handler("crop_resize")(x, np.array([[1.0, 2.0, 5.0, 4.0]]), None, 4, 5, sampling_mode=mode)
    close(got, handler("resize_bilinear")(x[:, :, 1:6, 2:5], 4, 5, sampling_mode=mode), 1e-12)


@pytest.mark.parametrize("mode", ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"])
def test_the_last_point_of_a_box_to_the_edge_lies_on_the_edge(mode: str) -> None:
    """Adding a box's length to its start may exceed its end by a rounding, which would be outside the image."""
    x, start = normal(1, 1, 1, 12), np.random.default_rng(0).uniform(-7, 7, 1000)
    assert (start + (11 - start) > 11).any()
    boxes = np.stack([np.zeros(1000), start, np.zeros(1000), np.full(1000, 11.0)], 1)
    got = handler("crop_resize")(x, boxes, np.zeros(1000, np.int32), 1, 5, sampling_mode=mode, pad_value=99.0)
    np.testing.assert_array_equal(got[:, 0, 0, -1], x[0, 0, 0, 11])


# What Core ML itself gives, as coremltools' tests have it (mil/ops/tests/iOS14/test_image_resizing.py, and iOS16's).
INSIDE = {
    "a box": ([1, 1, 2, 2], (2, 2), False, [[6, 7], [10, 11]]),
    "one point": ([1, 1, 2, 2], (1, 1), False, [[8.5]]),
    "a normalized box": ([0, 0, 1 / 3, 1 / 3], (2, 2), True, [[1, 2], [5, 6]]),
    "an inverted box": ([2, 2, 1, 1], (2, 2), False, [[11, 10], [7, 6]]),
}
BEYOND = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)
PAD = -10.0
BEYOND_GIVES = [[[3.1, 5.2], [PAD, PAD]], [[PAD, 7.9], [PAD, 13.9]], [[2.2, 3.1], [9.4, 10.3]]]


def run_crop_resize(opset: str, x: np.ndarray, boxes: np.ndarray, images: np.ndarray | None, **arguments: Any) -> np.ndarray:
    """A package of the opset's definition, in the result's newest shape (boxes, channels, height, width)."""
    if opset == "iOS17":
        indices = {} if images is None else {"box_indices": images}
        return run_program(lambda x, boxes: mb.crop_resize(x=x, boxes=boxes, **indices, **arguments), x, boxes)[0]
    parts = [boxes] if images is None else [images[:, None].astype(boxes.dtype), boxes]
    roi = np.concatenate(parts, 1)[:, None, :, None, None]
    (got,) = run_program(lambda x, roi: mb.crop_resize(x=x, roi=roi, **arguments), x, roi, opset=opset)
    return got[:, 0]


@pytest.mark.parametrize("opset", definitions("crop_resize"))
@pytest.mark.parametrize("name", INSIDE)
def test_crop_resize_in_a_package_gives_what_core_ml_gives(name: str, opset: str) -> None:
    box, (height, width), normalized, wanted = INSIDE[name]
    got = run_crop_resize(
        opset,
        X,
        np.array([box], np.float32),
        None,
        target_height=height,
        target_width=width,
        normalized_coordinates=normalized,
        sampling_mode="ALIGN_CORNERS",
    )
    close(got, np.array([[wanted]]), 1e-6)


@pytest.mark.parametrize("opset", definitions("crop_resize"))
def test_crop_resize_beyond_the_image_in_a_package_gives_what_core_ml_gives(opset: str) -> None:
    """iOS15 has no pad_value, and pads with 0."""
    arguments = {"target_height": 2, "target_width": 2, "normalized_coordinates": True, "sampling_mode": "ALIGN_CORNERS"}
    wanted = np.array(BEYOND_GIVES)[:, None]
    if opset == "iOS15":
        wanted = np.where(wanted == PAD, 0, wanted)
    else:
        arguments["pad_value"] = np.float32(PAD)
    close(run_crop_resize(opset, X, BEYOND, np.zeros(3, np.int32), **arguments), wanted, 1e-6)


@pytest.mark.parametrize("opset", definitions("crop_resize"))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_crop_resize_in_a_package_knows_every_mode(mode: str, order: str, opset: str) -> None:
    x = normal(1, 2, 5, 6)
    pixels = random_boxes(4, 3, x, inverted=False)
    boxes = np.array([ORDERS[order](*box) for box in pixels * 2], np.float32)
    got = run_crop_resize(
        opset,
        x,
        boxes,
        np.zeros(3, np.int32),
        target_height=3,
        target_width=2,
        spatial_scale=np.float32(0.5),
        box_coordinate_mode=order,
        sampling_mode=mode,
    )
    close(got, cropped(x, pixels, [0] * 3, (3, 2), mode), 2e-5)


@pytest.mark.parametrize("opset", ["iOS15", "iOS16"])
def test_crop_resize_in_a_package_cuts_boxes_of_four_numbers_from_every_image(opset: str) -> None:
    x, boxes = normal(3, 2, 5, 6).astype(np.float16), np.array([[0, 1, 3, 4], [2, 2, 4, 5]], np.float16)
    roi = boxes[:, None, :, None, None]
    (got,) = run_program(lambda x, roi: mb.crop_resize(x=x, roi=roi, target_height=2, target_width=3), x, roi, opset=opset)
    assert got.dtype == np.float16
    wanted = np.stack([cropped(x, boxes, [image] * 2, (2, 3), "DEFAULT") for image in range(3)], 1)
    np.testing.assert_allclose(got, wanted, rtol=2**-10, atol=1e-3)


@pytest.mark.parametrize("indices", [np.uint16, np.int32])
@pytest.mark.parametrize("boxes", [np.float16, np.float32, np.uint16])
def test_crop_resize_in_a_package_takes_boxes_and_indices_of_every_type(boxes: type, indices: type) -> None:
    x, corners, images = normal(3, 2, 5, 6), np.array([[0, 1, 3, 4], [2, 2, 4, 5]]), [2, 0]
    (got,) = run_program(
        lambda x, boxes, at: mb.crop_resize(x=x, boxes=boxes, box_indices=at, target_height=2, target_width=3),
        x,
        corners.astype(boxes),
        np.array(images, indices),
    )
    close(got, cropped(x, corners, images, (2, 3), "DEFAULT"))


def test_crop_resize_in_a_package_computes_in_doubles_where_asked() -> None:
    """Then what comes out is the true value, rounded to the output's type once."""
    x, boxes = normal(1, 2, 5, 6), np.array([[0.3, 1.1, 3.7, 4.2]], np.float32)
    arguments = {"target_height": 3, "target_width": 4, "sampling_mode": "ALIGN_CORNERS"}
    (got,) = run_program(lambda x, boxes: mb.crop_resize(x=x, boxes=boxes, **arguments), x, boxes, numerics="float64")
    np.testing.assert_allclose(got, cropped(x, boxes, [0], (3, 4), "ALIGN_CORNERS"), rtol=2**-24)


def test_crop_resize_without_indices_takes_box_and_image_together() -> None:
    x, boxes = normal(3, 2, 4, 4), np.array([[0, 0, 3, 3], [1, 1, 2, 3]], np.float32)
    close(handler("crop_resize")(x, boxes, None, 2, 2), cropped(x, boxes, [0, 1], (2, 2), "DEFAULT"))


def test_crop_resize_of_places_that_are_none_pads() -> None:
    boxes = np.array([[np.nan, 0, 1, 1], [0, -np.inf, 1, np.inf], [1e30, 0, 2e30, 1]], np.float32)
    got = handler("crop_resize")(X, boxes, np.zeros(3, np.int32), 2, 2, sampling_mode="ALIGN_CORNERS", pad_value=3.0)
    np.testing.assert_array_equal(got[[0, 2]], np.full((2, 1, 2, 2), 3.0, np.float32))
    np.testing.assert_array_equal(got[1], np.full((1, 2, 2), 3.0, np.float32))


@pytest.mark.parametrize("image", [-1, 1])
def test_a_box_of_an_image_that_is_not_there_is_refused(image: int) -> None:
    box = np.array([[0, 0, 1, 1]], np.float32)
    with pytest.raises(PackageError, match="boxes name images"):
        handler("crop_resize")(X, box, np.array([image], np.int32))
    with pytest.raises(PackageError, match="boxes name images"):
        handler("crop_resize", "iOS15")(X, np.concatenate([[[image]], box], 1).astype(np.float32)[:, None, :, None, None])


def test_more_boxes_than_images_need_indices() -> None:
    with pytest.raises(PackageError, match="boxes name images"):
        handler("crop_resize")(X, np.zeros((2, 4), np.float32))


def test_normalized_boxes_of_integers_are_refused() -> None:
    with pytest.raises(PackageError, match="not defined"):
        handler("crop_resize")(X, np.zeros((1, 4), np.int32), normalized_coordinates=True)


BAD_SETTINGS = {
    "box_coordinate_mode": ({"box_coordinate_mode": "CORNERS"}, "box_coordinate_mode 'CORNERS' is unknown"),
    "sampling_mode": ({"sampling_mode": "CORNERS"}, "sampling_mode 'CORNERS' is unknown"),
    "size": ({"target_height": 0}, "no crop of 0 by 1"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_crop_resize_by_a_bad_setting_is_refused(name: str) -> None:
    arguments, message = BAD_SETTINGS[name]
    with pytest.raises(PackageError, match=message):
        handler("crop_resize")(X, np.zeros((1, 4), np.float32), **arguments)


@pytest.mark.parametrize("shape", [(1, 5), (4,), (1, 1, 4, 1, 1)], ids=str)
def test_crop_resize_by_boxes_that_do_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PackageError, match="do not fit"):
        handler("crop_resize")(X, np.zeros(shape, np.float32))
    with pytest.raises(PackageError, match="do not fit"):
        handler("crop_resize", "iOS16")(X, np.zeros((*shape, 2), np.float32))
