from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.program import TensorType
from support.programs import by_name, close, definitions, handler, normal, run_module, run_program
from support.resized import chosen, interpolated
from torch.nn import functional as F

SIZE = st.integers(1, 9)


@settings(max_examples=50, deadline=None)
@given(height=SIZE, width=SIZE, factors=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_upsample_nearest_neighbor_samples_by_sizes(height: int, width: int, factors: tuple[int, int]) -> None:
    scale = [np.float32(factor / 64) for factor in factors]  # products are exact
    x = np.arange(2 * height * width, dtype=np.float16).reshape(2, height, width)
    sizes = [int(height * factors[0] // 64), int(width * factors[1] // 64)]
    np.testing.assert_array_equal(handler("upsample_nearest_neighbor")(x, *map(float, scale)), chosen(x, sizes, "asymmetric"))


@pytest.mark.parametrize("opset", definitions("upsample_nearest_neighbor"))
@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (1.0, 1.0, [[1.5, -2.5, 3.5]]),
        (3.17, 0.67, [[1.5, -2.5]] * 3),
        (2.0, 1.12, [[1.5, -2.5, 3.5]] * 2),
        (1, 2, [[1.5, 1.5, -2.5, -2.5, 3.5, 3.5]]),
    ],
)
def test_upsample_nearest_neighbor_in_a_package_gives_what_core_ml_gives(height: float, width: float, wanted: list, opset: str) -> None:
    """Values of coremltools' tests, mil/ops/tests/iOS15/test_image_resizing.py and iOS14's."""
    x = np.array([[[[1.5, -2.5, 3.5]]]], np.float32)
    (got,) = run_program(lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=height, scale_factor_width=width), x, opset=opset)
    np.testing.assert_array_equal(got, np.array([[wanted]], np.float32))


def test_upsampling_without_factors_changes_nothing() -> None:
    x = normal(2, 3, 4)
    for name in ("upsample_nearest_neighbor", "upsample_bilinear"):
        np.testing.assert_array_equal(handler(name)(x), x)


@pytest.mark.parametrize("declared", [6, 7])
def test_upsampled_sizes_are_rounded_as_the_package_declares(declared: int) -> None:
    """0.7 as float32 is a little less, so that 10 times it is 7 in float32 and 6.99... in float64."""
    kind = TensorType("fp32", (1, 1, declared))
    x, factor = normal(1, 1, 10), float(np.float32(0.7))
    for name in ("upsample_nearest_neighbor", "upsample_bilinear"):
        assert handler(name)(x, 1.0, factor, declared=(kind,)).shape == (1, 1, declared)
        assert handler(name)(x, 1.0, factor).shape == (1, 1, 7)


def test_upsampled_sizes_are_not_whatever_the_package_declares() -> None:
    assert handler("upsample_nearest_neighbor")(normal(1, 1, 10), 1.0, 0.5, declared=(TensorType("fp32", (1, 1, 9)),)).shape == (1, 1, 5)


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_factor_that_is_not_finite_is_refused(factor: float) -> None:
    with pytest.raises(PackageError, match="not finite"):
        handler("upsample_bilinear")(normal(1, 1, 2), 1.0, factor)


BILINEAR = {  # align_corners, half_pixel_centers, the mode of resize_bilinear
    "aligned": (True, None, "STRICT_ALIGN_CORNERS"),
    "unaligned": (False, None, "UNALIGN_CORNERS"),
    "aligned, no half pixels": (True, False, "STRICT_ALIGN_CORNERS"),
    "unaligned, half pixels": (False, True, "UNALIGN_CORNERS"),
    "unaligned, no half pixels": (False, False, "DEFAULT"),
}


@pytest.mark.parametrize("case", by_name(BILINEAR))
@settings(max_examples=30, deadline=None)
@given(height=SIZE, width=SIZE, factors=st.tuples(st.integers(8, 200), st.integers(8, 200)))
def test_upsample_bilinear_samples_by_sizes(case: tuple, height: int, width: int, factors: tuple[int, int]) -> None:
    align, half, mode = case
    sizes = [height * factors[0] // 64, width * factors[1] // 64]
    assume(min(sizes) > 0)
    x = normal(2, height, width).astype(np.float64)
    wanted = interpolated(x, sizes, mode)
    scale = [factor / 64 for factor in factors]
    close(handler("upsample_bilinear", "iOS16")(x, *scale, align_corners=align, half_pixel_centers=half), wanted, 1e-12)
    if half is None:
        close(handler("upsample_bilinear", "iOS15")(x, *scale, align_corners=align), wanted, 1e-12)


def test_upsample_bilinear_aligns_corners_unless_told_otherwise() -> None:
    x = normal(1, 2, 3)
    for opset in definitions("upsample_bilinear"):
        close(handler("upsample_bilinear", opset)(x, 2.0, 2.0), interpolated(x, [4, 6], "STRICT_ALIGN_CORNERS"))


def test_upsample_bilinear_with_corners_and_half_pixels_is_refused() -> None:
    with pytest.raises(PackageError, match="exclude one another"):
        handler("upsample_bilinear", "iOS16")(normal(1, 2, 3), 2.0, 2.0, align_corners=True, half_pixel_centers=True)


@pytest.mark.parametrize("opset", definitions("upsample_bilinear"))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("align", [True, False])
def test_upsample_bilinear_in_a_package_follows_its_sizes(align: bool, dtype: type, opset: str) -> None:
    x = normal(1, 2, 3, 2).astype(dtype)
    arguments = {"scale_factor_height": np.float32(1), "scale_factor_width": np.float32(2.6), "align_corners": align}
    (got,) = run_program(lambda x: mb.upsample_bilinear(x=x, **arguments), x, opset=opset)
    wanted = interpolated(x, [3, 5], "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS")
    np.testing.assert_allclose(got, wanted, rtol=1e-5 if dtype == np.float32 else 2**-11, atol=1e-6)


@pytest.mark.parametrize(("half", "wanted"), [(True, [1, 1, 4 / 3, 5 / 3, 2, 2]), (False, [1, 4 / 3, 5 / 3, 2, 2, 2])])
def test_upsample_bilinear_with_half_pixels_in_a_package_gives_what_core_ml_gives(half: bool, wanted: list[float]) -> None:
    """Values of coremltools' tests, mil/ops/tests/iOS16/test_image_resizing.py."""
    arguments = {"scale_factor_height": 2, "scale_factor_width": 3, "align_corners": False, "half_pixel_centers": half}
    (got,) = run_program(lambda x: mb.upsample_bilinear(x=x, **arguments), np.array([[[[1, 2]]]], np.float32), opset="iOS16")
    close(got, np.array([[[wanted] * 2]]), 1e-6)


class Interpolated(torch.nn.Module):
    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, **self.arguments)


IMAGE, LINE = (1, 2, 6, 5), (2, 3, 7)
MODULES = {
    "nearest by whole factors": (torch.nn.Upsample(scale_factor=(2, 3)), IMAGE),
    "nearest by fractions": (Interpolated(scale_factor=(1.5, 0.4), mode="nearest"), IMAGE),
    "nearest by fractions of its sizes": (Interpolated(scale_factor=1.3, mode="nearest", recompute_scale_factor=True), IMAGE),
    "nearest to a size": (torch.nn.Upsample(size=(11, 4)), IMAGE),
    "nearest of a line": (torch.nn.Upsample(scale_factor=3), LINE),
    "nearest of a line to a size": (torch.nn.Upsample(size=10), LINE),
    "bilinear by whole factors": (torch.nn.Upsample(scale_factor=(2, 3), mode="bilinear"), IMAGE),
    "bilinear by a whole fraction": (Interpolated(scale_factor=(1.5, 0.4), mode="bilinear"), IMAGE),
    "bilinear by fractions of its sizes": (Interpolated(scale_factor=1.3, mode="bilinear", recompute_scale_factor=True), IMAGE),
    "bilinear to a size": (Interpolated(size=(11, 4), mode="bilinear"), IMAGE),
    "aligned by whole factors": (torch.nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "aligned by fractions": (Interpolated(scale_factor=(1.3, 0.7), mode="bilinear", align_corners=True), IMAGE),
    "aligned to a size": (Interpolated(size=(1, 8), mode="bilinear", align_corners=True), IMAGE),
    "linear": (torch.nn.Upsample(scale_factor=2, mode="linear"), LINE),
    "linear, aligned, by a fraction": (torch.nn.Upsample(scale_factor=1.7, mode="linear", align_corners=True), LINE),
    "linear to a size": (torch.nn.Upsample(size=12, mode="linear"), LINE),
}


@pytest.mark.parametrize("case", by_name(MODULES))
def test_traced_interpolation_matches_torch(case: tuple[torch.nn.Module, tuple[int, ...]]) -> None:
    module, shape = case
    (got,), (wanted,), operations = run_module(module, torch.from_numpy(normal(*shape)))
    close(got, wanted)
    assert {"upsample_nearest_neighbor", "upsample_bilinear"} & set(operations)


def test_traced_nearest_by_an_odd_fraction_samples_by_sizes_unlike_torch() -> None:
    """Core ML forgets the factor once it has the size: of 4 times 1.6 it takes 0 0 1 2 2 3, where torch has 0 0 1 1 2 3."""
    x = torch.arange(16, dtype=torch.float32).reshape(1, 1, 4, 4)
    (got,), (wanted,), _operations = run_module(Interpolated(scale_factor=1.6, mode="nearest"), x)
    np.testing.assert_array_equal(got[0, 0, 0], [0, 0, 1, 2, 2, 3])
    np.testing.assert_array_equal(wanted[0, 0, 0], [0, 0, 1, 1, 2, 3])
