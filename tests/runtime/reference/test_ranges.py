"""Recorded ranges against what numpy says of the same values, and the hazards that they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.ranges import (
    SMALLEST,
    SMALLEST_NORMAL,
    bounds,
    hazards,
    joined,
    measure,
    read_ranges,
    record_ranges,
    slices_inside,
    write_ranges,
)
from support.programs import save_package


@settings(max_examples=80, deadline=None)
@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e5, 1e5, width=32)))
def test_a_range_is_what_numpy_says(values: np.ndarray) -> None:
    found = measure("a", "add", torch.from_numpy(values.copy()))
    magnitude = np.abs(values)
    assert (found.low, found.high, found.count) == (values.min(), values.max(), values.size)
    assert found.peak == magnitude.max()
    assert found.subnormal == pytest.approx(np.mean((magnitude > 0) & (magnitude < SMALLEST_NORMAL)))
    assert found.vanishing == pytest.approx(np.mean((magnitude > 0) & (magnitude <= SMALLEST)))
    halved = found.joined(measure("a", "add", torch.from_numpy(2 * values)))
    assert halved.peak == 2 * found.peak
    assert halved.count == 2 * values.size


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    found = measure("a", "conv", torch.tensor([1.0, float("inf"), float("nan"), -3.0]))
    assert (found.low, found.high, found.not_finite) == (-3.0, 1.0, 2)
    assert bounds({"a": found}) == {"a": (-np.inf, np.inf)}
    assert "2 of 4 values are not finite" in hazards({"a": found})[0].what


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def program(x):
        large = mb.mul(x=x, y=np.float32(1000.0), name="large")
        product = mb.matmul(x=large, y=np.eye(8, dtype=np.float32) * 30, name="product")
        inside = mb.slice_by_index(x=product, begin=[0, 2], end=[4, 8], name="inside")
        start = mb.slice_by_index(x=product, begin=[1, 0], end=[4, 6], name="start")
        small = mb.mul(x=start, y=np.float32(1e-10), name="small")
        return inside, small

    return save_package(tmp_path_factory.mktemp("ranges"), program, np.zeros((4, 8), np.float32))


def test_a_package_is_recorded_operation_by_operation(package: Path) -> None:
    given_ = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
    ranges, outputs = record_ranges(package, {"x": given_}, "float32")
    assert ranges["large"].high == pytest.approx(1000)
    assert ranges["product"].low == pytest.approx(-30000)
    assert ranges["product"].headroom_db == pytest.approx(20 * np.log10(32768 / 30000), abs=1e-3)
    assert ranges["large"].headroom_db == pytest.approx(20 * np.log10(65504 / 1000), abs=1e-3)
    assert ranges["small"].subnormal == 1.0
    assert set(outputs) == set(ReferenceModel(package).outputs)
    found = {hazard.operation: hazard.what for hazard in hazards(ranges, slices_inside(ReferenceModel(package)))}
    assert set(found) == {"product", "inside", "small"}
    assert "saturate at 32768" in found["product"]
    assert "beyond 4094" in found["inside"]
    assert "below half precision's normal ones" in found["small"]


def test_slices_that_begin_inside_the_last_axis(package: Path) -> None:
    assert slices_inside(ReferenceModel(package)) == ["inside"]


def test_ranges_of_several_clips_are_joined_and_kept(package: Path, tmp_path: Path) -> None:
    runs = [record_ranges(package, {"x": np.full((4, 8), level, np.float32)}, "float32")[0] for level in (0.5, -0.25)]
    both = joined(runs)
    assert bounds(both)["large"] == (-250.0, 500.0)
    path = tmp_path / "ranges.json"
    write_ranges(path, {"flow": {**bounds(both), "worse": (-np.inf, 3.0)}})
    assert read_ranges(path) == {"flow": {**bounds(both), "worse": (-np.inf, 3.0)}}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"ranges": [1]}', '{"ranges": {"flow": {"a": 3}}}', '{"ranges": {"flow": {"a": [1, "x"]}}}']
)
def test_another_file_is_refused_in_a_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="holds no ranges of operations"):
        read_ranges(path)
