"""The policies, and each rule of `ane` alone and with the others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.numerics import MAC_LIMIT, MAC_OPERATIONS, POLICIES, RULES, SLICE_LIMIT, Numerics, find_numerics
from support.programs import build_program, convert_module, definitions, normal, run_program, save_package, write_program
from torch import Tensor

HALF = np.float16


def run(build: Any, *inputs: np.ndarray, numerics: str, opset: str = "iOS17") -> np.ndarray:
    (result,) = run_program(build, *inputs, numerics=numerics, opset=opset)
    return result


def halved(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(values.dtype)


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_found_by_its_name_and_by_itself(name: str) -> None:
    assert find_numerics(name) is POLICIES[name]
    assert find_numerics(POLICIES[name]) is POLICIES[name]


@pytest.mark.parametrize("name", ["", "fp16", "Declared", "declared:", "float32:mac_saturation", ":", "ane2", None])
def test_an_unknown_policy_is_refused_with_the_list(name: Any) -> None:
    with pytest.raises(UsageError, match=r"no numerics policy .*; choose declared, float32, float64, ane"):
        find_numerics(name)


@pytest.mark.parametrize("rules", ["", "saturation", "mac_saturation,", "mac_saturation,nothing", "half_everywhere;mac_saturation"])
def test_an_unknown_rule_is_refused_with_the_list(rules: str) -> None:
    with pytest.raises(UsageError, match=rf"no rule .* of ane; its rules are {', '.join(RULES)}$"):
        find_numerics(f"ane:{rules}")


def test_rules_are_chosen_by_name_each_once() -> None:
    found = find_numerics("ane:nan_swallowed, mac_saturation,nan_swallowed")
    assert [rule.name for rule in found.rules] == ["nan_swallowed", "mac_saturation"]
    assert found.name == "ane:nan_swallowed,mac_saturation"
    assert [rule.name for rule in POLICIES["ane"].rules] == list(RULES)


def test_an_unknown_policy_is_refused_before_the_package_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no numerics policy 'double'"):
        ReferenceModel(tmp_path / "none.mlpackage", numerics="double")


def test_every_rule_says_what_it_does_and_who_measured_it() -> None:
    for name, rule in RULES.items():
        assert rule.name == name
        assert len(rule.what) > 20
        assert rule.source


# ---------------------------------------------------------------- declared, float32, float64


def half_sum(x: Any) -> Any:
    """2048 + 1 + 1 + ...: in half precision each 1 is lost."""
    return mb.matmul(x=x, y=np.ones((64, 1), HALF), name="sum")


def test_declared_accumulates_in_float32_and_rounds_once() -> None:
    x = np.array([[2048] + [1] * 63], HALF)
    one_by_one = HALF(0)
    for value in x[0]:
        one_by_one = HALF(one_by_one + value)
    assert one_by_one == 2048
    got = run(half_sum, x, numerics="declared")
    assert got.dtype == HALF
    assert got[0, 0] == HALF(2111)


def cancelled(x: Any) -> Any:
    return mb.sub(x=mb.add(x=x, y=HALF(2048)), y=HALF(2048), name="left")


@pytest.mark.parametrize(("numerics", "wanted"), [("declared", 0), ("float32", 0.25), ("float64", 0.25), ("ane", 0)])
def test_only_declared_and_ane_round_between_operations(numerics: str, wanted: float) -> None:
    assert run(cancelled, np.array([0.25], HALF), numerics=numerics)[0] == HALF(wanted)


def test_a_cast_to_half_rounds_where_results_are_rounded_only() -> None:
    def build(x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")

    x = normal(50)
    np.testing.assert_array_equal(run(build, x, numerics="declared"), halved(x))
    for numerics in ("float32", "float64"):
        np.testing.assert_array_equal(run(build, x, numerics=numerics), x)


def test_float32_overflows_where_float32_does_and_not_at_half() -> None:
    def build(x: Any) -> Any:
        return mb.cast(x=mb.mul(x=mb.mul(x=x, y=x), y=HALF(1e-3)), dtype="fp32")

    x = np.array([300], HALF)
    assert np.isinf(run(build, x, numerics="declared"))[0]
    np.testing.assert_allclose(run(build, x, numerics="float32"), 90000 * np.float32(HALF(1e-3)), rtol=1e-6)


@pytest.mark.parametrize("numerics", ["declared", "float32", "float64", "ane"])
def test_constants_in_half_precision_stay_what_they_are(numerics: str) -> None:
    weight = normal(3, 4).astype(HALF)
    got = run(lambda x: mb.cast(x=mb.add(x=x, y=weight), dtype="fp32"), np.zeros((3, 4), HALF), numerics=numerics)
    np.testing.assert_array_equal(got, weight.astype(np.float32))


class Network(torch.nn.Module):
    """Weighted sums, a normalisation and smooth activations, all of which numpy can do in a few lines."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 8, 3, padding=1)
        self.norm = torch.nn.LayerNorm(8)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.conv(x)).transpose(1, 2))
        hidden = torch.softmax(hidden @ hidden.transpose(1, 2) * 0.5, dim=-1) @ hidden
        return torch.sigmoid(self.linear(hidden))


def in_numpy(network: Network, x: np.ndarray, dtype: type) -> np.ndarray:
    """The network in float64, on weights as a package of `dtype` stores them."""
    conv, bias, scale, shift, linear, offset = (p.detach().numpy().astype(dtype).astype(np.float64) for p in network.parameters())
    half = np.float64(dtype(0.5))
    eps = np.float64(dtype(1e-5))
    padded = np.pad(x.astype(np.float64)[0], ((0, 0), (1, 1)))
    columns = np.stack([padded[:, start : start + x.shape[-1]] for start in range(3)], -1)
    hidden = np.tanh(np.einsum("oik,itk->to", conv, columns) + bias)
    hidden = hidden - hidden.mean(-1, keepdims=True)
    hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + eps) * scale + shift
    scores = np.exp(hidden @ hidden.T * half)
    hidden = scores / scores.sum(-1, keepdims=True) @ hidden
    return (1 / (1 + np.exp(-(hidden @ linear.T + offset))))[None]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(3)
    return Network().eval()


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def package(request: pytest.FixtureRequest, network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, type]:
    path = tmp_path_factory.mktemp(request.param) / "network.mlpackage"
    convert_module(network, [torch.zeros(1, 4, 12)], request.param).save(str(path))
    return path, np.float32 if request.param == "fp32" else HALF


def test_float64_agrees_with_numpy_through_a_whole_network(package: tuple[Path, type], network: Network) -> None:
    path, dtype = package
    model, x = ReferenceModel(path, numerics="float64"), normal(1, 4, 12).astype(dtype)
    *_, last = model.trace({"in0": x})
    wanted = in_numpy(network, x, dtype)
    # the last operation before an output may be a cast; what the trace hands out is unrounded
    (value,) = last.results.values()
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_the_policies_come_closer_to_float64_in_their_order(package: tuple[Path, type], network: Network) -> None:
    path, dtype = package
    x = normal(1, 4, 12).astype(dtype)
    errors = {}
    for numerics in ("ane:half_everywhere", "declared", "float32", "float64"):
        *_, last = ReferenceModel(path, numerics=numerics).trace({"in0": x})
        errors[numerics] = np.abs(next(iter(last.results.values())).double().numpy() - in_numpy(network, x, dtype)).max()
    assert errors["float64"] < 1e-12 < 1e-9 < errors["float32"] < 1e-5
    if dtype == HALF:
        assert errors["declared"] == errors["ane:half_everywhere"] > 1e-5
    else:
        assert errors["declared"] == errors["float32"]
        assert errors["ane:half_everywhere"] > 1e-5


@pytest.mark.parametrize("numerics", [*POLICIES, "ane:half_everywhere"])
def test_outputs_have_their_declared_type_under_every_policy(package: tuple[Path, type], numerics: str) -> None:
    path, dtype = package
    model = ReferenceModel(path, numerics=numerics)
    (got,) = model.predict({"in0": normal(1, 4, 12)}).values()
    assert got.dtype == dtype


@pytest.mark.parametrize("numerics", POLICIES)
def test_integers_and_bools_are_untouched(numerics: str) -> None:
    x = np.array([[16777217, -70001, 5]], np.int32)

    def build(x: Any) -> Any:
        product = mb.matmul(x=x, y=np.array([[1, 0], [0, 1], [0, 0]], np.int32))
        moved = mb.slice_by_index(x=x, begin=[0, 1], end=[1, 3])
        return (
            product,
            moved,
            mb.add(x=x, y=np.int32(2)),
            mb.greater(x=x, y=np.int32(0)),
            mb.cast(x=mb.split(x=x, num_splits=3, axis=1)[1], dtype="bool"),
        )

    product, moved, added, positive, flag = run_program(build, x, numerics=numerics)
    for got, wanted in ((product, x[:, :2]), (moved, x[:, 1:]), (added, x + 2)):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, wanted)
    assert positive.tolist() == [[True, False, True]]
    assert flag.tolist() == [[True]]


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
