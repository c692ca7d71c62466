from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from scipy import special
from support.inference import infer, run_unrounded
from support.programs import close, definitions, handler, run_program

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where a reference leaves a function's domain

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": special.erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "round": np.round,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
DOMAINS = {"acos": (-1, 1), "asin": (-1, 1), "atanh": (-0.95, 0.95), "sqrt": (0, 9), "tan": (-1.5, 1.5)}
WITH_EPSILON: dict[str, tuple[Callable[[Any, float], Any], float]] = {
    "inverse": (lambda x, epsilon: 1 / (x + epsilon), 1e-4),
    "log": (lambda x, epsilon: np.log(x + epsilon), 1e-45),
    "rsqrt": (lambda x, epsilon: (x + epsilon) ** -0.5, 1e-12),
}
# What integers give, in Python's integers, which have no limits.
INTEGERS: dict[str, Callable[[int], int]] = {
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "square": lambda x: x * x,
    "exp2": lambda x: 2**x if x >= 0 else 0,
}
SMALL_INTEGERS = [0, 1, -1, 2, 3, -3, 10, 30, 31, 32, 40]
LARGE_INTEGERS = [46340, 46341, 65536, -65537, (1 << 24) + 1, (1 << 31) - 1, -(1 << 31)]
FLOAT_EDGES = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, 2.5, -2.5, 2.0, -7.0, 88.0, 200.0, -200.0, np.inf, -np.inf, np.nan]
BOUNDS = [(-1.0, 1.0), (0.0, 0.5), (-np.inf, 0.25), (0.0, np.inf)]
few = settings(max_examples=25, deadline=None)


def wrapped(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def values(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Float32, uniform over where a function is defined and does not overflow."""
    low, high = DOMAINS.get(name, (-9, 9))
    return np.asarray(np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
@given(shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=5), seed=st.integers(0, 1000))
@few
def test_functions_match_numpy_in_the_type_they_get(name: str, dtype: type, shape: tuple[int, ...], seed: int) -> None:
    x = values(name, shape, seed).astype(dtype)
    got = handler(name)(x)
    assert got.dtype == dtype
    close(got, FUNCTIONS[name](x.astype(np.float64)), 2e-6 if dtype is np.float32 else 1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_at_zeros_infinities_nan_and_outside_their_domain_are_numpys(name: str) -> None:
    x = np.array(FLOAT_EDGES)
    np.testing.assert_allclose(handler(name)(x), FUNCTIONS[name](x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_exact_and_wrap_around(name: str) -> None:
    numbers = SMALL_INTEGERS + ([] if name == "exp2" else LARGE_INTEGERS)
    got = handler(name)(np.array(numbers, np.int32))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [wrapped(INTEGERS[name](number)) for number in numbers])


def test_round_takes_halves_to_the_even_neighbour() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 8388609.5], np.float32)
    np.testing.assert_array_equal(handler("round")(x), [-2, -2, 0, 0, 2, 2, 0, 8388610])


def test_exp_overflows_to_infinity_and_underflows_to_zero() -> None:
    np.testing.assert_array_equal(handler("exp")(np.array([200, -200], np.float32)), [np.inf, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", WITH_EPSILON)
@given(shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=5), epsilon=st.none() | st.floats(0.01, 5), seed=st.integers(0, 1000))
@few
def test_epsilon_is_added_first_and_has_the_definitions_default(
    name: str, dtype: type, shape: tuple[int, ...], epsilon: float | None, seed: int
) -> None:
    x = np.asarray(np.abs(values(name, shape, seed)).astype(dtype))
    function, default = WITH_EPSILON[name]
    got = handler(name)(x) if epsilon is None else handler(name)(x, epsilon=epsilon)
    assert got.dtype == dtype
    wanted = function(x.astype(np.float64), default if epsilon is None else epsilon)
    np.testing.assert_allclose(got, wanted, rtol=3e-6 if dtype is np.float32 else 1e-13, atol=1e-6 if dtype is np.float32 else 1e-14)


@pytest.mark.parametrize(("name", "wanted"), [("inverse", 1e4), ("log", np.log(2.0**-149)), ("rsqrt", 1e6)])
def test_zero_gives_what_the_default_epsilon_leaves(name: str, wanted: float) -> None:
    """The smallest float32 is what 1e-45 rounds to."""
    np.testing.assert_allclose(handler(name)(np.zeros(40, np.float32)), np.full(40, wanted), rtol=1e-6)


@pytest.mark.parametrize("opset", definitions("clip"))
@given(shape=hnp.array_shapes(min_dims=0, min_side=0), bounds=st.sampled_from(BOUNDS), seed=st.integers(0, 1000))
@few
def test_clip_limits_to_both_bounds(opset: str, shape: tuple[int, ...], bounds: tuple[float, float], seed: int) -> None:
    x = values("clip", shape, seed)
    np.testing.assert_array_equal(handler("clip", opset)(x, *bounds), np.minimum(np.maximum(x, bounds[0]), bounds[1]))


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, -1.0), (1.0, 1.0)])
def test_clip_with_bounds_that_leave_nothing_gives_beta_until_ios17_refuses_it(alpha: float, beta: float) -> None:
    x = np.array([-3, 0, 3, np.nan], np.float32)
    np.testing.assert_array_equal(handler("clip", "iOS16")(x, alpha, beta), infer("clip", "iOS15", x=x, alpha=alpha, beta=beta))
    with pytest.raises(PackageError, match="alpha must be less than beta"):
        handler("clip", "iOS17")(x, alpha, beta)


@given(shape=hnp.array_shapes(min_dims=0, min_side=0), alpha=st.floats(-9, 9, width=32), seed=st.integers(0, 1000))
@few
def test_threshold_is_a_lower_bound(shape: tuple[int, ...], alpha: float, seed: int) -> None:
    x = values("threshold", shape, seed)
    got = handler("threshold")(x, np.array(alpha, np.float32))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.where(x < alpha, np.float32(alpha), x))


def test_threshold_of_integers_is_exact_beyond_float_precision() -> None:
    x = np.array([(1 << 24) + 1, (1 << 24) - 1, 1 << 30, -5], np.int32)
    got = handler("threshold")(x, np.array((1 << 24) + 3, np.int32))
    np.testing.assert_array_equal(got, [(1 << 24) + 3, (1 << 24) + 3, 1 << 30, (1 << 24) + 3])


def test_logical_not_matches_python() -> None:
    got = handler("logical_not")(np.array([[True, False]]))
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, [[False, True]])


def through_packages(*names: str) -> pytest.MarkDecorator:
    """Every operation, in each opset that defines it."""
    return pytest.mark.parametrize(("name", "opset"), [(name, opset) for name in names for opset in definitions(name)])


@through_packages(*FUNCTIONS)
def test_a_package_gives_what_coremltools_infers(name: str, opset: str) -> None:
    x = values(name, (3, 4))
    (got,) = run_program(lambda x: getattr(mb, name)(x=x), x, opset=opset)
    assert got.dtype == np.float32
    close(got, infer(name, opset, x=x), 2e-6)


@through_packages(*FUNCTIONS)
def test_a_package_rounds_fp16_only_at_the_end(name: str, opset: str) -> None:
    x = values(name, (40,)).astype(np.float16)
    (got,) = run_program(lambda x: getattr(mb, name)(x=x), x, opset=opset)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, FUNCTIONS[name](x.astype(np.float64)).astype(np.float16), rtol=2**-10, atol=2**-24)


@through_packages(*INTEGERS)
def test_a_package_gives_int32_what_python_gives(name: str, opset: str) -> None:
    numbers = SMALL_INTEGERS + ([] if name == "exp2" else LARGE_INTEGERS)
    (got,) = run_program(lambda x: getattr(mb, name)(x=x), np.array(numbers, np.int32), opset=opset)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [wrapped(INTEGERS[name](number)) for number in numbers])


@pytest.mark.parametrize("epsilon", [None, 0.25])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@through_packages(*WITH_EPSILON)
def test_a_package_with_epsilon_gives_what_coremltools_infers(name: str, opset: str, dtype: type, epsilon: float | None) -> None:
    x = np.array([[0.0, 0.1, 1.0], [2.0, 7.5, 100.0]], dtype)
    given_epsilon = {} if epsilon is None else {"epsilon": dtype(epsilon)}
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, **given_epsilon), x, opset=opset)
    wanted = infer(name, opset, x=x, **given_epsilon)
    assert got.dtype == wanted.dtype == dtype
    np.testing.assert_allclose(got, wanted, rtol=1e-6 if dtype is np.float32 else 2e-3, atol=1e-6 if dtype is np.float32 else 1e-3)


@pytest.mark.parametrize("name", WITH_EPSILON)
def test_epsilon_of_ios17_may_be_more_precise_than_the_data(name: str) -> None:
    """1e-4 is not a half precision number, and 1e-9 would be zero."""
    x = np.zeros(2, np.float16)
    (got,) = run_program(lambda x: mb.cast(x=getattr(mb, name)(x=x, epsilon=np.float32(3e-4)), dtype="fp32"), x, opset="iOS17")
    np.testing.assert_allclose(got, WITH_EPSILON[name][0](np.zeros(2), 3e-4).astype(np.float16), rtol=1e-3)
    if name == "log":
        (got,) = run_program(lambda x: mb.log(x=x, epsilon=np.float32(1e-9)), x, opset="iOS17")
        np.testing.assert_array_equal(got, np.full(2, np.log(1e-9), np.float16))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("opset", definitions("clip"))
def test_clip_in_a_package_gives_what_coremltools_infers(opset: str, dtype: type) -> None:
    x = values("clip", (3, 5)).astype(dtype)
    (got,) = run_program(lambda x: mb.clip(x=x, alpha=dtype(-0.3), beta=dtype(2.1)), x, opset=opset)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, infer("clip", opset, x=x, alpha=dtype(-0.3), beta=dtype(2.1)))


def test_clip_of_an_ios15_package_may_have_its_bounds_the_wrong_way_round() -> None:
    (got,) = run_program(lambda x: mb.clip(x=x, alpha=2.0, beta=-1.0), values("clip", (3, 5)), opset="iOS15")
    np.testing.assert_array_equal(got, np.full((3, 5), -1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32])
def test_threshold_in_a_package_gives_what_coremltools_infers(dtype: type) -> None:
    x, alpha = np.array([[-2, 0, 3], [7, (1 << 11) + 1, 1]]).astype(dtype), dtype(2)
    (got,) = run_program(lambda x: mb.threshold(x=x, alpha=alpha), x, opset="iOS15")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, infer("threshold", "iOS15", x=x, alpha=alpha))


def test_threshold_of_integers_in_a_package_is_exact_beyond_float_precision() -> None:
    (got,) = run_program(lambda x: mb.threshold(x=x, alpha=(1 << 24) + 3), np.array([(1 << 24) + 1, (1 << 24) + 5], np.int32))
    np.testing.assert_array_equal(got, [(1 << 24) + 3, (1 << 24) + 5])


def test_logical_not_in_a_package_matches_python() -> None:
    (got,) = run_program(lambda x: mb.logical_not(x=x), np.array([[True, False, False]]), opset="iOS15")
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, [[False, True, True]])


@pytest.mark.parametrize("name", [*FUNCTIONS, *WITH_EPSILON])
def test_the_float64_policy_keeps_the_precision_of_functions(name: str) -> None:
    x = np.abs(values(name, (3, 4))) + np.float32(0 if name in DOMAINS else 0.5)
    got = run_unrounded(lambda x: getattr(mb, name)(x=x), x)
    assert got.dtype == np.float64
    if name in FUNCTIONS:
        wanted = FUNCTIONS[name](x.astype(np.float64))
    else:
        function, default = WITH_EPSILON[name]
        wanted = function(x.astype(np.float64), float(np.float32(default)))
    np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-15)
