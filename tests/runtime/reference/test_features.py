from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.proto import FeatureTypes_pb2
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.networks import convert_torch, make_flexible
from support.programs import by_name, close, edited_specification, main_block, normal, save_package
from torch import Tensor

ARRAY = FeatureTypes_pb2.ArrayFeatureType


class Double(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Sum(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) + y.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel(save_package(tmp_path_factory.mktemp("floats"), lambda x: mb.mul(x=x, y=2.0, name="y"), normal(2, 3)))


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    path = save_package(tmp_path_factory.mktemp("integers"), lambda x: mb.mul(x=x, y=2, name="y"), np.ones((2, 3), np.int32))
    return ReferenceModel(path)


VALUES = np.array([[1, 0, 1], [0, 1, 1]])
GIVEN: dict[str, Any] = {
    "float64": VALUES.astype(np.float64),
    "float16": VALUES.astype(np.float16),
    "int64": VALUES.astype(np.int64),
    "uint64": VALUES.astype(np.uint64),
    "bool": VALUES.astype(bool),
    "lists": VALUES.tolist(),
    "tuples": tuple(map(tuple, VALUES.tolist())),
    "a torch tensor": torch.tensor(VALUES),
    "a tensor with a gradient": torch.tensor(VALUES, dtype=torch.float32, requires_grad=True),
    "a half tensor": torch.tensor(VALUES, dtype=torch.float16),
    "a transposed array": np.asfortranarray(VALUES),
    "a read-only array": np.broadcast_to(VALUES, (2, 3)),
}


@pytest.mark.parametrize("given", by_name(GIVEN))
def test_whatever_numpy_reads_is_taken_and_converted(floats: ReferenceModel, integers: ReferenceModel, given: Any) -> None:
    for model, dtype in ((floats, np.float32), (integers, np.int32)):
        got = model.predict({"x": given})["y"]
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, VALUES * 2)


@pytest.mark.parametrize(
    "given",
    by_name(
        {
            "lists of different lengths": [[1, 2, 3], [4, 5]],
            "strings": [["a", "b", "c"]] * 2,
            "objects": [[None] * 3] * 2,
            "integers beyond 64 bit": [[1 << 70] * 3] * 2,
            "a bfloat16 tensor": torch.zeros(2, 3, dtype=torch.bfloat16),
            "a sparse tensor": torch.zeros(2, 3).to_sparse(),
            "a dict": {"a": 1},
        }
    ),
)
def test_what_is_no_array_of_numbers_is_refused(floats: ReferenceModel, given: Any) -> None:
    with pytest.raises(PackageError, match=r"input 'x' (is no array|holds)"):
        floats.predict({"x": given})


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1e10, np.nan, np.inf, np.uint64(2**63)])
def test_values_that_an_integer_input_cannot_hold_are_refused(integers: ReferenceModel, value: Any) -> None:
    with pytest.raises(PackageError, match="input 'x' holds values that int32 cannot hold"):
        integers.predict({"x": np.full((2, 3), value)})


@pytest.mark.parametrize("value", [2**30 - 1, -(2**30), 1.9, -1.9])
def test_floats_for_an_integer_input_lose_their_fraction(integers: ReferenceModel, value: Any) -> None:
    np.testing.assert_array_equal(integers.predict({"x": np.full((2, 3), value)})["y"], np.full((2, 3), int(value) * 2))


@pytest.mark.parametrize("data", [None, 5, "x", (np.zeros((2, 3)),), np.zeros((2, 3))], ids=lambda item: type(item).__name__)
def test_data_that_is_no_dict_is_refused(floats: ReferenceModel, data: Any) -> None:
    with pytest.raises(PackageError, match="takes a dict"):
        floats.predict(data)


def test_a_list_of_dicts_gives_a_list_of_results(floats: ReferenceModel) -> None:
    inputs = [{"x": normal(2, 3, seed=seed)} for seed in range(3)]
    got = floats.predict(inputs)
    for item, result in zip(inputs, got, strict=True):
        np.testing.assert_array_equal(result["y"], item["x"] * 2)
    assert floats.predict([]) == []
    with pytest.raises(PackageError, match="takes a dict"):
        floats.predict([{"x": normal(2, 3)}, 5])


def test_names_that_are_no_text_are_refused(floats: ReferenceModel) -> None:
    with pytest.raises(PackageError, match="has no input 1"):
        floats.predict({"x": normal(2, 3), 1: normal(2, 3), "z": normal(1)})


def test_a_required_input_cannot_be_none(floats: ReferenceModel) -> None:
    with pytest.raises(PackageError, match="needs the input 'x'"):
        floats.predict({"x": None})


def test_trace_hands_out_every_operation_and_returns_the_outputs(tmp_path: Path) -> None:
    x = normal(2, 3)
    path = save_package(tmp_path, lambda x: mb.relu(x=mb.tanh(x=x, name="first"), name="second"), x)
    run, seen = ReferenceModel(path).trace({"x": x}), {}
    while True:
        try:
            executed = next(run)
        except StopIteration as finished:
            outputs = finished.value
            break
        seen[executed.place] = {name: value.numpy().copy() for name, value in executed.results.items()}
    assert list(seen) == ["first", "second"]
    close(seen["first"]["first"], np.tanh(x), 1e-6)
    np.testing.assert_array_equal(seen["second"]["second"], np.maximum(seen["first"]["first"], 0))
    np.testing.assert_array_equal(outputs["second"], seen["second"]["second"])


# Optional inputs


def optional(path: Path, name: str, value: float | None = None, field: str = "floatDefaultValue") -> None:
    with edited_specification(path) as specification:
        feature = next(item for item in specification.description.input if item.name == name)
        feature.type.isOptional = True
        if value is not None:
            setattr(feature.type.multiArrayType, field, value)


def test_an_optional_input_takes_its_default_value(tmp_path: Path) -> None:
    x, y = normal(2, 3), normal(2, 3, seed=1)
    path = save_package(tmp_path, lambda x, y: mb.add(x=x, y=y, name="sum"), x, y)
    optional(path, "y", 2.5)
    model = ReferenceModel(path)
    assert model.inputs["y"].describe() == "fp32 (2, 3), optional"
    np.testing.assert_array_equal(model.predict({"x": x})["sum"], x + np.float32(2.5))
    np.testing.assert_array_equal(model.predict({"x": x, "y": None})["sum"], x + np.float32(2.5))
    np.testing.assert_array_equal(model.predict({"x": x, "y": y})["sum"], x + y)
    with pytest.raises(PackageError, match="needs the input 'x'"):
        model.predict({"y": y})


@pytest.mark.parametrize(("field", "value"), [("intDefaultValue", 7), ("floatDefaultValue", 7.0), ("doubleDefaultValue", 7.0)])
def test_default_values_come_in_three_types(tmp_path: Path, field: str, value: float) -> None:
    x = np.ones((2, 3), np.int32)
    path = save_package(tmp_path, lambda x: mb.add(x=x, y=1, name="y"), x)
    optional(path, "x", value, field)
    np.testing.assert_array_equal(ReferenceModel(path).predict({})["y"], np.full((2, 3), 8))


def test_an_optional_input_without_a_value_is_zero(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.add(x=x, y=1.0, name="y"), normal(2, 3))
    optional(path, "x")
    np.testing.assert_array_equal(ReferenceModel(path).predict({})["y"], np.ones((2, 3)))


def test_coremltools_own_default_value_is_used_with_the_default_shape(tmp_path: Path) -> None:
    inputs = [
        ct.TensorType("x", shape=(2, 3)),
        ct.TensorType("y", shape=(2, ct.RangeDim(1, 9, default=4)), default_value=np.full((2, 4), 0.5, np.float32)),
    ]
    model = ReferenceModel(convert_torch(tmp_path, Sum(), [torch.zeros(2, 3), torch.zeros(2, 4)], inputs=inputs))
    x = normal(2, 3)
    close(model.predict({"x": x})["y" if "y" in model.outputs else next(iter(model.outputs))], x.sum(1, keepdims=True) + 2, 1e-6)
    close(next(iter(model.predict({"x": x, "y": np.ones((2, 9))}).values())), x.sum(1, keepdims=True) + 9, 1e-6)


def test_a_default_value_that_its_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.add(x=x, y=1), np.ones((2, 3), np.int32))
    optional(path, "x", 1e20)
    with pytest.raises(PackageError, match="int32 cannot hold"):
        ReferenceModel(path).predict({})


# Descriptions that make no sense


def another_size(feature: Any) -> None:
    feature.type.multiArrayType.shape[1] = 5


def another_rank(feature: Any) -> None:
    feature.type.multiArrayType.shape.append(1)


def negative_size(feature: Any) -> None:
    feature.type.multiArrayType.shape[1] = -3


def another_type(feature: Any) -> None:
    feature.type.multiArrayType.dataType = ARRAY.INT32


def another_name(feature: Any) -> None:
    feature.name = "z"


def a_range_outside(feature: Any) -> None:
    for size in (2, 4):
        limits = feature.type.multiArrayType.shapeRange.sizeRanges.add()
        limits.lowerBound, limits.upperBound = size, size


def a_range_of_another_rank(feature: Any) -> None:
    feature.type.multiArrayType.shapeRange.sizeRanges.add().upperBound = 2


def a_range_turned_round(feature: Any) -> None:
    for low, high in ((2, 2), (9, 3)):
        limits = feature.type.multiArrayType.shapeRange.sizeRanges.add()
        limits.lowerBound, limits.upperBound = low, high


def enumerated_otherwise(feature: Any) -> None:
    feature.type.multiArrayType.enumeratedShapes.shapes.add().shape.extend([2, 7])


def a_dictionary(feature: Any) -> None:
    feature.type.dictionaryType.stringKeyType.SetInParent()


def a_sequence(feature: Any) -> None:
    feature.type.sequenceType.int64Type.SetInParent()


def a_string(feature: Any) -> None:
    feature.type.stringType.SetInParent()


def nothing(feature: Any) -> None:
    feature.type.Clear()


def an_image_of_two_axes(feature: Any) -> None:
    feature.type.imageType.colorSpace = FeatureTypes_pb2.ImageFeatureType.RGB


def an_image_without_layout(feature: Any) -> None:
    feature.type.imageType.width = 3


def an_image_of_invented_layout(feature: Any) -> None:
    feature.type.imageType.colorSpace = 77


NONSENSE = (
    (another_size, r"'x' is described as \(2, 5\) and computed as \(2, 3\)"),
    (another_rank, r"'x' is described as \(2, 3, 1\) and computed as \(2, 3\)"),
    (negative_size, "'x' is described as .*which is no shape"),
    (another_type, "'x' is described as int32 and computed as fp32"),
    (another_name, "do not have the same inputs: 'x'"),
    (a_range_outside, "'x' is described as"),
    (a_range_of_another_rank, "'x' is described as"),
    (a_range_turned_round, "sizes from 9 to 3"),
    (enumerated_otherwise, r"'x' is described as \(2, 7\)"),
    (a_dictionary, "'x' is described as dictionaryType"),
    (a_sequence, "'x' is described as sequenceType"),
    (a_string, "'x' is described as stringType"),
    (nothing, "'x' is described as None"),
    (an_image_of_two_axes, "'x' is described as a RGB image of 0 x 0 and computed as"),
    (an_image_without_layout, "'x' is an image without a colour layout"),
    (an_image_of_invented_layout, "'x' is an image without a colour layout"),
)


@pytest.mark.parametrize(("edit", "pattern"), NONSENSE, ids=lambda item: getattr(item, "__name__", ""))
def test_a_description_that_contradicts_its_program_is_refused(tmp_path: Path, edit: Callable[[Any], None], pattern: str) -> None:
    path = save_package(tmp_path, lambda x: mb.mul(x=x, y=2.0), normal(2, 3))
    with edited_specification(path) as specification:
        edit(specification.description.input[0])
    with pytest.raises(PackageError, match=pattern):
        ReferenceModel(path)


@pytest.mark.parametrize("size", [1 << 27, 1 << 60])
def test_an_optional_input_of_absurd_size_is_refused(tmp_path: Path, size: int) -> None:
    path = save_package(tmp_path, lambda x: mb.reduce_sum(x=x, axes=[1]), normal(2, 3))
    optional(path, "x", 1.0)
    with edited_specification(path) as specification:
        make_flexible(specification, [(2, 2), (1, -1)])
        specification.description.input[0].type.multiArrayType.shape[1] = size
    with pytest.raises(PackageError, match=r"has a default of .*; the memory limit is 268\.4 MB"):
        ReferenceModel(path, memory_limit=1 << 28).predict({})


# Types at the interface


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_value_without_axes_is_shown_as_an_array_of_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save_package(tmp_path, lambda x: mb.mul(x=x, y=2.0, name="y"), np.ones(1, np.float32))
    with edited_specification(path) as specification:
        types = [specification.mlProgram.functions["main"].inputs[0].type, main_block(specification).operations[-1].outputs[0].type]
        for item in types:
            del item.tensorType.dimensions[:]
            item.tensorType.rank = 0
    model = ReferenceModel(path)
    assert model.inputs["x"].describe() == model.outputs["y"].describe() == "fp32 (1,)"
    got = model.predict({"x": np.full(shape, 1.5)})["y"]
    assert got.shape == (1,)
    assert got[0] == 3
    assert model.predict({"x": 2})["y"][0] == 4
    with pytest.raises(PackageError, match=r"should be \(1,\)"):
        model.predict({"x": np.ones(2)})


def test_a_sum_over_all_axes_is_given_as_an_array_of_one(tmp_path: Path) -> None:
    x = normal(2, 3)
    path = save_package(tmp_path, lambda x: mb.reduce_sum(x=x, name="y", keep_dims=False), x)
    got = ReferenceModel(path).predict({"x": x})["y"]
    assert got.shape == (1,)
    close(got, x.sum(keepdims=True).reshape(1), 1e-6)


@pytest.mark.parametrize("opset", ["iOS16", "iOS17", "iOS18"])
def test_half_precision_inputs_and_outputs(tmp_path: Path, opset: str) -> None:
    path = convert_torch(
        tmp_path,
        Double(),
        [torch.zeros(2, 3)],
        inputs=[ct.TensorType("x", shape=(2, 3), dtype=np.float16)],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        opset=opset,
        precision="fp16",
    )
    model = ReferenceModel(path)
    assert (model.inputs["x"].dtype, model.outputs["y"].dtype) == ("fp16", "fp16")
    x = normal(2, 3)
    got = model.predict({"x": x})["y"]
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, x.astype(np.float16) * np.float16(2))
    assert np.isinf(model.predict({"x": np.full((2, 3), 1e6)})["y"]).all()


def test_the_described_output_type_is_given(tmp_path: Path) -> None:
    x = normal(2, 3).astype(np.float16)
    path = save_package(tmp_path, lambda x: mb.mul(x=x, y=np.float16(2), name="y"), x)
    for described, dtype in ((ARRAY.FLOAT32, np.float32), (ARRAY.DOUBLE, np.float64), (ARRAY.FLOAT16, np.float16)):
        with edited_specification(path) as specification:
            specification.description.output[0].type.multiArrayType.dataType = described
        got = ReferenceModel(path).predict({"x": x})["y"]
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, (x * np.float16(2)).astype(dtype))


class Integers(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 3, torch.argmax(x, dim=1)


def test_integer_inputs_and_outputs(tmp_path: Path) -> None:
    x = np.array([[1, -7, 2**24 + 1], [5, 0, -3]])
    path = convert_torch(tmp_path, Integers(), [torch.zeros(2, 3, dtype=torch.int32)], inputs=[ct.TensorType("x", (2, 3), np.int32)])
    model = ReferenceModel(path)
    assert model.inputs["x"].dtype == "int32"
    product, index = model.predict({"x": x}).values()
    assert (product.dtype, index.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(product, x * 3)
    np.testing.assert_array_equal(index, [2, 0])


def test_bytes_in_and_out(tmp_path: Path) -> None:
    """Since iOS 26; what goes between is still an operation of iOS 18 or earlier."""
    x = np.array([[1, -7, 127], [-128, 0, 3]], np.int8)
    path = convert_torch(
        tmp_path,
        Double(),
        [torch.zeros(2, 3, dtype=torch.int8)],
        inputs=[ct.TensorType("x", (2, 3), np.int8)],
        outputs=[ct.TensorType("y", dtype=np.int8)],
        opset="iOS26",
    )
    model = ReferenceModel(path)
    assert (model.inputs["x"].dtype, model.outputs["y"].dtype) == ("int8", "int8")
    small = np.array([[1, -7, 63], [-64, 0, 3]])
    got = model.predict({"x": small})["y"]
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, small * 2)
    with pytest.raises(PackageError, match="int8 cannot hold"):
        model.predict({"x": np.full((2, 3), 128)})
    assert x.dtype == np.int8
