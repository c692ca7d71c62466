"""What findings add up to: shares, what is counted, what is blocked, and packages of every kind that the reader takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil import get_new_symbol, types
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.converters.placement import CHIPS, RULES, Range, assess, assess_package
from rvc_coreml.converters.placement.view import FunctionView
from rvc_coreml.errors import PackageError, UsageError
from rvc_coreml.runtime.reference.program import Function
from rvc_coreml.runtime.reference.registry import HANDLERS
from support.placement_cases import CASES, conv, elementwise, looped
from support.placement_functions import Program, fired, tensor, weight
from support.programs import build_program, edited_specification, normal, write_program


def bordered(inner: str = "fp16") -> Program:
    """float32 in and out, a convolution and an addition between, in half precision or not."""
    program = Program(x=tensor(1, 8, 1, 64, dtype="fp32"))
    entered = program.call("cast", tensor(1, 8, 1, 64, dtype=inner), x="x", dtype=inner)
    made = program.call("conv", tensor(1, 8, 1, 64, dtype=inner), x=entered, weight=weight(8, 8, 1, 3, dtype=inner), pad_type="same")
    added = program.call("add", tensor(1, 8, 1, 64, dtype=inner), x=made, y=1.0)
    program.call("cast", tensor(1, 8, 1, 64, dtype="fp32"), x=added, dtype="fp32")
    return program


def test_casts_at_the_border_are_not_counted() -> None:
    assessment = bordered().assess()
    assert [operation.counted for operation in assessment.operations] == [False, True, True, False]
    assert assessment.share_of_operations == assessment.share_of_flops == 1
    assert not assessment.blocked
    assert fired(assessment) == set()


def test_float32_within_a_function_is_counted_and_blocked() -> None:
    assessment = bordered("fp32").assess()
    assert [operation.type for operation in assessment.blocked] == ["conv", "add"]
    assert fired(assessment) >= {"D3-float32"}
    program = Program(x=tensor(1, 8, 1, 64))
    wide = program.call("cast", tensor(1, 8, 1, 64, dtype="fp32"), x="x", dtype="fp32")
    root = program.call("sqrt", tensor(1, 8, 1, 64, dtype="fp32"), x=wide)
    program.call("cast", tensor(1, 8, 1, 64), x=root, dtype="fp16")
    assert len(program.assess().counted) == len(program.assess().blocked) == 3


def test_shares_are_of_operations_and_of_flops() -> None:
    program = Program(x=tensor(1, 8, 1, 16385))
    wide = program.call("relu", tensor(1, 8, 1, 16385), x="x")
    program.call("conv", tensor(1, 8, 1, 64), x=wide, weight=weight(8, 8, 1, 3))
    short = Program(x=tensor(1, 8, 1, 64))
    made = short.call("conv", tensor(1, 8, 1, 64), x="x", weight=weight(8, 8, 1, 3), pad_type="same")
    short.call("lstm", tensor(1, 8, 1, 64), x=made)
    assert program.assess().share_of_flops == 0
    assessment = short.assess()
    conv_flops = 2 * 8 * 64 * 8 * 3
    assert assessment.share_of_operations == 0.5
    assert assessment.flops == conv_flops + (assessment.operations[1].flops or 0)
    assert assessment.share_of_flops == pytest.approx(conv_flops / assessment.flops)


def test_shares_are_whole_where_nothing_is_computed() -> None:
    moved = elementwise("reshape", 1, 8).assess()
    assert (moved.flops, moved.share_of_flops) == (0, 1.0)
    nothing = assess(Function({"x": tensor(1, 8)}, ("x",), (), {}, "CoreML7"))
    assert (nothing.share_of_operations, nothing.share_of_flops, nothing.times.total) == (1.0, 1.0, 0.0)


def test_rules_that_need_values_are_named_once_where_there_are_none() -> None:
    without = conv().assess()
    assert without.unchecked == tuple(rule.id for rule in RULES.values() if rule.needs == "ranges")
    assert set(without.unchecked) == {"D10-saturation", "known-broken-layer-norm"}
    assert conv().assess(ranges={}).unchecked == ()


def test_ranges_go_by_value_or_by_operation() -> None:
    program = Program(x=tensor(1, 8))
    program.call("matmul", (tensor(1, 8),), x="x", y=weight(8, 8))
    for name in ("matmul_0", program.operations[0].outputs[0][0]):
        assert "D10-saturation" in fired(program.assess(ranges={name: Range(0.0, 33000.0)}))
        assert "D10-saturation" not in fired(program.assess(ranges={name: Range(0.0, 32000.0)}))


def test_unproven_findings_block_nothing_and_are_kept() -> None:
    assessment = conv(dilations=(1, 5)).assess()
    assert assessment.share_of_operations == 1
    assert [(located.finding.rule, located.operation and located.operation.name) for located in assessment.unproven] == [
        ("D5-dilation", "conv_0")
    ]


def test_modules_are_named_where_they_are_known() -> None:
    (operation,) = conv().assess(operations={"conv_0": "dec.conv_pre"}).operations
    assert operation.source == "dec.conv_pre"
    assert conv().assess().operations[0].source == ""


def test_an_unknown_chip_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="there is no chip 'm0'"):
        conv().assess("m0")


def test_operations_in_loops_are_seen_with_their_depth() -> None:
    view = FunctionView(looped("loop").function())
    assert [(operation.type, operation.depth) for operation in view.operations] == [("while_loop", 0), ("identity", 1), ("relu", 1)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_every_finding_is_of_a_registered_rule(case: Any) -> None:
    assert fired(case.assessed(True)) <= set(RULES)


# ---------------------------------------------------------------- packages


def test_a_package_with_loops_and_conditions_is_read(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        counted = mb.while_loop(
            _cond=lambda count, value: mb.less(x=count, y=np.float32(3)),
            _body=lambda count, value: (mb.add(x=count, y=np.float32(1)), mb.sin(x=value)),
            loop_vars=(np.float32(0), x),
        )
        chosen = mb.cond(
            pred=mb.less(x=counted[0], y=np.float32(9)), _true_fn=lambda: mb.relu(x=counted[1]), _false_fn=lambda: mb.abs(x=counted[1])
        )
        return mb.mul(x=chosen, y=np.float32(2))

    path = write_program(build_program(build, [normal(2, 3)]), tmp_path / "model.mlpackage")
    (assessment,) = assess_package(path).values()
    places = {operation.type: {finding.rule for finding in operation.findings} for operation in assessment.operations}
    assert places["while_loop"] >= {"D7-control-flow"}
    assert places["sin"] >= {"D7-nested", "D8-sin", "D3-float32"}
    assert places["relu"] >= {"D7-nested"}
    assert "D7-nested" not in places["mul"]


def test_a_package_of_flexible_shape_is_read(tmp_path: Path) -> None:
    length = get_new_symbol()

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 8, length), dtype=types.fp16)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        return mb.conv(x=mb.relu(x=x), weight=np.zeros((8, 8, 3), np.float16), pad_type="same")

    (assessment,) = assess_package(write_program(program, tmp_path / "model.mlpackage")).values()
    assert [operation.flops for operation in assessment.operations] == [None, None]
    assert assessment.uncounted_flops == 2
    assert fired(assessment) >= {"D17-range"}
    assert assessment.share_of_operations == 0
    assert assessment.times.total >= 0


def test_compressed_constants_count_as_stored(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        indices = np.arange(8 * 64, dtype=np.uint8).reshape(8, 64) % 4
        weight = mb.constexpr_lut_to_dense(
            indices=np.packbits(np.unpackbits(indices.reshape(-1, 1), axis=1)[:, -2:], bitorder="little"),
            lut=np.arange(4, dtype=np.float16),
            shape=np.array([8, 64], np.uint32),
        )
        return mb.linear(x=x, weight=weight, bias=np.zeros(8, np.float16))

    path = write_program(build_program(build, [np.zeros((3, 64), np.float16)], "iOS16"), tmp_path / "model.mlpackage", "iOS16")
    for chip, expanded in (("m1", False), ("a12", True)):
        (assessment,) = assess_package(path, chip).values()
        made, product = assessment.operations
        assert (made.counted, product.counted) == (False, True)
        assert product.flops == 2 * 3 * 8 * 64
        stored = 8 * 64 // 4 + 4 * 2 + 2 * 4  # two bits each, the palette, and its shape
        assert product.constant_bytes == stored + 8 * 2
        assert ("D20-weights" in fired(assessment)) == expanded


def test_every_function_of_a_package_is_assessed(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.relu(x=x)

    path = write_program(build_program(build, [normal(2, 3)]), tmp_path / "model.mlpackage")
    with edited_specification(path) as specification:
        specification.mlProgram.functions["second"].CopyFrom(specification.mlProgram.functions["main"])
    assert list(assess_package(path)) == ["main", "second"]


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not exist"):
        assess_package(tmp_path / "nowhere.mlpackage")


# ---------------------------------------------------------------- anything that the reader lets through

ARGUMENTS = st.one_of(
    st.sampled_from(["x", "y", ["x", "y"], "text", True, 0, -1, 5, 3.5, math.inf]),
    st.lists(st.integers(-9, 9), max_size=6),
    st.lists(st.booleans(), max_size=5),
    st.integers(0, 3).map(lambda rank: weight(*range(1, rank + 1))),
    st.sampled_from([weight(4, 4, 3), weight(4, 4, 1, 3), weight(0, 4), weight(2, 2, 2, 2, 2)]),
)
SHAPES = st.lists(st.sampled_from([0, 1, 7, 64, 16385, None]), max_size=6)


@given(
    kind=st.sampled_from([*sorted(HANDLERS), "unheard_of"]),
    shapes=st.tuples(SHAPES, SHAPES, SHAPES),
    chip=st.sampled_from(list(CHIPS)),
    data=st.data(),
)
def test_no_operation_stops_the_linter(kind: str, shapes: tuple[list[int | None], ...], chip: str, data: st.DataObject) -> None:
    """Arguments of the wrong kind or number reach the rules: a package may be damaged, and the reader does not run it."""
    program = Program(x=tensor(*shapes[0]), y=tensor(*shapes[1], dtype=data.draw(st.sampled_from(["fp16", "fp32", "int32", "bool"]))))
    parameters = sorted({name for handler in HANDLERS.get(kind, []) for name in handler.forms} | {"x"})
    program.call(kind, tensor(*shapes[2]), **{name: data.draw(ARGUMENTS) for name in parameters if data.draw(st.booleans())})
    program.call("relu", tensor(*shapes[2]), x=program.operations[-1].name)
    assessment = program.assess(chip, data.draw(st.sampled_from([None, {"x": Range(-math.inf, math.nan)}])))
    assert len(assessment.operations) == 2
    assert 0 <= assessment.share_of_flops <= 1
    assert assessment.times.total >= 0
