"""What is known of values without running anything, compared with values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.converters.placement import Range
from rvc_coreml.converters.placement.bounds import UNKNOWN
from rvc_coreml.converters.placement.view import FunctionView
from rvc_coreml.runtime.reference.program import Constant, TensorType
from support.placement_functions import Program, tensor, weight

SHAPE = (1, 3, 1, 5)


def interval(program: Program, name: str, ranges: dict[str, Range] | None = None) -> Range:
    return FunctionView(program.function(), ranges).intervals.get(name, UNKNOWN)


def test_nothing_is_known_of_an_input_or_of_what_is_computed_from_it() -> None:
    program = Program(x=tensor(*SHAPE))
    made = program.call("mul", tensor(*SHAPE), x="x", y=0.5)
    assert interval(program, made) == UNKNOWN
    assert interval(program, "x") == UNKNOWN


def test_an_execution_narrows_what_is_known() -> None:
    program = Program(x=tensor(*SHAPE))
    made = program.call("relu", tensor(*SHAPE), x="x")
    assert interval(program, made, {made: Range(0.5, 2.0)}) == (0.5, 2.0)
    assert interval(program, "x", {"x": Range(-3.0, 4.0)}) == (-3.0, 4.0)


FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "abs": np.abs,
    "square": np.square,
    "erf": np.vectorize(math.erf),
    "leaky_relu": lambda x: np.where(x < 0, 0.25 * x, x),
    "clip": lambda x: np.clip(x, -0.5, 1.5),
}
PAIRS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "minimum": np.minimum, "maximum": np.maximum}
SETTINGS = {"leaky_relu": {"alpha": 0.25}, "clip": {"alpha": -0.5, "beta": 1.5}}
BOUNDS = st.tuples(st.integers(-40, 40), st.integers(-40, 40)).map(lambda ends: (min(ends) / 8, max(ends) / 8))
STEPS = st.lists(st.tuples(st.sampled_from([*FUNCTIONS, *PAIRS]), st.integers(-24, 24).map(lambda number: number / 8)), max_size=6)


@given(bounds=BOUNDS, steps=STEPS)
def test_no_value_lies_outside_its_interval(bounds: tuple[float, float], steps: list[tuple[str, float]]) -> None:
    """Chains of operations on values that start within known bounds."""
    program = Program(x=tensor(*SHAPE))
    made = program.call("clip", tensor(*SHAPE), x="x", alpha=bounds[0], beta=bounds[1])
    values = np.linspace(*bounds, 41)
    for kind, number in steps:
        values = FUNCTIONS[kind](values) if kind in FUNCTIONS else PAIRS[kind](values, number)
        made = program.call(kind, tensor(*SHAPE), x=made, **(SETTINGS.get(kind, {}) if kind in FUNCTIONS else {"y": number}))
    low, high = interval(program, made)
    slack = 1e-3 * (1 + np.abs(values).max())  # settings are held in half precision
    assert low - slack <= values.min()
    assert values.max() <= high + slack
    assert math.isfinite(low)
    assert math.isfinite(high)


@pytest.mark.parametrize("kind", ["reshape", "expand_dims", "identity"])
def test_a_value_less_its_own_maximum_is_not_above_zero(kind: str) -> None:
    program = Program(x=tensor(*SHAPE))
    largest = program.call("reduce_max", tensor(1, 1, 1, 5), x="x", axes=[1], keep_dims=True)
    shaped = program.call(kind, tensor(1, 1, 1, 5), x=largest)
    made = program.call("sub", tensor(*SHAPE), x="x", y=shaped)
    assert interval(program, made).high == 0
    other = program.call("sub", tensor(*SHAPE), x=made, y=shaped)
    assert interval(program, other) == UNKNOWN


def test_a_convolution_of_bounded_values_is_bounded_by_its_weights() -> None:
    values = np.array([[[[1.0, -2.0]]], [[[0.5, 0.25]]]], np.float32)  # (2, 1, 1, 2)
    program = Program(x=tensor(1, 1, 1, 9))
    bounded = program.call("tanh", tensor(1, 1, 1, 9), x="x")
    kernel = Constant(TensorType("fp32", values.shape), values)
    made = program.call("conv", tensor(1, 2, 1, 9), x=bounded, weight=kernel, bias=np.array([1.0, 0.0], np.float32), pad_type="same")
    assert interval(program, made) == (-2.0, 4.0)
    after = program.call("conv", tensor(1, 2, 1, 9), x=made, weight=weight(2, 2, 1, 1), bias="x", pad_type="same")
    assert interval(program, after) == UNKNOWN


def test_what_cannot_be_read_is_unknown() -> None:
    program = Program(x=tensor(*SHAPE))
    bounded = program.call("tanh", tensor(*SHAPE), x="x")
    joined = program.call("concat", tensor(1, 6, 1, 5), values=[bounded, "x"], axis=1)
    assert interval(program, joined) == UNKNOWN
    assert interval(program, program.call("pad", tensor(1, 3, 1, 6), x=bounded, pad=[0, 1], constant_val=-9.0)) == (-9.0, 1.0)
    assert interval(program, program.call("lstm", tensor(*SHAPE), x=bounded)) == UNKNOWN
