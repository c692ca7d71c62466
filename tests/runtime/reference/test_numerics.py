"""The policies, and each rule of `ane` alone and with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.numerics import POLICIES, RULES, find_numerics
from support.programs import convert_module, normal, run_program
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
