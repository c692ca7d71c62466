from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from math import trunc
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inference import infer, run_unrounded
from support.programs import close, definitions, handler, normal, run_module, run_program

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where a reference divides by zero or overflows

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.true_divide,
    "floor_div": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "equal": operator.eq,
    "not_equal": operator.ne,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
}
LOGICAL: dict[str, Callable[[bool, bool], bool]] = {
    "logical_and": lambda x, y: x and y,
    "logical_or": lambda x, y: x or y,
    "logical_xor": lambda x, y: x is not y,
}
# What integers give, in Python's integers, which have no limits.
INTEGERS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "real_div": lambda x, y: trunc(Fraction(x, y)) if y else 0,
    "floor_div": lambda x, y: x // y if y else 0,
    "mod": lambda x, y: x % y if y else 0,
    "maximum": max,
    "minimum": min,
}
INT_EDGES = [0, 1, -1, 2, -2, 3, -7, 10, 1 << 16, (1 << 24) + 1, -(1 << 24) - 1, (1 << 31) - 1, -(1 << 31)]
FLOAT_EDGES = [0.0, -0.0, 1.0, -1.0, 0.1, -0.3, 0.5, 3.0, -7.0, 1e30, -1e-30, np.inf, -np.inf, np.nan]
WORST = -(1 << 31)
shapes = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4, min_side=0)
few = settings(max_examples=25, deadline=None)


def wrapped(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def operands(name: str, left: tuple[int, ...], right: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal values; positive bases for pow, and several times the divisor for division with a remainder."""
    generator = np.random.default_rng([seed, *left, *right])
    x, y = (np.asarray(generator.standard_normal(shape, dtype=np.float32)) for shape in (left, right))
    if name == "pow":
        return np.asarray(np.abs(x)), y
    return (np.asarray(x * 5), y) if name in ("floor_div", "mod") else (x, y)


def crossed(values: list[Any], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Every value with every value."""
    array = np.array(values, dtype)
    return array[:, None], array[None, :]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ARITHMETIC)
@given(shapes=shapes, seed=st.integers(0, 1000))
@few
def test_arithmetic_broadcasts_and_computes_as_numpy(name: str, dtype: type, shapes: hnp.BroadcastableShapes, seed: int) -> None:
    x, y = (value.astype(dtype) for value in operands(name, *shapes.input_shapes, seed))
    got = handler(name)(x, y)
    assert got.dtype == dtype
    assert got.shape == shapes.result_shape
    close(got, ARITHMETIC[name](x, y), 1e-6 if dtype is np.float32 else 1e-14)


@pytest.mark.parametrize("name", COMPARISONS)
@given(shapes=shapes, seed=st.integers(0, 1000))
@few
def test_comparisons_broadcast_and_compare_as_numpy(name: str, shapes: hnp.BroadcastableShapes, seed: int) -> None:
    x, y = (np.asarray(np.round(value)) for value in operands(name, *shapes.input_shapes, seed))  # many are equal
    got = handler(name)(x, y)
    assert got.dtype == np.bool_
    assert got.shape == shapes.result_shape
    np.testing.assert_array_equal(got, COMPARISONS[name](x, y))


@pytest.mark.parametrize("name", LOGICAL)
@given(shapes=shapes, seed=st.integers(0, 1000))
@few
def test_logical_operations_broadcast_and_combine_as_python(name: str, shapes: hnp.BroadcastableShapes, seed: int) -> None:
    x, y = (np.asarray(value > 0) for value in operands(name, *shapes.input_shapes, seed))
    got = handler(name)(x, y)
    wanted = [LOGICAL[name](bool(a), bool(b)) for a, b in zip(*(value.flat for value in np.broadcast_arrays(x, y)), strict=True)]
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, np.array(wanted, np.bool_).reshape(shapes.result_shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*ARITHMETIC, *COMPARISONS])
def test_zeros_infinities_and_nan_give_what_numpy_gives(name: str, dtype: type) -> None:
    x, y = crossed(FLOAT_EDGES, dtype)
    wanted = (ARITHMETIC | COMPARISONS)[name](x, y)
    np.testing.assert_allclose(handler(name)(x, y), wanted, rtol=1e-6 if dtype is np.float32 else 1e-14, atol=0)


@pytest.mark.parametrize("name", [*INTEGERS, *COMPARISONS])
def test_int32_is_exact_to_its_limits_wraps_around_and_survives_division_by_zero(name: str) -> None:
    x, y = crossed(INT_EDGES, np.int32)
    got = handler(name)(x, y)
    if name in COMPARISONS:
        wanted = np.array([[COMPARISONS[name](a, b) for b in INT_EDGES] for a in INT_EDGES])
    else:
        wanted = np.array([[wrapped(INTEGERS[name](a, b)) for b in INT_EDGES] for a in INT_EDGES])
        assert got.dtype == np.int32
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["real_div", "floor_div", "mod"])
@given(pairs=st.lists(st.tuples(*[st.integers(WORST, -WORST - 1) | st.integers(-20, 20)] * 2), min_size=1, max_size=40))
@few
def test_division_of_random_int32_is_exact(name: str, pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, np.int32).T
    np.testing.assert_array_equal(handler(name)(x, y), [wrapped(INTEGERS[name](a, b)) for a, b in pairs])


@pytest.mark.parametrize("name", ["real_div", "floor_div", "mod"])
def test_long_vectors_of_the_worst_integer_division_do_not_end_the_process(name: str) -> None:
    x, y = np.full(1000, WORST, np.int32), np.full(1000, -1, np.int32)
    np.testing.assert_array_equal(handler(name)(x, y), np.full(1000, 0 if name == "mod" else WORST))
    np.testing.assert_array_equal(handler(name)(x, np.array(-1, np.int32)), np.full(1000, 0 if name == "mod" else WORST))


@given(base=st.integers(-12, 12), exponent=st.integers(-4, 40))
@settings(max_examples=50, deadline=None)
def test_pow_of_int32_wraps_around_and_drops_fractions(base: int, exponent: int) -> None:
    got = handler("pow")(np.array([base], np.int32), np.array([exponent], np.int32))
    wanted = base**exponent if exponent >= 0 else trunc(Fraction(base) ** exponent) if base else 0
    assert got.dtype == np.int32
    assert got[0] == wrapped(wanted)


def test_pow_of_a_negative_base_is_nan_between_whole_exponents() -> None:
    got = handler("pow")(np.array([-2, -2, -2, 0], np.float32), np.array([0.5, 3, -2, 0], np.float32))
    np.testing.assert_array_equal(got, [np.nan, -8, 0.25, 1])


def test_floor_div_and_mod_of_floats_round_once_as_pythons() -> None:
    """1 / 0.1 rounds to 10, yet ten times the float next to 0.1 is more than 1."""
    x, y = np.array([1.0, -1.0, 7.5, -7.5]), np.array([0.1, 0.1, -2.0, 2.0])
    np.testing.assert_array_equal(handler("floor_div")(x, y), [a // b for a, b in zip(x.tolist(), y.tolist(), strict=True)])
    np.testing.assert_array_equal(handler("mod")(x, y), [a % b for a, b in zip(x.tolist(), y.tolist(), strict=True)])


@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_in_a_package_keeps_the_order_of_its_operands(name: str, constant_first: bool) -> None:
    x, constant = operands("pow", (2, 3, 4), (3, 1))
    constant = np.abs(constant)
    build = getattr(mb, name)
    (got,) = run_program(lambda x: build(x=constant, y=x) if constant_first else build(x=x, y=constant), x)
    close(got, ARITHMETIC[name](constant, x) if constant_first else ARITHMETIC[name](x, constant), 1e-6)


def through_packages(*groups: Any) -> pytest.MarkDecorator:
    """Every operation, in each opset that defines it."""
    return pytest.mark.parametrize(("name", "opset"), [(name, opset) for group in groups for name in group for opset in definitions(name)])


@through_packages(ARITHMETIC, COMPARISONS)
def test_a_package_gives_floats_what_coremltools_infers(name: str, opset: str) -> None:
    x, y = (np.round(value * 4) / 4 for value in operands(name, (3, 1, 5), (4, 5)))
    y[0, 0] = 0
    (got,) = run_program(lambda x, y: getattr(mb, name)(x=x, y=y), x, y, opset=opset)
    wanted = infer(name, opset, x=x, y=y)
    assert got.dtype == wanted.dtype
    close(got, wanted, 1e-6)


@through_packages(ARITHMETIC, COMPARISONS)
def test_a_package_rounds_fp16_only_at_the_end(name: str, opset: str) -> None:
    x, y = (value.astype(np.float16) for value in operands(name, (3, 4), (3, 1)))
    (got,) = run_program(lambda x, y: getattr(mb, name)(x=x, y=y), x, y, opset=opset)
    wanted = (ARITHMETIC | COMPARISONS)[name](x.astype(np.float32), y.astype(np.float32))
    assert got.dtype == (np.float16 if name in ARITHMETIC else np.bool_)
    np.testing.assert_array_equal(got, wanted.astype(got.dtype))


@through_packages(INTEGERS, COMPARISONS)
def test_a_package_gives_int32_what_python_gives(name: str, opset: str) -> None:
    x, y = crossed(INT_EDGES, np.int32)
    (got,) = run_program(lambda x, y: getattr(mb, name)(x=x, y=y), x, y, opset=opset)
    if name in COMPARISONS:
        np.testing.assert_array_equal(got, COMPARISONS[name](x, y))
        return
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [[wrapped(INTEGERS[name](a, b)) for b in INT_EDGES] for a in INT_EDGES])


@pytest.mark.parametrize("name", ["add", "sub", "mul", "floor_div", "mod", "maximum", "minimum"])
def test_integers_are_what_coremltools_infers(name: str) -> None:
    x, y = crossed(INT_EDGES, np.int32)
    np.testing.assert_array_equal(handler(name)(x, y), infer(name, x=x, y=y))


def test_pow_of_int32_in_a_package_stays_an_integer() -> None:
    x, y = np.array([[2, -3, 10]], np.int32), np.array([[0], [3], [5]], np.int32)
    (got,) = run_program(lambda x, y: mb.pow(x=x, y=y), x, y)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, infer("pow", x=x, y=y))


@through_packages(LOGICAL)
def test_a_package_combines_booleans_as_coremltools_infers(name: str, opset: str) -> None:
    x, y = np.array([[False], [True]]), np.array([[False, True]])
    (got,) = run_program(lambda x, y: getattr(mb, name)(x=x, y=y), x, y, opset=opset)
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, infer(name, opset, x=x, y=y))


@pytest.mark.parametrize("name", ARITHMETIC)
def test_the_float64_policy_keeps_the_precision_of_arithmetic(name: str) -> None:
    x, y = operands(name, (3, 4), (3, 1))
    got = run_unrounded(lambda x, y: getattr(mb, name)(x=x, y=y), x, y)
    assert got.dtype == np.float64
    close(got, ARITHMETIC[name](x.astype(np.float64), y.astype(np.float64)), 1e-14)


class Arithmetic(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(x - 2 * y) + (3 - x) * y - torch.rsub(x, y)


class Divisions(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        quotient = torch.div(x, y, rounding_mode="trunc")
        return x / y, torch.floor_divide(x, y), torch.remainder(x, y), quotient, torch.abs(x) ** y, torch.maximum(x, y)


def test_traced_arithmetic_matches_torch() -> None:
    (got,), (wanted,), operations = run_module(Arithmetic(), torch.from_numpy(normal(2, 5)), torch.from_numpy(normal(2, 5, seed=1)))
    close(got, wanted)
    assert {"add", "sub", "mul", "exp"} <= set(operations)


def test_traced_divisions_match_torch() -> None:
    got, wanted, operations = run_module(Divisions(), torch.from_numpy(normal(4, 5) * 9), torch.from_numpy(normal(4, 5, seed=1)))
    for one, other in zip(got, wanted, strict=True):
        close(one, other)
    assert {"real_div", "floor_div", "pow", "maximum"} <= set(operations)
