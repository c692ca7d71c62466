from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.ops.sampling import UNVERIFIED
from support.onnx_models import run_onnx
from support.programs import by_name, close, definitions, handler, normal, run_module, run_program
from torch.nn import functional as F

SIZE = st.integers(1, 6)
FAR = 12  # pixels of padding in the references; places stay within
PADDINGS = {"constant": "constant", "border": "edge", "reflection": "reflect", "symmetric": "symmetric"}  # numpy's names
COORDINATES: dict[str, Callable[[np.ndarray, int, bool], np.ndarray]] = {  # a pixel's number as the mode writes it
    "unnormalized": lambda pixel, size, align: pixel,
    "normalized_minus_one_to_one": lambda pixel, size, align: 2 * pixel / max(1, size - 1) - 1 if align else (2 * pixel + 1) / size - 1,
    "normalized_zero_to_one": lambda pixel, size, align: pixel / max(1, size - 1) if align else (pixel + 0.5) / size,
}


def blended(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """An image (C, H, W) between its pixels."""
    top, left = int(np.floor(y)), int(np.floor(x))
    down, across = y - top, x - left
    bottom, right = min(top + 1, image.shape[1] - 1), min(left + 1, image.shape[2] - 1)
    upper = (1 - across) * image[:, top, left] + across * image[:, top, right]
    return (1 - down) * upper + down * ((1 - across) * image[:, bottom, left] + across * image[:, bottom, right])


def resampled(x: np.ndarray, pixels: np.ndarray, sampling: str, padding: str, value: float) -> np.ndarray:
    """The images really padded, as the definition pictures it, and read there at (x, y) in pixels."""
    more = {"constant_values": value} if padding == "constant" else {}
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (FAR, FAR), (FAR, FAR)], mode=PADDINGS[padding], **more)
    out = np.empty((*x.shape[:2], *pixels.shape[1:3]))
    for image, row, column in np.ndindex(pixels.shape[:3]):
        across, down = pixels[image, row, column] + FAR
        if sampling == "nearest":
            out[image, :, row, column] = padded[image, :, round(down), round(across)]
        else:
            out[image, :, row, column] = blended(padded[image], down, across)
    return out


def places(seed: int, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Random places in pixels around images, none half between two."""
    found = np.random.default_rng(seed).uniform(-FAR + 1, FAR - 2, (len(x), *size, 2))
    return np.where(np.abs(found % 1 - 0.5) < 1e-3, found + 0.1, found)


def written(pixels: np.ndarray, x: np.ndarray, mode: str, align: bool) -> np.ndarray:
    return np.stack([COORDINATES[mode](pixels[..., at], x.shape[3 - at], align) for at in (0, 1)], -1)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("mode", COORDINATES)
@pytest.mark.parametrize(("sampling", "padding"), product(["bilinear", "nearest"], PADDINGS))
@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 2), channels=SIZE, image=st.tuples(SIZE, SIZE), size=st.tuples(SIZE, SIZE), seed=st.integers(0, 99))
def test_resample_reads_the_padded_image(
    sampling: str,
    padding: str,
    mode: str,
    align: bool,
    batch: int,
    channels: int,
    image: tuple[int, int],
    size: tuple[int, int],
    seed: int,
) -> None:
    """Reflection without align_corners, symmetric with it, both of unnormalized: from documentation, unverified."""
    if align and mode != "unnormalized":
        image = (image[0] + 1, image[1] + 1)  # a single pixel has no place of its own then
    x = normal(batch, channels, *image).astype(np.float64)
    pixels = places(seed, x, size)
    got = handler("resample")(x, written(pixels, x, mode, align), sampling, padding, 0.75, mode, align)
    assert got.dtype == np.float64
    close(got, resampled(x, pixels, sampling, padding, 0.75), 1e-11)


ONNX_PADDINGS = [("constant", False), ("constant", True), ("border", False), ("border", True), ("reflection", True), ("symmetric", False)]


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize(("padding", "align"), ONNX_PADDINGS)
@settings(max_examples=10, deadline=None)
@given(image=st.tuples(SIZE, SIZE), size=st.tuples(SIZE, SIZE), seed=st.integers(0, 99))
def test_resample_matches_onnx_runtime(
    padding: str, align: bool, sampling: str, image: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    """ONNX has one reflection: of centres with align_corners, of edges without; these are two paddings here."""
    x = normal(2, 3, *image)
    grid = np.random.default_rng(seed).uniform(-1.8, 1.8, (2, *size, 2)).astype(np.float32)
    wanted = run_onnx(
        "GridSample",
        x,
        grid,
        opset=16,
        mode=sampling,
        padding_mode={"constant": "zeros", "border": "border"}.get(padding, "reflection"),
        align_corners=int(align),
    )
    got = handler("resample")(x, grid, sampling, padding, 0.0, "normalized_minus_one_to_one", align)
    close(got, wanted, 2e-5)


# What Core ML itself gives, as coremltools' tests have it (mil/ops/tests/iOS15/test_image_resizing.py).
RESAMPLED = {
    "bilinear constant": (("bilinear", "constant", 6.17, "normalized_minus_one_to_one", True), [8.585, 6.17, 27.5, 6.17]),
    "nearest border": (("nearest", "border", -1.0, "unnormalized", False), [11, 11, 11, 44]),
    "bilinear reflection": (("bilinear", "reflection", -1.0, "normalized_zero_to_one", True), [22, 36.3, 11, 34.1]),
    "nearest symmetric": (("nearest", "symmetric", -1.0, "normalized_zero_to_one", False), [22, 33, 11, 33]),
}
SETTINGS = ("sampling_mode", "padding_mode", "padding_value", "coordinates_mode", "align_corners")


@pytest.mark.parametrize("opset", definitions("resample"))
@pytest.mark.parametrize("case", by_name(RESAMPLED))
def test_resample_in_a_package_gives_what_core_ml_gives(case: tuple[tuple, list[float]], opset: str) -> None:
    x = np.array([[[[11, 22], [33, 44]]]], np.float32)
    coordinates = np.array([-1.0, -2.0, -3.7, -1.0, 0.0, 0.0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)
    arguments = dict(zip(SETTINGS, case[0], strict=True))
    (got,) = run_program(lambda x, coordinates: mb.resample(x=x, coordinates=coordinates, **arguments), x, coordinates, opset=opset)
    close(got, np.array(case[1]).reshape(1, 1, 2, 2))


COORDINATE_TYPES = {
    "iOS15": [np.int32, np.float32],
    "iOS16": [np.int32, np.float16, np.float32],
    "iOS17": [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float32],
}


@pytest.mark.parametrize(("opset", "dtype"), [(opset, dtype) for opset, dtypes in COORDINATE_TYPES.items() for dtype in dtypes])
def test_resample_in_a_package_takes_coordinates_of_every_type(opset: str, dtype: type) -> None:
    x = normal(2, 3, 4, 5).astype(np.float16 if dtype == np.float16 else np.float32)
    coordinates = np.random.default_rng(1).integers(0, 6, (2, 3, 2, 2)).astype(dtype)
    arguments = dict(zip(SETTINGS, ("bilinear", "border", x.dtype.type(0), "unnormalized", True), strict=True))
    (got,) = run_program(lambda x, coordinates: mb.resample(x=x, coordinates=coordinates, **arguments), x, coordinates, opset=opset)
    np.testing.assert_array_equal(got, resampled(x, coordinates.astype(np.float64), "bilinear", "border", 0))


def test_resample_in_a_package_computes_in_doubles_where_asked() -> None:
    """Then what comes out is the true value, rounded to the output's type once."""
    x = normal(1, 2, 4, 5)
    coordinates = places(3, x, (3, 4)).astype(np.float32)
    arguments = dict(zip(SETTINGS, ("bilinear", "symmetric", np.float32(0), "unnormalized", True), strict=True))
    (got,) = run_program(lambda x, at: mb.resample(x=x, coordinates=at, **arguments), x, coordinates, numerics="float64")
    wanted = resampled(x, coordinates.astype(np.float64), "bilinear", "symmetric", 0)
    np.testing.assert_allclose(got, wanted, rtol=2**-24)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_resample_survives_coordinates_that_are_no_places(sampling: str, padding: str) -> None:
    x = normal(1, 1, 3, 3)
    at = np.array([[np.nan, 0], [np.inf, 1], [-np.inf, 1], [1e30, 1], [1, -1e30]], np.float32).reshape(1, 1, 5, 2)
    got = handler("resample")(x, at, sampling, padding, 0.75, "unnormalized", True)[0, 0, 0]
    assert np.isnan(got[0]) == (sampling == "bilinear")
    if padding == "constant":
        np.testing.assert_array_equal(got[1:], 0.75)
    if padding == "border":
        np.testing.assert_array_equal(got[1:], [x[0, 0, 1, 2], x[0, 0, 1, 0], x[0, 0, 1, 2], x[0, 0, 0, 1]])


BAD_SETTINGS = {
    "sampling_mode": ("cubic", "border", 0.0, "unnormalized", True),
    "padding_mode": ("nearest", "wrap", 0.0, "unnormalized", True),
    "coordinates_mode": ("nearest", "border", 0.0, "normalized", True),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_resample_by_an_unknown_mode_is_refused(name: str) -> None:
    with pytest.raises(PackageError, match=rf"the {name} .* is unknown"):
        handler("resample")(normal(1, 1, 2, 2), np.zeros((1, 1, 1, 2), np.float32), *BAD_SETTINGS[name])


@pytest.mark.parametrize(
    ("image", "coordinates"), [((2, 1, 2, 2), (1, 1, 1, 2)), ((1, 1, 2, 2), (1, 1, 1, 3)), ((1, 2, 2), (1, 1, 2))], ids=str
)
def test_resample_of_shapes_that_do_not_fit_is_refused(image: tuple[int, ...], coordinates: tuple[int, ...]) -> None:
    with pytest.raises(PackageError, match="do not fit"):
        handler("resample")(normal(*image), normal(*coordinates), "nearest", "border", 0.0, "unnormalized", True)


def test_an_image_without_pixels_is_not_sampled() -> None:
    with pytest.raises(PackageError, match="has no pixels"):
        handler("resample")(normal(1, 1, 0, 2), normal(1, 1, 1, 2), "nearest", "border", 0.0, "unnormalized", True)


AFFINE = ("bilinear", "constant", 0.0, "normalized_minus_one_to_one")


def transformed(x: np.ndarray, matrix: np.ndarray, size: tuple[int, int], align: bool) -> np.ndarray:
    """The same through places in pixels; a line of one pixel stands in the middle."""
    ends = [1 if align else 1 - 1 / count for count in size]
    down, across = (np.linspace(-end, end, count) if count > 1 else np.zeros(1) for end, count in zip(ends, size, strict=True))
    grid = np.stack([*np.meshgrid(across, down), np.ones(size)], -1)
    found = np.einsum("hwk,dck->dhwc", grid, matrix.reshape(-1, 2, 3)).repeat(len(x) // len(matrix), 0)
    extent = np.array([x.shape[3], x.shape[2]])
    pixels = (found + 1) / 2 * (extent - 1) if align else (found + 1) / 2 * extent - 0.5
    return resampled(x, pixels.clip(-FAR + 1, FAR - 2), "bilinear", "constant", 0)


@pytest.mark.parametrize("align", [True, False])
@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), image=st.tuples(SIZE, SIZE), size=st.tuples(SIZE, SIZE), shared=st.booleans(), seed=st.integers(0, 99))
def test_affine_reads_the_transformed_places(
    align: bool, batch: int, image: tuple[int, int], size: tuple[int, int], shared: bool, seed: int
) -> None:
    x = normal(batch, 2, *image).astype(np.float64)
    matrix = np.random.default_rng(seed).uniform(-1.2, 1.2, (1 if shared else batch, 6))
    close(handler("affine")(x, matrix, *size, *AFFINE, align), transformed(x, matrix, size, align), 1e-11)


@pytest.mark.parametrize("opset", definitions("affine"))
@pytest.mark.parametrize(
    "case", [((3, 3), [10.752501, 2.5025, 0, 1.98, 0, 0, 0, 0, 0]), ((2, 5), [10.752501, 5.94, 2.5025, 0.44, 0, 0, 0, 0, 0, 0])]
)
def test_affine_in_a_package_gives_what_core_ml_gives(case: tuple[tuple[int, int], list[float]], opset: str) -> None:
    """Values of coremltools' tests, mil/ops/tests/iOS15/test_image_resizing.py."""
    x = np.array([[[[11, 22], [33, 44]]]], np.float32)
    matrix = np.array([[-1.0, -2.0, -3.7, -1.0, 3.5, 1.2]], np.float32)
    (height, width), wanted = case
    arguments = dict(zip(SETTINGS, (*AFFINE, True), strict=True)) | {"output_height": height, "output_width": width}
    (got,) = run_program(lambda x, matrix: mb.affine(x=x, transform_matrix=matrix, **arguments), x, matrix, opset=opset)
    close(got, np.array(wanted).reshape(1, 1, height, width))


def test_affine_of_halves_rounds_once() -> None:
    x, matrix = normal(2, 2, 4, 5).astype(np.float16), normal(2, 6).astype(np.float16)
    arguments = dict(zip(SETTINGS, ("bilinear", "constant", np.float16(0), AFFINE[3], True), strict=True))
    (got,) = run_program(lambda x, matrix: mb.affine(x=x, transform_matrix=matrix, output_height=3, output_width=4, **arguments), x, matrix)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, transformed(x, matrix.astype(np.float64), (3, 4), True), rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nearest", "constant", 0.0, AFFINE[3]),
        ("bilinear", "border", 0.0, AFFINE[3]),
        ("bilinear", "constant", 1.0, AFFINE[3]),
        ("bilinear", "constant", 0.0, "unnormalized"),
    ],
    ids=str,
)
def test_affine_of_what_its_definition_excludes_is_refused(arguments: tuple) -> None:
    with pytest.raises(PackageError, match=r"the operation has .* only"):
        handler("affine")(normal(1, 1, 2, 2), normal(1, 6), 2, 2, *arguments, True)


@pytest.mark.parametrize("matrix", [(2, 6), (1, 5), (6,)], ids=str)
def test_affine_by_a_matrix_that_does_not_fit_is_refused(matrix: tuple[int, ...]) -> None:
    with pytest.raises(PackageError, match="do not fit"):
        handler("affine")(normal(3, 1, 2, 2), normal(*matrix), 2, 2, *AFFINE, True)


class Grid(torch.nn.Module):
    def __init__(self, mode: str, padding_mode: str, align: bool) -> None:
        super().__init__()
        self.arguments = {"mode": mode, "padding_mode": padding_mode, "align_corners": align}

    def forward(self, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, grid, **self.arguments)


class Transformed(torch.nn.Module):
    def __init__(self, size: tuple[int, ...], align: bool) -> None:
        super().__init__()
        self.size, self.align = size, align
        theta = np.random.default_rng(6).uniform(-1, 1, (size[0], 2, 3)).astype(np.float32)
        self.register_buffer("theta", torch.from_numpy(theta))  # coremltools fails on one that is an input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, F.affine_grid(self.theta, self.size, align_corners=self.align), align_corners=self.align)


@pytest.mark.parametrize(("mode", "padding", "align"), product(["bilinear", "nearest"], ["zeros", "border", "reflection"], [False, True]))
def test_traced_grid_sample_matches_torch(mode: str, padding: str, align: bool) -> None:
    grid = np.random.default_rng(5).uniform(-1.9, 1.9, (2, 4, 3, 2)).astype(np.float32)
    (got,), (wanted,), operations = run_module(Grid(mode, padding, align), torch.from_numpy(normal(2, 3, 4, 5)), torch.from_numpy(grid))
    close(got, wanted, 2e-5)
    assert "resample" in operations


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 4, 6), (2, 3, 1, 5)], ids=str)
def test_traced_affine_grid_matches_torch(size: tuple[int, ...], align: bool) -> None:
    (got,), (wanted,), operations = run_module(Transformed(size, align), torch.from_numpy(normal(2, 3, 4, 5)))
    close(got, wanted, 2e-5)
    assert "affine" in operations


def test_what_is_unverified_is_said_with_its_reason() -> None:
    assert UNVERIFIED
    assert all(name.split()[0] in ("resample", "crop_resize") and len(reason) > 20 for name, reason in UNVERIFIED.items())
