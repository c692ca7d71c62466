from __future__ import annotations

from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.networks import convert_torch, make_flexible
from support.programs import close, edited_specification, normal, save_package, write_program
from torch import Tensor


class Double(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Sum(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) + y.sum(1, keepdim=True)


class Resizing(torch.nn.Module):
    """A network that reads its length in every way that exporters write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 8, 3, padding=1)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = torch.nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.conv(x)).transpose(1, 2)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        pairs = self.out(hidden).reshape(1, -1, 2)
        longer = torch.nn.functional.interpolate(hidden.transpose(1, 2), scale_factor=2.0, mode="nearest")
        return pairs, longer[:, :, : x.shape[2] * 2 - 1]


LENGTHS = (5, 6, 17, 40)


@pytest.fixture(scope="module")
def resizing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Resizing, ReferenceModel]:
    torch.manual_seed(0)
    network = Resizing().eval()
    inputs = [ct.TensorType("x", shape=(1, 4, ct.RangeDim(5, 40, default=8)))]
    path = convert_torch(tmp_path_factory.mktemp("resizing"), network, [torch.zeros(1, 4, 8)], inputs=inputs)
    return network, ReferenceModel(path)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_flexible_network_matches_torch_at_every_length(resizing: tuple[Resizing, ReferenceModel], length: int) -> None:
    network, model = resizing
    x = normal(1, 4, length)
    got = list(model.predict({"x": x}).values())
    with torch.no_grad():
        wanted = network(torch.from_numpy(x))
    assert [value.shape for value in got] == [(1, 2 * length, 2), (1, 8, 2 * length - 1)]
    for ours, theirs in zip(got, wanted, strict=True):
        close(ours, theirs.numpy(), 2e-6)


def test_a_ranges_bounds_are_inclusive_and_nothing_beyond_is_taken(resizing: tuple[Resizing, ReferenceModel]) -> None:
    _network, model = resizing
    assert model.inputs["x"].describe() == "fp32 (1, 4, 5..40)"
    assert model.inputs["x"].default == (1, 4, 8)
    for shape in ((1, 4, 4), (1, 4, 41), (1, 3, 8), (2, 4, 8), (4, 8), (1, 1, 4, 8)):
        with pytest.raises(PackageError, match=r"input 'x' is \(.*\) and should be \(1, 4, 5\.\.40\)"):
            model.predict({"x": np.zeros(shape)})


def test_an_unlimited_range_has_no_upper_bound(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.mul(x=x, y=2.0, name="y"), normal(2, 3))
    with edited_specification(path) as specification:
        make_flexible(specification, [(2, 2), (1, -1)])
    model = ReferenceModel(path)
    assert model.inputs["x"].describe() == "fp32 (2, 1..)"
    assert model.predict({"x": np.ones((2, 10_000))})["y"].shape == (2, 10_000)
    for shape in ((2, 0), (1, 3)):
        with pytest.raises(PackageError, match=r"should be \(2, 1\.\.\)"):
            model.predict({"x": np.ones(shape)})


def test_several_flexible_inputs_vary_on_their_own(tmp_path: Path) -> None:
    inputs = [ct.TensorType("x", shape=(2, ct.RangeDim(1, 5, default=3))), ct.TensorType("y", shape=(2, ct.RangeDim(2, 9, default=4)))]
    model = ReferenceModel(convert_torch(tmp_path, Sum(), [torch.zeros(2, 3), torch.zeros(2, 4)], inputs=inputs))
    for first, second in ((1, 9), (5, 2), (3, 3)):
        x, y = normal(2, first), normal(2, second)
        (got,) = model.predict({"x": x, "y": y}).values()
        close(got, x.sum(1, keepdims=True) + y.sum(1, keepdims=True), 1e-5)
    with pytest.raises(PackageError, match="input 'y'"):
        model.predict({"x": normal(2, 1), "y": normal(2, 1)})


def test_only_enumerated_shapes_are_taken(tmp_path: Path) -> None:
    shapes = ct.EnumeratedShapes([(2, 3), (2, 6), (4, 3)], default=(2, 6))
    path = convert_torch(tmp_path, Double(), [torch.zeros(2, 6)], inputs=[ct.TensorType("x", shape=shapes)])
    model = ReferenceModel(path)
    assert model.inputs["x"].default == (2, 6)
    assert set(model.inputs["x"].enumerated) == {(2, 3), (2, 6), (4, 3)}
    for shape in model.inputs["x"].enumerated:
        (got,) = model.predict({"x": np.ones(shape)}).values()
        np.testing.assert_array_equal(got, np.full(shape, 2))
    for shape in ((4, 6), (2, 4), (3, 3)):
        with pytest.raises(PackageError, match=r"should be \(2, 6\) or \(2, 3\) or \(4, 3\)"):
            model.predict({"x": np.ones(shape)})


def test_several_enumerated_inputs_go_by_their_place_in_the_list(tmp_path: Path) -> None:
    inputs = [
        ct.TensorType("x", shape=ct.EnumeratedShapes([(2, 3), (2, 4), (2, 5)])),
        ct.TensorType("y", shape=ct.EnumeratedShapes([(2, 6), (2, 7), (2, 8)])),
    ]
    path = convert_torch(tmp_path, Sum(), [torch.zeros(2, 3), torch.zeros(2, 6)], inputs=inputs, opset="iOS18")
    model = ReferenceModel(path)
    for first, second in ((3, 6), (4, 7), (5, 8)):
        (got,) = model.predict({"x": np.ones((2, first)), "y": np.ones((2, second))}).values()
        np.testing.assert_array_equal(got, np.full((2, 1), first + second))
    for first, second in ((3, 7), (4, 6), (5, 7)):
        with pytest.raises(PackageError, match="do not belong together"):
            model.predict({"x": np.ones((2, first)), "y": np.ones((2, second))})


def test_a_flexible_axis_that_is_not_described_takes_the_described_size_only(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.mul(x=x, y=2.0), normal(2, 3))
    with edited_specification(path) as specification:
        make_flexible(specification, [])
    model = ReferenceModel(path)
    model.predict({"x": normal(2, 3)})
    with pytest.raises(PackageError, match=r"is \(2, 4\) and should be \(2, 3\)"):
        model.predict({"x": normal(2, 4)})


def test_a_package_without_description_takes_what_its_program_declares(tmp_path: Path) -> None:
    program = mb.program(input_specs=[mb.TensorSpec(shape=(2, 3))])(lambda x: mb.mul(x=x, y=2.0, name="y"))
    model = ReferenceModel(write_program(program, tmp_path / "model.mlpackage"))
    assert model.inputs["x"].describe() == "fp32 (2, 3)"
    with pytest.raises(PackageError, match=r"is \(3, 3\) and should be \(2, 3\)"):
        model.predict({"x": normal(3, 3)})
