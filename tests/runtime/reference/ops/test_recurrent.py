from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.programs import close, definitions, handler, normal, run_program
from support.recurrence import ACTIVATIONS, BY_FORMULA, GATES, Arguments, gru_by_formula, layer, lstm_by_formula, rnn_by_formula


def run_layer(operation: str, arguments: Arguments, opset: str, numerics: str = "declared", less: Sequence[Any] = ()) -> list[np.ndarray]:
    """A package of the layer; data and states are inputs. `less`: what to take away from the results, before they are rounded."""
    inputs = [name for name in ("x", "initial_h", "initial_c") if name in arguments]

    def build(x: Any, initial_h: Any, initial_c: Any = None) -> Any:
        given = dict(zip(inputs, (x, initial_h, initial_c), strict=False))
        results = getattr(mb, operation)(**(arguments | given))
        return tuple(mb.sub(x=result, y=y) for result, y in zip(results, less, strict=True)) if less else results

    def of_two(x: Any, initial_h: Any) -> Any:
        return build(x, initial_h)

    return run_program(build if len(inputs) == 3 else of_two, *(arguments[name] for name in inputs), opset=opset, numerics=numerics)


def all_close(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], tolerance: float = 1e-5) -> None:
    for one, other in zip(got, wanted, strict=True):
        close(one, other, tolerance)


LSTM_ACTIVATIONS = sorted(set(ACTIVATIONS) - {"sigmoid_hard"})
SIZES = st.fixed_dictionaries(
    {"steps": st.integers(1, 6), "batch": st.integers(1, 3), "inputs": st.integers(1, 4), "size": st.integers(1, 4)}
)
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])


def as_type(arguments: Arguments, dtype: type) -> Arguments:
    return {name: value.astype(dtype) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


@PRECISIONS
@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, bias=st.booleans(), activation=st.sampled_from(sorted(ACTIVATIONS)))
def test_rnn_follows_its_formula(
    direction: str, output_sequence: bool, dtype: type, tolerance: float, sizes: dict, bias: bool, activation: str
) -> None:
    named = layer("rnn", **sizes, bias=bias, direction=direction, output_sequence=output_sequence, activation=activation)
    named = as_type(named, dtype)
    all_close(handler("rnn")(**named), rnn_by_formula(named), tolerance)


@PRECISIONS
@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, bias=st.booleans(), activations=st.tuples(*[st.sampled_from(sorted(ACTIVATIONS))] * 2))
def test_gru_follows_its_formula(
    direction: str, output_sequence: bool, dtype: type, tolerance: float, sizes: dict, bias: bool, activations: tuple[str, str]
) -> None:
    named = layer("gru", **sizes, bias=bias, direction=direction, output_sequence=output_sequence)
    named = as_type(named | {"recurrent_activation": activations[0], "activation": activations[1]}, dtype)
    all_close(handler("gru", "iOS17")(**named), gru_by_formula(named), tolerance)


# Where the biases belong with reset_after is from documentation, unverified: Core ML fails coremltools' own test of it.
@PRECISIONS
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@settings(max_examples=25, deadline=None)
@given(
    sizes=SIZES,
    biases=st.tuples(st.booleans(), st.booleans()),
    whole=st.booleans(),
    activations=st.tuples(*[st.sampled_from(sorted(ACTIVATIONS))] * 2),
)
def test_gru_from_ios18_on_follows_its_formula(
    direction: str,
    reset_after: bool,
    dtype: type,
    tolerance: float,
    sizes: dict,
    biases: tuple[bool, bool],
    whole: bool,
    activations: tuple[str, str],
) -> None:
    named = layer("gru", **sizes, bias=biases[0], input_bias=biases[1], direction=direction, output_sequence=whole, reset_after=reset_after)
    named = as_type(named | {"recurrent_activation": activations[0], "activation": activations[1]}, dtype)
    all_close(handler("gru", "iOS18")(**named), gru_by_formula(named), tolerance)


@PRECISIONS
@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@settings(max_examples=30, deadline=None)
@given(
    sizes=SIZES,
    optional=st.fixed_dictionaries({name: st.booleans() for name in ("bias", "peephole", "bias_back", "peephole_back")}),
    clip=st.sampled_from([None, 0.05, 0.5]),
    activations=st.tuples(*[st.sampled_from(LSTM_ACTIVATIONS)] * 3),
)
def test_lstm_follows_its_formula(
    direction: str,
    output_sequence: bool,
    dtype: type,
    tolerance: float,
    sizes: dict,
    optional: dict[str, bool],
    clip: float | None,
    activations: tuple[str, str, str],
) -> None:
    names = ("recurrent_activation", "cell_activation", "activation")
    named = layer("lstm", **sizes, directions=2 if direction == "bidirectional" else 1, **optional)
    named |= dict(zip(names, activations, strict=True)) | {"direction": direction, "output_sequence": output_sequence}
    named = as_type(named | ({} if clip is None else {"clip": clip}), dtype)
    all_close(handler("lstm")(**named), lstm_by_formula(named), tolerance)


@PRECISIONS
@pytest.mark.parametrize("steps", [63, 64, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_of_a_long_sequence_follows_its_formula(direction: str, bias: bool, steps: int, dtype: type, tolerance: float) -> None:
    directions = 2 if direction == "bidirectional" else 1
    named = layer("lstm", steps=steps, directions=directions, bias=bias, bias_back=bias, direction=direction, output_sequence=True)
    named = as_type(named, dtype)
    all_close(handler("lstm")(**named), lstm_by_formula(named), tolerance)


def test_lstm_clips_the_cell_before_it_is_seen_or_put_out() -> None:
    """One unit, all of whose gates are 1 or linear: the cell would be 3 after the first step."""
    ones = np.ones((1, 1), np.float32)
    weights = np.array([[0], [0], [0], [3]], np.float32)
    named = {"bias": np.array([9, -9, 0.5, 0], np.float32), "peephole": np.array([0, 0, 0.25], np.float32), "activation": "linear"}
    named |= {"recurrent_activation": "hard_sigmoid", "cell_activation": "linear", "clip": 2.0}
    sequence, h, c = handler("lstm")(ones[None], 0 * ones, 0 * ones, weights, np.zeros((4, 1), np.float32), **named)
    np.testing.assert_allclose(c, [[2]])
    np.testing.assert_allclose(h, [[2 * (0.2 * (0.5 + 0.25 * 2) + 0.5)]], rtol=1e-6)
    np.testing.assert_array_equal(sequence[0], h)


def test_lstm_without_peepholes_lets_an_infinite_cell_through() -> None:
    named = layer("lstm", steps=1, recurrent_activation="relu", bias=True)
    named["initial_c"][:] = np.inf
    assert not np.isnan(handler("lstm")(**named)[2]).all()


@pytest.mark.parametrize("operation", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_sequence_of_a_layer_is_in_the_order_of_computation(direction: str, operation: str) -> None:
    named = layer(operation, direction=direction)
    sequence, h, *_rest = handler(operation)(**named, output_sequence=True)
    np.testing.assert_array_equal(sequence[-1], h)
    first = named | {"x": named["x"][-1:] if direction == "reverse" else named["x"][:1]}
    np.testing.assert_allclose(sequence[0], handler(operation)(**first)[1], rtol=1e-6)
    np.testing.assert_array_equal(handler(operation)(**named)[0], h[None])


@pytest.mark.parametrize("operation", GATES)
@pytest.mark.parametrize("sizes", [{"steps": 0}, {"batch": 0}, {"inputs": 0}], ids=str)
def test_layer_of_nothing_leaves_the_state_or_is_empty(sizes: dict[str, int], operation: str) -> None:
    named = layer(operation, **sizes, output_sequence=True)
    all_close(handler(operation)(**named), BY_FORMULA[operation](named))


@pytest.mark.parametrize("operation", GATES)
def test_layer_of_a_million_empty_steps_takes_no_time(operation: str) -> None:
    named = layer(operation, steps=10_000_000, batch=0)
    assert handler(operation)(**named)[0].shape == (1, 0, 4)


PACKAGES = [
    (operation, opset, direction) for operation in GATES for opset in definitions(operation) for direction in ("forward", "reverse")
]
PACKAGES += [("lstm", opset, "bidirectional") for opset in definitions("lstm")]


@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize(("operation", "opset", "direction"), PACKAGES)
def test_layer_in_a_package_follows_its_formula(operation: str, opset: str, direction: str, output_sequence: bool) -> None:
    sides = ["", "_back"] if direction == "bidirectional" else [""]
    optional = {"bias" + side: True for side in sides} | {"peephole" + side: operation == "lstm" for side in sides}
    named = layer(operation, directions=len(sides), direction=direction, output_sequence=output_sequence, **optional)
    all_close(run_layer(operation, named, opset), BY_FORMULA[operation](named))
    if operation == "lstm":
        named |= {"clip": np.float32(0.3), "recurrent_activation": "hard_sigmoid", "cell_activation": "scaled_tanh", "activation": "relu"}
        all_close(run_layer(operation, named, opset), BY_FORMULA[operation](named))


@pytest.mark.parametrize("operation", GATES)
@pytest.mark.parametrize("activation", ["hard_sigmoid", "linear", "relu", "scaled_tanh", "sigmoid", "tanh"])
def test_layer_in_a_package_takes_every_activation(activation: str, operation: str) -> None:
    named = layer(operation, activation=activation, output_sequence=True)
    all_close(run_layer(operation, named, "iOS15"), BY_FORMULA[operation](named))


@pytest.mark.parametrize(("operation", "opset"), [("rnn", "iOS17"), ("gru", "iOS17"), ("gru", "iOS18"), ("lstm", "iOS17")])
def test_layer_in_a_package_takes_half_precision_from_ios17_on(operation: str, opset: str) -> None:
    named = as_type(layer(operation, bias=True, output_sequence=True), np.float16)
    got = run_layer(operation, named, opset)
    assert {values.dtype for values in got} == {np.dtype(np.float16)}
    all_close(got, BY_FORMULA[operation](named), 1e-3)


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("biases", [{}, {"bias": True}, {"input_bias": True}, {"bias": True, "input_bias": True}], ids=str)
def test_gru_in_a_package_from_ios18_on_has_a_second_kind(biases: dict[str, bool], reset_after: bool) -> None:
    named = layer("gru", output_sequence=True, reset_after=reset_after, **biases)
    all_close(run_layer("gru", named, "iOS18"), gru_by_formula(named))


@pytest.mark.parametrize(("operation", "steps"), [("rnn", 5), ("gru", 5), ("lstm", 5), ("lstm", 80)])
def test_layer_in_a_package_keeps_double_precision_where_asked(operation: str, steps: int) -> None:
    named = layer(operation, steps=steps, bias=True, output_sequence=True)
    wanted = BY_FORMULA[operation](named)
    rounded = [values.astype(np.float32) for values in wanted]
    got = run_layer(operation, named, "iOS15", "float64", rounded)
    for one, other, taken in zip(got, wanted, rounded, strict=True):
        np.testing.assert_allclose(one, other - taken, rtol=0, atol=1e-12)


BAD = {
    "an unknown direction": ({"direction": "backward"}, "'backward' is unknown"),
    "an unknown activation": ({"activation": "softmax"}, "'softmax' is unknown"),
    "a state of another batch": ({"initial_h": normal(1, 4)}, r"\(1, 4\) was given, and \(2, 4\)"),
    "weights of another size": ({"weight_hh": normal(4, 2)}, "do not fit"),
    "an input of two axes": ({"x": normal(5, 3)}, "2 axes"),
}


@pytest.mark.parametrize("operation", GATES)
@pytest.mark.parametrize("bad", BAD)
def test_layer_that_cannot_be_is_refused(bad: str, operation: str) -> None:
    arguments, message = BAD[bad]
    with pytest.raises(PackageError, match=message):
        handler(operation)(**(layer(operation) | arguments))


def test_bidirectional_lstm_without_weights_for_the_way_back_is_refused() -> None:
    with pytest.raises(PackageError, match="needs weight_ih_back"):
        handler("lstm")(**layer("lstm"), direction="bidirectional")
