"""The policies, and each rule of `ane` alone and with the others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.numerics import MAC_LIMIT, MAC_OPERATIONS, POLICIES, RULES, SLICE_LIMIT, Numerics, find_numerics
from support.programs import build_program, definitions, normal, run_program, save_package, write_program

HALF = np.float16


def run(build: Any, *inputs: np.ndarray, numerics: str, opset: str = "iOS17") -> np.ndarray:
    (result,) = run_program(build, *inputs, numerics=numerics, opset=opset)
    return result


def halved(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(values.dtype)


# ---------------------------------------------------------------- ane: half_everywhere


def test_half_everywhere_rounds_inputs_constants_and_results_of_a_float32_program() -> None:
    x, scale, offset = normal(5, 7), normal(5, 7, seed=1), normal(5, 7, seed=2)
    got = run(lambda x: mb.add(x=mb.mul(x=x, y=scale), y=offset), x, numerics="ane:half_everywhere")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, halved(halved(halved(x) * halved(scale)) + halved(offset)))
    np.testing.assert_array_equal(run(lambda x: mb.identity(x=x), x, numerics="ane:half_everywhere"), halved(x))
    np.testing.assert_array_equal(run(lambda x: mb.add(x=x, y=scale), 0 * x, numerics="ane:half_everywhere"), halved(scale))


@pytest.mark.parametrize("value", [65520.0, 1e6, -3e38])
def test_half_everywhere_overflows_to_infinity(value: float) -> None:
    x = np.array([value], np.float32)
    wanted = np.copysign(np.inf, x)
    np.testing.assert_array_equal(run(lambda x: mb.identity(x=x), x, numerics="ane:half_everywhere"), wanted)
    np.testing.assert_array_equal(run(lambda x: mb.add(x=x, y=x), x / 2, numerics="ane:half_everywhere"), wanted)
    constant = run(lambda x: mb.add(x=x, y=np.float32(value)), np.zeros(1, np.float32), numerics="ane:half_everywhere")
    np.testing.assert_array_equal(constant, wanted)
    assert run(lambda x: mb.identity(x=x), np.array([65504], np.float32), numerics="ane:half_everywhere")[0] == 65504


def test_half_everywhere_still_accumulates_in_float32() -> None:
    x = np.array([[2048] + [1] * 63], np.float32)
    assert run(lambda x: mb.matmul(x=x, y=np.ones((64, 1), np.float32)), x, numerics="ane:half_everywhere")[0, 0] == HALF(2111)


def test_half_everywhere_holds_states_in_half(tmp_path: Path) -> None:
    policy = find_numerics("ane:half_everywhere")
    assert {dtype: policy.storage(dtype) for dtype in ("fp16", "fp32", "fp64")} == dict.fromkeys(("fp16", "fp32", "fp64"), torch.float16)
    assert [policy.storage(dtype) for dtype in ("int32", "bool", "uint8")] == [torch.int32, torch.bool, torch.uint8]


# ---------------------------------------------------------------- ane: mac_saturation


def products(x: Any) -> dict[str, Any]:
    """Every operation of products and sums on x of (1, 2, 4, 4), each with results of 4 x."""
    ones = np.ones((2, 2, 1, 1), np.float32)
    flat = mb.reshape(x=x, shape=[8, 4])
    return {
        "conv": mb.conv(x=x, weight=2 * ones),
        "conv_transpose": mb.conv_transpose(x=x, weight=2 * ones),
        "linear": mb.linear(x=flat, weight=np.ones((1, 4), np.float32)),
        "matmul": mb.matmul(x=flat, y=np.ones((4, 1), np.float32)),
        "einsum": mb.einsum(values=(x, mb.const(val=np.ones((1, 4, 4, 3), np.float32))), equation="bhwc,bcwq->bhwq"),
        "scaled_dot_product_attention": mb.scaled_dot_product_attention(
            query=np.zeros((1, 2, 4, 4), np.float32), key=x, value=mb.mul(x=x, y=np.float32(4))
        ),
    }


@pytest.mark.parametrize("operation", sorted(MAC_OPERATIONS))
@pytest.mark.parametrize("sign", [1, -1])
def test_products_saturate_at_half_the_range(operation: str, sign: int) -> None:
    x = np.full((1, 2, 4, 4), sign * 10000, np.float32)
    plain = run(lambda x: products(x)[operation], x, numerics="float32", opset="iOS18")
    np.testing.assert_array_equal(plain, np.full(plain.shape, sign * 40000))
    got = run(lambda x: products(x)[operation], x, numerics="ane:mac_saturation", opset="iOS18")
    np.testing.assert_array_equal(got, np.full(plain.shape, sign * MAC_LIMIT))
    small = run(lambda x: products(x)[operation], x / 2, numerics="ane:mac_saturation", opset="iOS18")
    np.testing.assert_array_equal(small, np.full(plain.shape, sign * 20000))


def test_sums_and_products_of_elements_do_not_saturate() -> None:
    x = np.full((2, 3), 30000, np.float32)
    np.testing.assert_array_equal(run(lambda x: mb.add(x=x, y=x), x, numerics="ane"), np.full((2, 3), 60000))
    np.testing.assert_array_equal(run(lambda x: mb.mul(x=x, y=np.float32(2)), x, numerics="ane"), np.full((2, 3), 60000))
    np.testing.assert_array_equal(run(lambda x: mb.reduce_sum(x=x, axes=[0]), x, numerics="ane"), np.full(3, 60000))


def test_saturation_keeps_nan_and_bounds_infinity() -> None:
    x = np.array([[math.nan], [math.inf], [-math.inf]], np.float32)
    got = run(lambda x: mb.matmul(x=x, y=np.ones((1, 1), np.float32)), x, numerics="ane:mac_saturation")
    np.testing.assert_array_equal(got[:, 0], [math.nan, MAC_LIMIT, -MAC_LIMIT])


def test_integer_products_do_not_saturate() -> None:
    x = np.array([[100000]], np.int32)
    assert run(lambda x: mb.matmul(x=x, y=np.array([[2]], np.int32)), x, numerics="ane")[0, 0] == 200000


# ---------------------------------------------------------------- ane: slice_overflow


BIG = np.array([[5000, -5000, 5000, 4094, -5000]], np.float32)
INFINITE = np.array([[np.inf, -np.inf, np.inf, 4094, -np.inf]], np.float32)
SLICES = {
    "begins inside": ({"begin": [0, 1], "end": [1, 5]}, INFINITE[:, 1:]),
    "begins inside with a negative number": ({"begin": [0, -4], "end": [1, 5]}, INFINITE[:, 1:]),
    "is one value": ({"begin": [0, 2], "end": [1, 3], "squeeze_mask": [False, True]}, INFINITE[:, 2]),
    "has steps": ({"begin": [0, 1], "end": [1, 5], "stride": [1, 2]}, INFINITE[:, 1::2]),
    "is taken backwards": ({"begin": [0, 4], "end": [1, 0], "stride": [1, -1]}, INFINITE[:, 4:0:-1]),
    "is all of it backwards": (
        {"begin": [0, 0], "end": [1, 0], "stride": [1, -1], "begin_mask": [False, True], "end_mask": [False, True]},
        INFINITE[:, ::-1],
    ),
    "is the first value whatever its stride": (
        {"begin": [0, 0], "end": [1, 0], "stride": [1, -1], "begin_mask": [False, True], "squeeze_mask": [False, True]},
        BIG[:, 0],
    ),
    "begins at the start": ({"begin": [0, 0], "end": [1, 3]}, BIG[:, :3]),
    "begins at the start by a mask": ({"begin": [0, 3], "end": [1, 4], "begin_mask": [False, True]}, BIG[:, :4]),
    "begins at the start with a negative number": ({"begin": [0, -5], "end": [1, 4]}, BIG[:, :4]),
    "begins before the start": ({"begin": [0, -9], "end": [1, 4]}, BIG[:, :4]),
    "takes all": ({"begin": [0, 0], "end": [1, 5]}, BIG),
}


@pytest.mark.parametrize("case", SLICES)
def test_a_slice_of_the_last_axis_overflows_only_with_an_offset(case: str) -> None:
    arguments, wanted = SLICES[case]
    got = run(lambda x: mb.slice_by_index(x=x, **arguments), BIG, numerics="ane:slice_overflow")
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("axes", "overflows"), [((2, 5), True), ((5, 2), False)], ids=["last", "first"])
@pytest.mark.parametrize("opset", definitions("slice_by_size"))
def test_an_offset_on_another_axis_does_no_harm(axes: tuple[int, int], overflows: bool, opset: str) -> None:
    x = np.full(axes, 5000, np.float32)
    at = [0, 1] if overflows else [1, 0]
    size = [-1, -1] if overflows else [1, -1]
    for got in (
        run(lambda x: mb.slice_by_size(x=x, begin=at, size=size), x, numerics="ane:slice_overflow", opset=opset),
        run(lambda x: mb.slice_by_index(x=x, begin=at, end=list(axes)), x, numerics="ane:slice_overflow", opset=opset),
    ):
        assert np.isinf(got).all() == overflows
        assert (got == 5000).all() != overflows


def test_a_slice_whose_begin_is_computed_overflows_too() -> None:
    def build(x: Any, at: Any) -> Any:
        return mb.slice_by_index(x=x, begin=mb.concat(values=[np.array([0], np.int32), at], axis=0), end=[1, 5])

    for at, wanted in ((0, BIG), (2, INFINITE[:, 2:])):
        got = run(build, BIG, np.array([at], np.int32), numerics="ane:slice_overflow")
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("axis", "overflows"), [(-1, True), (1, True), (0, False), (-2, False)])
@pytest.mark.parametrize("how", [{"num_splits": 3}, {"split_sizes": [1, 1, 1]}], ids=["number", "sizes"])
def test_of_a_split_all_parts_but_the_first_overflow(axis: int, overflows: bool, how: dict[str, Any]) -> None:
    first, *others = run_program(
        lambda x: mb.split(x=x, axis=axis, **how), np.full((3, 3), -5000, np.float32), numerics="ane:slice_overflow"
    )
    np.testing.assert_array_equal(first, np.full(first.shape, -5000))
    for part in others:
        np.testing.assert_array_equal(part, np.full(part.shape, -np.inf if overflows else -5000))


def test_the_limit_itself_and_nan_survive_a_slice() -> None:
    x = np.array([[0, SLICE_LIMIT, -SLICE_LIMIT, np.nan, SLICE_LIMIT + 2]], np.float32)
    got = run(lambda x: mb.slice_by_index(x=x, begin=[0, 1], end=[1, 5]), x, numerics="ane")
    np.testing.assert_array_equal(got, [[SLICE_LIMIT, -SLICE_LIMIT, np.nan, np.inf]])


# ---------------------------------------------------------------- ane: nan_swallowed


def test_activations_swallow_nan() -> None:
    x = np.array([np.nan, -1, 2, np.inf], np.float32)
    relu, tanh, sigmoid = run_program(lambda x: (mb.relu(x=x), mb.tanh(x=x), mb.sigmoid(x=x)), x, numerics="ane:nan_swallowed")
    np.testing.assert_array_equal(relu, [np.inf, 0, 2, np.inf])
    assert tanh[0] == 1
    np.testing.assert_allclose(tanh[1:], np.tanh(x[1:]), rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(sigmoid), [True, False, False, False])


@pytest.mark.parametrize("numerics", ["declared", "float32", "float64"])
def test_other_policies_let_nan_through(numerics: str) -> None:
    for result in run_program(lambda x: (mb.relu(x=x), mb.tanh(x=x)), np.array([np.nan], np.float32), numerics=numerics):
        assert np.isnan(result).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_half_precision_swallows_nan_as_well(dtype: type) -> None:
    relu, tanh = run_program(lambda x: (mb.relu(x=x), mb.tanh(x=x)), np.array([np.nan], dtype), numerics="ane")
    assert (relu[0], tanh[0]) == (np.inf, 1)
    assert relu.dtype == tanh.dtype == dtype


# ---------------------------------------------------------------- together


def everything(x: Any) -> Any:
    """One result for each rule: rounding, saturation, the slice and NaN."""
    rounded = mb.add(x=x, y=np.float32(0))
    saturated = mb.matmul(x=x, y=np.full((2, 1), 6, np.float32))
    sliced = mb.slice_by_index(x=x, begin=[0, 1], end=[1, 2])
    swallowed = mb.relu(x=mb.mul(x=x, y=np.float32(np.nan)))
    return rounded, saturated, sliced, swallowed


EFFECTS: dict[str, tuple[int, Any]] = {
    "half_everywhere": (0, lambda value: value[0, 0] == HALF(5000.123)),
    "mac_saturation": (1, lambda value: value[0, 0] == MAC_LIMIT),
    "slice_overflow": (2, lambda value: np.isinf(value).all()),
    "nan_swallowed": (3, lambda value: np.isinf(value).all()),
}
X = np.array([[5000.123, 5000.123]], np.float32)


@pytest.fixture(scope="module")
def everything_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_program(build_program(everything, [X]), tmp_path_factory.mktemp("all") / "model.mlpackage")


def effects(path: Path, numerics: str | Numerics) -> set[str]:
    results = list(ReferenceModel(path, numerics=numerics).predict({"x": X}).values())
    return {name for name, (index, shows) in EFFECTS.items() if shows(results[index])}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_can_be_on_alone_and_off_alone(everything_package: Path, rule: str) -> None:
    assert effects(everything_package, f"ane:{rule}") == {rule}
    others = [name for name in RULES if name != rule]
    assert effects(everything_package, f"ane:{','.join(others)}") == set(others)


@pytest.mark.parametrize(("numerics", "wanted"), [("ane", set(RULES)), ("declared", set()), ("float32", set()), ("float64", set())])
def test_ane_has_all_rules_and_other_policies_none(everything_package: Path, numerics: str, wanted: set[str]) -> None:
    assert effects(everything_package, numerics) == wanted


def test_a_policy_of_ones_own_can_be_passed(everything_package: Path) -> None:
    own = Numerics("own", torch.float64, rounds=False, rules=(RULES["mac_saturation"],))
    assert effects(everything_package, own) == {"mac_saturation"}


def test_predictions_of_one_model_repeat_under_every_policy(tmp_path: Path) -> None:
    """The first prediction is watched by the memory guard, and the second is not."""
    path = save_package(tmp_path, lambda x: mb.softmax(x=mb.linear(x=x, weight=normal(9, 8), bias=normal(9))), normal(4, 8))
    for numerics in POLICIES:
        model = ReferenceModel(path, numerics=numerics)
        first, second = (next(iter(model.predict({"x": normal(4, 8)}).values())) for _ in range(2))
        np.testing.assert_array_equal(first, second)
