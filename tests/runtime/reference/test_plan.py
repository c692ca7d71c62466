from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.proto import MIL_pb2
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.programs import (
    build_program,
    edited_specification,
    main_block,
    normal,
    save_package,
    write_program,
)


def branches(path: Path, rename: dict[str, str]) -> Path:
    """A package of x + constant, another constant in each branch of a cond, with constants renamed."""

    def build(x: Any) -> Any:
        outer = mb.mul(x=x, y=np.float32(7), name="outer")
        flag = mb.greater(x=mb.reduce_sum(x=outer, axes=[0], keep_dims=False), y=0.0)
        return mb.cond(
            pred=flag,
            _true_fn=lambda: mb.add(x=x, y=mb.const(val=np.float32(1), name="one")),
            _false_fn=lambda: mb.add(x=x, y=mb.const(val=np.float32(5), name="five")),
        )

    write_program(build_program(build, [np.zeros(1, np.float32)]), path)
    with edited_specification(path) as specification:
        cond = next(item for item in main_block(specification).operations if item.type == "cond")
        for operation in [*main_block(specification).operations, *(inner for block in cond.blocks for inner in block.operations)]:
            for output in operation.outputs:
                output.name = rename.get(output.name, output.name)
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    binding.name = rename.get(binding.name, binding.name) if binding.name else binding.name
    return path


@pytest.mark.parametrize("names", [{}, {"one": "c", "five": "c"}, {"one": "outer", "five": "outer"}], ids=["own", "shared", "hiding"])
@pytest.mark.parametrize(("x", "wanted"), [(2, 3), (-2, 3)])
def test_constants_of_nested_blocks_are_told_apart_by_their_block(tmp_path: Path, names: dict[str, str], x: float, wanted: float) -> None:
    model = ReferenceModel(branches(tmp_path / "model.mlpackage", names))
    (got,) = model.predict({"x": np.array([x], np.float32)}).values()
    assert got == wanted


def test_a_constant_that_a_block_returns_hides_a_value_of_the_same_name_around_it(tmp_path: Path) -> None:
    path = branches(tmp_path / "model.mlpackage", {"one": "outer", "five": "outer"})
    with edited_specification(path) as specification:
        cond = next(item for item in main_block(specification).operations if item.type == "cond")
        for block in cond.blocks:
            block.outputs[:] = ["outer"]
        cond.outputs[0].type.tensorType.ClearField("dimensions")
    model = ReferenceModel(path)
    assert [next(iter(model.predict({"x": np.array([x], np.float32)}).values())).item() for x in (2, -2)] == [1, 5]


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.5])
def test_a_setting_that_is_no_whole_number_is_refused_at_load(tmp_path: Path, value: float) -> None:
    path = save_package(tmp_path, lambda x: mb.softmax(x=x, axis=-1, name="y"), normal(2, 2))
    with edited_specification(path) as specification:
        for operation in main_block(specification).operations:
            if operation.type == "const":
                for kind in (operation.outputs[0].type.tensorType, operation.attributes["val"].type.tensorType):
                    kind.dataType = MIL_pb2.FLOAT32
                tensor = operation.attributes["val"].immediateValue.tensor
                tensor.Clear()
                tensor.floats.values.append(value)
    with pytest.raises(PackageError, match=r"y \(softmax\): axis: the value does not fit"):
        ReferenceModel(path)


def test_constants_that_share_a_record_share_their_memory(tmp_path: Path) -> None:
    weight = normal(64, 64)
    path = save_package(tmp_path, lambda x: mb.add(x=mb.mul(x=x, y=weight), y=weight), normal(64, 64))
    with edited_specification(path) as specification:
        block = main_block(specification)
        constant = next(item for item in block.operations if item.attributes["val"].WhichOneof("value") == "blobFileValue")
        for number in range(50):
            copy = block.operations.add()
            copy.CopyFrom(constant)
            copy.outputs[0].name = f"copy{number}"
            block.operations.insert(0, copy)
            del block.operations[-1]
    values = [item.value for item in ReferenceModel(path).program.constants.values() if isinstance(item.value, np.ndarray)]
    assert len(values) >= 52
    assert len({id(value) for value in values if value.shape == (64, 64)}) == 2  # one for each record
