from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.proto import MIL_pb2
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.programs import MODEL_FILE, WEIGHT_FILE, edited_specification, main_block, normal, save_package

WEIGHT = normal(8, 6, seed=1)
X = normal(2, 6)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_package(tmp_path_factory.mktemp("intact"), lambda x: mb.relu(x=mb.linear(x=x, weight=WEIGHT, name="product"), name="y"), X)


@pytest.fixture
def package(intact: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(intact, tmp_path / "damaged.mlpackage"))


def refused(package: Path, *patterns: str) -> None:
    """Loading fails with one sentence of one line that names the package and says what is wrong."""
    with pytest.raises(PackageError) as error:
        ReferenceModel(package)
    message = str(error.value)
    assert str(package) in message
    assert "\n" not in message
    assert "Traceback" not in message
    for pattern in patterns:
        assert re.search(pattern, message), message


def operations(specification: Any, kind: str) -> list[Any]:
    return [item for item in main_block(specification).operations if item.type == kind]


def blob(specification: Any) -> Any:
    """The value of the constant that lies in the weight file."""
    values = [item.attributes["val"] for item in operations(specification, "const")]
    return next(value for value in values if value.WhichOneof("value") == "blobFileValue")


def test_the_intact_package_runs(package: Path) -> None:
    np.testing.assert_allclose(ReferenceModel(package).predict({"x": X})["y"], np.maximum(X @ WEIGHT.T, 0), atol=1e-6)


def test_a_missing_package_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.mlpackage", "does not exist")


def test_a_file_is_not_a_package(tmp_path: Path) -> None:
    path = tmp_path / "file.mlpackage"
    path.write_bytes(b"text")
    refused(path, "is not an .mlpackage")


def test_a_package_without_manifest_is_refused(package: Path) -> None:
    (package / "Manifest.json").unlink()
    refused(package, "Manifest.json")


MANIFESTS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "not json": b"{'a': 1",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "no entries": b"{}",
    "no root": b'{"itemInfoEntries": {}}',
    "an unknown root": b'{"itemInfoEntries": {}, "rootModelIdentifier": "a"}',
    "a root that is a list": b'{"itemInfoEntries": {}, "rootModelIdentifier": []}',
    "an entry without path": b'{"itemInfoEntries": {"a": {}}, "rootModelIdentifier": "a"}',
    "a path that is a number": b'{"itemInfoEntries": {"a": {"path": 7}}, "rootModelIdentifier": "a"}',
    "a path with a null byte": b'{"itemInfoEntries": {"a": {"path": "a\\u0000b"}}, "rootModelIdentifier": "a"}',
    "nested beyond recursion": b"[" * 100_000,
}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_damaged_manifest_is_refused(package: Path, manifest: str) -> None:
    (package / "Manifest.json").write_bytes(MANIFESTS[manifest])
    refused(package, "Manifest.json is damaged: it names no model file")


def point_to(package: Path, item: str) -> None:
    manifest = {"itemInfoEntries": {"a": {"path": item}}, "rootModelIdentifier": "a"}
    (package / "Manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("item", ["../../outside.mlmodel", "com.apple.CoreML/../../../outside.mlmodel"])
def test_a_manifest_that_climbs_out_is_refused(package: Path, item: str) -> None:
    shutil.copy(package / MODEL_FILE, package.parent / "outside.mlmodel")
    point_to(package, item)
    assert (package / "Data" / item).is_file()
    refused(package, "points outside the package")


def test_a_manifest_with_an_absolute_path_is_refused(package: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.mlmodel"
    shutil.copy(package / MODEL_FILE, outside)
    point_to(package, str(outside))
    refused(package, "points outside the package")


def test_a_model_file_linked_out_of_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    shutil.move(package / MODEL_FILE, tmp_path / "outside.mlmodel")
    (package / MODEL_FILE).symlink_to(tmp_path / "outside.mlmodel")
    refused(package, "points outside the package")


@pytest.mark.parametrize("item", ["com.apple.CoreML/other.mlmodel", "com.apple.CoreML", ""], ids=["other", "folder", "empty"])
def test_a_manifest_that_names_no_file_is_refused(package: Path, item: str) -> None:
    point_to(package, item)
    refused(package, "lacks its model file|names no model file")


def test_a_manifest_with_an_impossible_name_is_refused(package: Path) -> None:
    point_to(package, "x" * 5000)
    refused(package, "no model file")


def test_a_path_that_cannot_exist_is_refused() -> None:
    refused(Path("x" * 5000), "cannot be a file's name|does not exist")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model_file_is_refused(package: Path, share: float) -> None:
    data = (package / MODEL_FILE).read_bytes()
    (package / MODEL_FILE).write_bytes(data[: int(len(data) * share)])
    refused(package)


def test_an_empty_model_file_is_refused(package: Path) -> None:
    (package / MODEL_FILE).write_bytes(b"")
    refused(package, "holds no model")


@pytest.mark.parametrize("seed", range(20))
def test_a_random_model_file_is_refused(package: Path, seed: int) -> None:
    (package / MODEL_FILE).write_bytes(np.random.default_rng(seed).bytes(2000))
    refused(package)


def test_flipped_bytes_in_the_model_file_never_crash(package: Path) -> None:
    generator = np.random.default_rng(0)
    data = (package / MODEL_FILE).read_bytes()
    outcomes = {"refused": 0, "ran": 0}
    for _ in range(500):
        damaged = bytearray(data)
        damaged[generator.integers(0, len(data))] = generator.integers(0, 256)
        (package / MODEL_FILE).write_bytes(damaged)
        try:
            model = ReferenceModel(package)
            model.predict({name: np.zeros([size or 1 for size in kind.shape]) for name, kind in model.inputs.items()})
        except PackageError:
            outcomes["refused"] += 1
        else:
            outcomes["ran"] += 1
    assert outcomes["refused"] > 20, outcomes
    assert outcomes["ran"] > 20, outcomes


def test_a_missing_weight_file_is_refused(package: Path) -> None:
    (package / WEIGHT_FILE).unlink()
    refused(package, "lacks its weight file weights/weight.bin")


def test_an_empty_weight_file_is_refused(package: Path) -> None:
    (package / WEIGHT_FILE).write_bytes(b"")
    refused(package, "weight.bin is empty")


@pytest.mark.parametrize("length", [1, 64, 80, 128, 200])
def test_a_truncated_weight_file_is_refused(package: Path, length: int) -> None:
    data = (package / WEIGHT_FILE).read_bytes()
    assert length < len(data)
    (package / WEIGHT_FILE).write_bytes(data[:length])
    refused(package, f"beyond the file's {length} bytes")


@pytest.mark.parametrize("offset", [1 << 20, (1 << 63) - 1, (1 << 64) - 64])
def test_a_record_beyond_the_weight_file_is_refused(package: Path, offset: int) -> None:
    with edited_specification(package) as specification:
        blob(specification).blobFileValue.offset = offset
    refused(package, "beyond the file's")


def edit_record(package: Path, **fields: int) -> None:
    with edited_specification(package) as specification:
        offset = blob(specification).blobFileValue.offset
    data = bytearray((package / WEIGHT_FILE).read_bytes())
    names = ("sentinel", "code", "size", "start")
    record = dict(zip(names, struct.unpack_from("<IIQQ", data, offset), strict=True)) | fields
    struct.pack_into("<IIQQ", data, offset, *(record[name] for name in names))
    (package / WEIGHT_FILE).write_bytes(data)


def test_a_record_without_sentinel_is_refused(package: Path) -> None:
    edit_record(package, sentinel=0)
    refused(package, "no weight record for .* at")


@pytest.mark.parametrize("offset", [0, 65, 128])
def test_an_offset_that_is_no_records_is_refused(package: Path, offset: int) -> None:
    with edited_specification(package) as specification:
        blob(specification).blobFileValue.offset = offset
    refused(package, "no weight record for")


@pytest.mark.parametrize("size", [0, 1, WEIGHT.nbytes - 4, WEIGHT.nbytes + 4, (1 << 64) - 1])
def test_a_record_whose_size_differs_from_the_declared_shape_is_refused(package: Path, size: int) -> None:
    edit_record(package, size=size)
    refused(package, f"holds {size} bytes and fp32 \\(8, 6\\) needs {WEIGHT.nbytes}")


@pytest.mark.parametrize("start", [1 << 30, (1 << 64) - WEIGHT.nbytes, 65])
def test_a_record_that_points_beyond_the_file_or_between_values_is_refused(package: Path, start: int) -> None:
    edit_record(package, start=start)
    refused(package, "reaches to|beyond|no multiple")


def test_a_declared_shape_larger_than_its_record_is_refused(package: Path) -> None:
    with edited_specification(package) as specification:
        blob(specification).type.tensorType.dimensions[0].constant.size = 1 << 40
    refused(package, "needs")


@pytest.mark.parametrize(
    "name", ["@model_path/../../../../secret.bin", "@model_path/weights/../../../../secret.bin", "weights/weight.bin", ""]
)
def test_a_weight_file_outside_the_package_is_refused(package: Path, name: str) -> None:
    shutil.copy(package / WEIGHT_FILE, package.parent / "secret.bin")
    with edited_specification(package) as specification:
        blob(specification).blobFileValue.fileName = name
    refused(package, "lies outside the package")


def test_an_absolute_weight_file_is_refused(package: Path, tmp_path: Path) -> None:
    shutil.copy(package / WEIGHT_FILE, tmp_path / "secret.bin")
    with edited_specification(package) as specification:
        blob(specification).blobFileValue.fileName = f"@model_path/{tmp_path}/secret.bin"
    refused(package, "lies outside the package")


def test_a_weight_file_linked_out_of_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    shutil.move(package / WEIGHT_FILE, tmp_path / "secret.bin")
    (package / WEIGHT_FILE).symlink_to(tmp_path / "secret.bin")
    refused(package, "lies outside the package")


@pytest.mark.parametrize("name", ["x" * 5000, "weights/\0.bin"], ids=["long", "null byte"])
def test_a_weight_file_with_an_impossible_name_is_refused(package: Path, name: str) -> None:
    with edited_specification(package) as specification:
        blob(specification).blobFileValue.fileName = f"@model_path/{name}"
    refused(package, "weight file")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2Jcleared"], ids=["line break", "escape"])
def test_names_from_a_package_cannot_break_a_message(package: Path, name: str) -> None:
    with edited_specification(package) as specification:
        operations(specification, "relu")[0].outputs[0].name = name
        operations(specification, "relu")[0].outputs[0].type.tensorType.dataType = 0
    with pytest.raises(PackageError) as error:
        ReferenceModel(package)
    assert str(error.value).isprintable()


def test_a_neural_network_is_refused_by_its_kind(tmp_path: Path) -> None:
    program = mb.program(input_specs=[mb.TensorSpec(shape=(2, 3))])(lambda x: mb.relu(x=x))
    path = tmp_path / "old.mlpackage"
    ct.convert(program, convert_to="neuralnetwork").save(str(path))
    refused(path, "kind 'neuralNetwork'.*; only ML Programs")


def unknown_type(specification: Any) -> None:
    operations(specification, "relu")[0].outputs[0].type.tensorType.dataType = MIL_pb2.BFLOAT16


def undefined_type(specification: Any) -> None:
    operations(specification, "relu")[0].outputs[0].type.tensorType.dataType = 0


def invented_type(specification: Any) -> None:
    specification.mlProgram.functions["main"].inputs[0].type.tensorType.dataType = 987


def list_type(specification: Any) -> None:
    operations(specification, "relu")[0].outputs[0].type.listType.type.tensorType.rank = 1


def weights_of_strings(specification: Any) -> None:
    blob(specification).type.tensorType.dataType = MIL_pb2.STRING


def flexible_constant(specification: Any) -> None:
    blob(specification).type.tensorType.dimensions[0].unknown.variadic = False


def undefined_input(specification: Any) -> None:
    operations(specification, "relu")[0].inputs["x"].arguments[0].name = "nowhere"


def input_defined_later(specification: Any) -> None:
    operations(specification, "linear")[0].inputs["x"].arguments[0].name = "y"


def undefined_output(specification: Any) -> None:
    main_block(specification).outputs[:] = ["nowhere"]


def no_main(specification: Any) -> None:
    functions = specification.mlProgram.functions
    functions["other"].CopyFrom(functions["main"])
    del functions["main"]


def no_block(specification: Any) -> None:
    specification.mlProgram.functions["main"].opset = "CoreML99"


def no_blocks_at_all(specification: Any) -> None:
    specification.mlProgram.functions["main"].block_specializations.clear()


def nested_block(specification: Any) -> None:
    operations(specification, "relu")[0].blocks.add()


def constant_without_value(specification: Any) -> None:
    del operations(specification, "const")[0].attributes["val"]


def constant_without_output(specification: Any) -> None:
    del operations(specification, "const")[0].outputs[:]


def argument_without_values(specification: Any) -> None:
    del operations(specification, "relu")[0].inputs["x"].arguments[:]


def argument_of_two_values(specification: Any) -> None:
    argument = operations(specification, "relu")[0].inputs["x"].arguments
    argument.add().CopyFrom(argument[0])


def result_count(specification: Any) -> None:
    operations(specification, "relu")[0].outputs.add().CopyFrom(operations(specification, "linear")[0].outputs[0])


def immediate_of_wrong_length(specification: Any) -> None:
    value = blob(specification)
    value.immediateValue.tensor.floats.values.extend([1.0, 2.0])


def huge_immediate(specification: Any) -> None:
    value = blob(specification)
    value.type.tensorType.dimensions[0].constant.size = 1 << 40
    value.immediateValue.tensor.floats.values.extend([1.0])


def empty_of_impossible_shape(specification: Any) -> None:
    value = blob(specification)
    for axis, size in zip(value.type.tensorType.dimensions, (0, 1 << 61), strict=True):
        axis.constant.size = size
    value.immediateValue.tensor.bytes.values = b""


def string_for_numbers(specification: Any) -> None:
    value = blob(specification)
    value.type.tensorType.dataType = MIL_pb2.STRING
    del value.type.tensorType.dimensions[:]
    value.immediateValue.tensor.strings.values.extend(["text"])


MUTATIONS: list[tuple[Callable[[Any], None], str]] = [
    (unknown_type, "data type .* not supported"),
    (undefined_type, "data type .* not supported"),
    (invented_type, "x has the data type 987"),
    (list_type, "data type UNUSED_TYPE"),
    (weights_of_strings, "is a string in the weight file"),
    (flexible_constant, "has a flexible shape"),
    (undefined_input, "y reads 'nowhere', which is not defined before it"),
    (input_defined_later, "product reads 'y', which is not defined before it"),
    (undefined_output, "output 'nowhere' is never computed"),
    (no_main, "has no function 'main'; it has other"),
    (no_block, "no block for opset 'CoreML99'"),
    (no_blocks_at_all, "no block for opset"),
    (nested_block, "relu with 1 nested blocks \\(y\\)"),
    (constant_without_value, "has no value"),
    (constant_without_output, "constant"),
    (immediate_of_wrong_length, "holds 2 values and \\(8, 6\\) needs 48"),
    (empty_of_impossible_shape, "is declared with the shape \\(0, 2305843009213693952\\)"),
    (huge_immediate, "declares .* values within the specification"),
]


@pytest.mark.parametrize(("mutate", "pattern"), MUTATIONS, ids=lambda item: getattr(item, "__name__", ""))
def test_a_specification_that_makes_no_sense_is_refused(package: Path, mutate: Callable[[Any], None], pattern: str) -> None:
    with edited_specification(package) as specification:
        mutate(specification)
    refused(package, pattern)


@pytest.mark.parametrize("mutate", [argument_without_values, argument_of_two_values, string_for_numbers, result_count])
def test_a_program_whose_arguments_do_not_fit_is_refused(package: Path, mutate: Callable[[Any], None]) -> None:
    with edited_specification(package) as specification:
        mutate(specification)
    with pytest.raises(PackageError):
        ReferenceModel(package).predict({"x": X})
