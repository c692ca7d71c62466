"""coremltools writes defaults out, so that packages made by it never need those of the handlers; others may."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.runtime.reference.registry import find_handler
from support.programs import build_program, definitions, handler, normal

X = normal(2, 3, 4)
ROW, ROWS = np.zeros(1, np.int32), np.zeros((1, 3, 4), np.int32)
REQUIRED: dict[str, dict[str, Any]] = {
    "gather": {"indices": ROW},
    "gather_along_axis": {"indices": ROWS},
    "gather_nd": {"indices": ROW},
    "scatter": {"indices": ROW, "updates": X[:1]},
    "scatter_along_axis": {"indices": ROWS, "updates": X[:1]},
    "scatter_nd": {"indices": ROW, "updates": X[0]},
    "argsort": {},
    "band_part": {},
    "cumsum": {},
    "flatten2d": {},
    "pad": {"pad": [1, 1]},
    "topk": {},
    "concat": {"values": [X, X], "axis": 0},
}
NMS = {"iou_threshold": 0.5, "max_boxes": 2}
SUPPRESSIONS: dict[str, dict[str, Any]] = {
    "iOS15": {"boxes": normal(1, 3, 4), "scores": normal(1, 3, 2), "score_threshold": 0.0} | NMS,
    "iOS17": {"boxes": normal(1, 4, 3), "scores": normal(1, 2, 3)} | NMS,
}
CASES = [(operation, opset) for operation in REQUIRED for opset in definitions(operation)]
CASES.remove(("gather_nd", "iOS15"))  # has no optional parameter


def check_defaults(operation: str, opset: str, given: dict[str, Any]) -> None:
    """Every parameter that is not given has the same default here and in coremltools' definition."""
    program = build_program(
        lambda x: getattr(mb, operation)(**{name: x if value is X else value for name, value in given.items()}), [X], opset
    )
    built = program.functions["main"].find_ops(op_type=operation)[0]
    found = find_handler(operation, opset)
    assert found is not None
    defaults = {name: item.default for name, item in inspect.signature(found.function).parameters.items() if name not in given}
    optional = {name: variable.val for name, variable in built.inputs.items() if name not in given and variable is not None}
    assert defaults == optional
    assert defaults


@pytest.mark.parametrize(("operation", "opset"), CASES)
def test_handlers_have_the_defaults_of_the_definition(operation: str, opset: str) -> None:
    first = {"scatter": "data", "scatter_along_axis": "data", "scatter_nd": "data", "concat": "values"}.get(operation, "x")
    check_defaults(operation, opset, {first: X} | REQUIRED[operation])


@pytest.mark.parametrize("opset", definitions("non_maximum_suppression"))
def test_suppression_is_across_classes_by_default(opset: str) -> None:
    check_defaults("non_maximum_suppression", opset, SUPPRESSIONS[opset])


def test_values_filled_in_are_0_and_1_by_default() -> None:
    np.testing.assert_array_equal(handler("fill")([2]), np.zeros(2, np.float32), strict=True)
    np.testing.assert_array_equal(handler("fill_like")(X), np.zeros_like(X), strict=True)
    np.testing.assert_array_equal(handler("one_hot")(np.array([2, 0], np.int32), 3), np.eye(3, dtype=np.int32)[[2, 0]], strict=True)
    np.testing.assert_array_equal(handler("one_hot")(ROW, 2, on_value=np.array(3, np.int32)), np.array([[3, 0]], np.int32), strict=True)
    np.testing.assert_array_equal(handler("one_hot")(ROW, 2, off_value=np.array(3, np.int32)), np.array([[1, 3]], np.int32), strict=True)
