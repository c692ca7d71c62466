from __future__ import annotations

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.program import DTYPES
from support.inference import infer, run_unrounded
from support.programs import definitions, handler, run_program

TYPES = {"iOS15": ["fp16", "fp32", "int32", "bool"]}
TYPES["iOS17"] = [*TYPES["iOS15"], "int8", "uint8", "int16", "uint16"]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # numpy, where 65535 becomes fp16
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32"]
FLOATS = ["fp16", "fp32", "fp64"]
PAIRS = [(opset, source, target) for opset in definitions("cast") for source in TYPES[opset] for target in TYPES[opset]]


def as_numpy(values: list[float], name: str) -> np.ndarray:
    return np.array(values).astype(DTYPES[name][1])


def as_held(values: list[float], name: str) -> np.ndarray:
    """As handlers get them: uint16 in a wider type."""
    array = as_numpy(values, name)
    return array.astype(np.int32) if name == "uint16" else array


@pytest.mark.parametrize("target", TYPES["iOS17"])
@pytest.mark.parametrize("source", [*TYPES["iOS17"], "fp64"])
def test_cast_keeps_values_that_both_types_hold(source: str, target: str) -> None:
    got = handler("cast")(as_held([0, 1, 100], source), dtype=target)
    assert np.issubdtype(got.dtype, np.floating) if target in FLOATS else got.dtype == as_held([], target).dtype
    np.testing.assert_array_equal(got, as_numpy([0, 1, 100], source).astype(DTYPES[target][1]))


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", INTEGERS)
def test_cast_of_floats_to_integers_drops_the_fraction(source: str, target: str) -> None:
    x = as_numpy([-2.75, -0.5, 0.5, 1.99, 7.0, 99.9], source)
    wanted = np.maximum(np.trunc(x.astype(np.float64)), np.iinfo(DTYPES[target][1]).min)
    np.testing.assert_array_equal(handler("cast")(x, dtype=target), wanted)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", INTEGERS)
def test_cast_of_floats_beyond_the_range_gives_its_limits_and_of_nan_zero(source: str, target: str) -> None:
    limits = np.iinfo(DTYPES[target][1])
    x = as_numpy([np.inf, -np.inf, np.nan], source)
    np.testing.assert_array_equal(handler("cast")(x, dtype=target), [limits.max, limits.min, 0])
    if source != "fp16":
        x = as_numpy([float(limits.max) + 200, float(limits.min) - 300, 1e20, -1e20], source)
        np.testing.assert_array_equal(handler("cast")(x, dtype=target), [limits.max, limits.min] * 2)


@pytest.mark.parametrize("source", ["int16", "uint16", "int32"])
@pytest.mark.parametrize("target", INTEGERS)
@given(value=st.integers(-(1 << 31), (1 << 31) - 1))
@settings(max_examples=25, deadline=None)
def test_cast_of_integers_wraps_around(source: str, target: str, value: int) -> None:
    limits = np.iinfo(DTYPES[source][1])
    value = value % (limits.max - limits.min + 1) + limits.min
    bits = DTYPES[target][1](0).itemsize * 8
    wanted = value % (1 << bits)
    wanted -= 1 << bits if target.startswith("int") and wanted >= 1 << (bits - 1) else 0
    assert handler("cast")(as_held([value], source), dtype=target).item() == wanted


@pytest.mark.parametrize("target", ["fp16", "fp32"])
def test_cast_to_a_float_rounds_nothing_itself(target: str) -> None:
    """How a value is stored is the policy's choice; every int32 is a float64."""
    precise = np.array([1 + 2**-40, 70000.1, 1e-30])
    np.testing.assert_array_equal(handler("cast")(precise, dtype=target), precise)
    whole = np.array([(1 << 31) - 1, (1 << 24) + 1], np.int32)
    np.testing.assert_array_equal(handler("cast")(whole, dtype=target), whole)


@pytest.mark.parametrize("source", [*FLOATS, *INTEGERS])
def test_cast_to_bool_is_false_for_zero_only(source: str) -> None:
    np.testing.assert_array_equal(handler("cast")(as_held([0, -0.0, 1, 3], source), dtype="bool"), [False, False, True, True])
    if source in FLOATS:
        np.testing.assert_array_equal(handler("cast")(as_numpy([0.25, -1e-7, np.nan], source), dtype="bool"), [True, True, True])


@pytest.mark.parametrize("dtype", ["int64", "string", "float32", ""])
def test_cast_to_a_type_it_does_not_know_is_refused(dtype: str) -> None:
    with pytest.raises(PackageError, match="cast knows no type"):
        handler("cast")(np.zeros(1, np.float32), dtype=dtype)


@pytest.mark.parametrize(("opset", "source", "target"), PAIRS)
def test_cast_in_a_package_gives_what_coremltools_infers(opset: str, source: str, target: str) -> None:
    """Negative and large values only from integers, fractions only to signed types: elsewhere numpy leaves the result open."""
    numbers = [0, 1, 100, 200, 300, -1, 40000] if source in INTEGERS else [0, 1, 100.5, 2.75, 127]
    x = as_numpy(numbers, source)
    (got,) = run_program(lambda x: mb.cast(x=x, dtype=target), x, opset=opset)
    assert got.dtype == DTYPES[target][1]
    np.testing.assert_array_equal(got, infer("cast", opset, x=x, dtype=target))


@pytest.mark.parametrize("target", ["int8", "uint8", "uint16", "int32"])
def test_a_package_continues_with_the_values_that_a_cast_left(target: str) -> None:
    """What is held in a wider type than declared must not keep more than its own type holds."""
    x = np.array([-1.7, 0.0, 300.9, 70000.0, 1e10], np.float32)
    limits = np.iinfo(DTYPES[target][1])
    (got,) = run_program(lambda x: mb.cast(x=mb.cast(x=x, dtype=target), dtype="fp32"), x)
    np.testing.assert_array_equal(got, np.clip(np.trunc(x), limits.min, limits.max).astype(np.float32))
    (got,) = run_program(lambda x: mb.cast(x=mb.cast(x=mb.cast(x=x, dtype="int32"), dtype=target), dtype="int32"), x[:4])
    np.testing.assert_array_equal(got, x[:4].astype(np.int32).astype(DTYPES[target][1]).astype(np.int32))


def test_cast_to_fp16_rounds_half_to_even_where_the_policy_stores_half() -> None:
    x = np.array([2049, 2051, 1 + 2**-11, 70000, -70000, 2**-25, 0.1], np.float32)
    (got,) = run_program(lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"), x)
    np.testing.assert_array_equal(got, np.array([2048, 2052, 1, np.inf, -np.inf, 0, np.float16(0.1)], np.float32))


@pytest.mark.parametrize("numerics", ["float32", "float64"])
def test_cast_to_fp16_keeps_everything_where_the_policy_rounds_nothing(numerics: str) -> None:
    x = np.array([2049, 70000, 0.1, 1e-30], np.float32)
    (got,) = run_program(lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"), x, numerics=numerics)
    np.testing.assert_array_equal(got, x)


def test_the_float64_policy_keeps_an_int32_through_a_float() -> None:
    x = np.array([(1 << 31) - 1, (1 << 24) + 1], np.int32)
    np.testing.assert_array_equal(run_unrounded(lambda x: mb.cast(x=x, dtype="fp32"), x), x.astype(np.float64))
    (got,) = run_program(lambda x: mb.cast(x=x, dtype="fp32"), x)
    np.testing.assert_array_equal(got, x.astype(np.float32))
