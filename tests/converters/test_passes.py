"""What stands in for a part of coremltools' passes while they run: the same answers, and nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder, Function
from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision
from rvc_coreml.converters.passes import unchecked_passes

HALF_MAX = 65504.0
VALUES = [0.0, HALF_MAX, -HALF_MAX, np.nextafter(np.float32(HALF_MAX), np.inf), -1e5, 1e37, 2e38, np.inf, -np.inf, np.nan]


def reading(values: np.ndarray) -> SimpleNamespace:
    """An operation with a constant among its inputs, in a list of which only the last is one."""
    with Function({}):
        constant = Builder.const(val=values)
    other = SimpleNamespace(op=None)
    return SimpleNamespace(inputs={"x": other, "values": [other, constant]})


@pytest.mark.parametrize("first", VALUES, ids=str)
@pytest.mark.parametrize("second", VALUES, ids=str)
def test_what_fits_into_half_precision_is_what_coremltools_says(first: float, second: float) -> None:
    asked = FP16ComputePrecision.fp16_overflow
    operation = reading(np.array([[1.5, first], [second, -2.0]], np.float32))
    expected = asked(operation)
    with unchecked_passes():
        assert FP16ComputePrecision.fp16_overflow is not asked
        assert FP16ComputePrecision.fp16_overflow(operation) == expected
    assert FP16ComputePrecision.fp16_overflow is asked
    if all(abs(value) < 1e38 for value in (first, second)):
        assert expected == any(abs(value) > HALF_MAX for value in (first, second))
