from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.runtime.reference.program import DTYPES
from support.programs import close, handler, normal, run_module, run_program

ARITHMETIC = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
BROADCASTS = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (1, 3, 1)), ((3, 1), (2, 1, 4)), ((5,), (2, 5)), ((2, 3), ())]
CASTABLE = ["fp16", "fp32", "int32", "int8", "uint8", "int16", "uint16", "bool"]


@pytest.mark.parametrize(("left", "right"), BROADCASTS, ids=str)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_broadcasts_like_numpy(name: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    x, y = normal(*left), np.asarray(normal(*right, seed=1))
    close(handler(name)(x, y), ARITHMETIC[name](x.astype(np.float64), y), 1e-6)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_of_int32_stays_exact_beyond_float_precision(name: str) -> None:
    x, y = np.array([16777217, -5, 1 << 29], np.int32), np.array([3, -7, 2], np.int32)
    got = handler(name)(x, y)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, ARITHMETIC[name](x, y))


@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_in_a_package_keeps_the_order_of_its_operands(name: str, constant_first: bool) -> None:
    x, constant = normal(2, 3, 4), normal(3, 1, seed=1)
    build = getattr(mb, name)
    (got,) = run_program(lambda x: build(x=constant, y=x) if constant_first else build(x=x, y=constant), x)
    close(got, ARITHMETIC[name](constant, x) if constant_first else ARITHMETIC[name](x, constant), 1e-6)


def test_exp_matches_numpy_over_its_range() -> None:
    x = np.linspace(-80, 80, 401, dtype=np.float32)
    np.testing.assert_allclose(handler("exp")(x), np.exp(x.astype(np.float64)), rtol=1e-6)


def test_exp_overflows_to_infinity_and_underflows_to_zero() -> None:
    np.testing.assert_array_equal(handler("exp")(np.array([200, -200], np.float32)), [np.inf, 0])


@pytest.mark.parametrize("target", CASTABLE)
@pytest.mark.parametrize("source", CASTABLE)
def test_cast_converts_values_that_both_types_hold(source: str, target: str) -> None:
    values = np.array([0, 1, 100]).astype(DTYPES[source][1])
    got = handler("cast")(values, dtype=target)
    assert got.dtype == DTYPES[target][1]
    np.testing.assert_array_equal(got, values.astype(DTYPES[target][1]))


@pytest.mark.parametrize("source", ["fp16", "fp32"])
def test_cast_to_an_integer_drops_the_fraction(source: str) -> None:
    x = np.array([-2.75, -0.5, 0.5, 1.99, 7.0], DTYPES[source][1])
    np.testing.assert_array_equal(handler("cast")(x, dtype="int32"), [-2, 0, 0, 1, 7])


def test_cast_to_fp16_rounds_half_to_even_and_overflows_to_infinity() -> None:
    x = np.array([2049, 2051, 1 + 2**-11, 70000, -70000, 2**-25], np.float32)
    np.testing.assert_array_equal(handler("cast")(x, dtype="fp16"), np.array([2048, 2052, 1, np.inf, -np.inf, 0], np.float16))


def test_cast_to_bool_is_false_for_zero_only() -> None:
    np.testing.assert_array_equal(handler("cast")(np.array([0, -0.0, 0.25, -3], np.float32), dtype="bool"), [False, False, True, True])


@pytest.mark.parametrize("target", ["fp16", "int32", "bool"])
def test_cast_in_a_package_has_the_effect_of_the_named_type(target: str) -> None:
    x = np.array([[-1.7, 0.0, 0.1, 2049.3]], np.float32)
    (got,) = run_program(lambda x: mb.cast(x=mb.cast(x=x, dtype=target), dtype="fp32"), x)
    np.testing.assert_array_equal(got, x.astype(DTYPES[target][1]).astype(np.float32))


class Arithmetic(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(x - 2 * y) + (3 - x) * y - torch.rsub(x, y)


def test_traced_arithmetic_matches_torch() -> None:
    (got,), (wanted,), operations = run_module(Arithmetic(), torch.from_numpy(normal(2, 5)), torch.from_numpy(normal(2, 5, seed=1)))
    close(got, wanted)
    assert {"add", "sub", "mul", "exp"} <= set(operations)
