from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil import Function
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.registry import find_handler
from scipy import special
from support.programs import OPSETS, close, definitions, handler, normal, run_module, run_program

Formula = Callable[..., np.ndarray]
SPECIAL = [0, -0.0, 1e-6, -1e-6, 1, -1, 6, 20, -20, 40, -40, 88, -88, 200, -200]
X = np.concatenate([np.linspace(-12, 12, 97, dtype=np.float32), np.array(SPECIAL, np.float32)])
GELU: dict[str, Formula] = {
    "EXACT": lambda x: 0.5 * x * special.erfc(-x / np.sqrt(2)),
    "TANH_APPROXIMATION": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "SIGMOID_APPROXIMATION": lambda x: x * special.expit(1.702 * x),
}
PLAIN: dict[str, Formula] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
}
WITH_ALPHA: dict[str, Formula] = {
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "thresholded_relu": lambda x, alpha: np.where(x >= alpha, x, 0),
}
WITH_BOTH: dict[str, Formula] = {
    "clamped_relu": lambda x, alpha, beta: np.where(x >= 0, np.minimum(beta, x), np.minimum(beta, alpha * x)),
    "linear_activation": lambda x, alpha, beta: x * alpha + beta,
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "sigmoid_hard": lambda x, alpha, beta: np.minimum(np.maximum(alpha * x + beta, 0), 1),
}
BY_CHANNEL: dict[str, Formula] = {
    "prelu": lambda x, alpha: np.where(x > 0, x, alpha * x),
    "softplus_parametric": lambda x, alpha, beta: alpha * np.logaddexp(0, beta * x),
}
SETTINGS = dict.fromkeys(WITH_ALPHA, ("alpha",)) | dict.fromkeys(WITH_BOTH, ("alpha", "beta"))
FORMULAS = PLAIN | WITH_ALPHA | WITH_BOTH
PAIRS = {"iOS15": [("f4", "f4"), ("f2", "f2")], "iOS17": [("f4", "f4"), ("f2", "f2"), ("f4", "f2"), ("f2", "f4")]}
SHAPES = st.lists(st.integers(1, 5), max_size=5)
NUMBERS = st.floats(-4, 4, width=32)


def defined(names: Any) -> list[Any]:
    """Every (operation, opset) that defines it, with the type of `x` and that of the parameters."""
    return [(name, opset, *pair) for name in names for opset in definitions(name) for pair in PAIRS[opset]]


def folded(build: Callable[[], Any], opset: str = "iOS17") -> np.ndarray:
    """What coremltools itself computes for an operation on constants."""
    with Function({}, opset_version=OPSETS[opset]):
        return build().val


def broadcast(value: np.ndarray, rank: int) -> np.ndarray:
    return value.astype(np.float64).reshape(-1, *[1] * (rank - 2))


@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, alpha=NUMBERS, beta=NUMBERS)
def test_activation_matches_its_formula(name: str, shape: list[int], alpha: float, beta: float) -> None:
    x = np.asarray(3 * normal(*shape))
    chosen = {key: value for key, value in {"alpha": alpha, "beta": beta}.items() if key in SETTINGS.get(name, ())}
    close(handler(name)(x, **chosen), FORMULAS[name](x.astype(np.float64), **chosen), 2e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.1, 2.0), (-1.5, 0.5), (1.0, -1.0), (2.0, 6.0)])
@pytest.mark.parametrize("name", FORMULAS)
def test_activation_matches_its_formula_at_zero_and_in_the_tails(name: str, alpha: float, beta: float) -> None:
    chosen = {key: value for key, value in {"alpha": alpha, "beta": beta}.items() if key in SETTINGS.get(name, ())}
    close(handler(name)(X, **chosen), FORMULAS[name](X.astype(np.float64), **chosen), 2e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_in_double_precision_keeps_it(name: str) -> None:
    x = np.random.default_rng(1).standard_normal(200) * 10
    chosen = {key: value for key, value in {"alpha": 0.1, "beta": 0.7}.items() if key in SETTINGS.get(name, ())}
    got = handler(name)(x, **chosen)
    assert got.dtype == np.float64
    close(got, FORMULAS[name](x, **chosen), 1e-14)


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_does_not_hide_what_is_not_a_number(name: str) -> None:
    chosen = {key: value for key, value in {"alpha": 0.5, "beta": 0.5}.items() if key in SETTINGS.get(name, ())}
    assert np.isnan(handler(name)(np.array([np.nan], np.float32), **chosen)).all()


@pytest.mark.parametrize(("name", "opset", "data", "parameters"), defined(FORMULAS))
def test_activation_in_a_package_matches_its_formula(name: str, opset: str, data: str, parameters: str) -> None:
    """Since iOS17 parameters may be of another type than the data; 0.1 shows which it was rounded to."""
    x = (3 * normal(4, 25)).astype(data)
    values = {"alpha": np.dtype(parameters).type(0.1), "beta": np.dtype(parameters).type(0.7)}
    chosen = {key: values[key] for key in SETTINGS.get(name, ())}
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, **chosen), x, opset=opset)
    wanted = FORMULAS[name](x.astype(np.float64), **{key: float(value) for key, value in chosen.items()})
    assert got.dtype == x.dtype
    close(got, wanted.astype(data), 2e-6 if data == "f4" else 1e-3)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "silu"])
def test_activation_matches_what_coremltools_computes(name: str) -> None:
    chosen = {key: np.float32(0.25) for key in SETTINGS.get(name, ())}
    x = 3 * normal(50)
    close(handler(name)(x, **chosen), folded(lambda: getattr(mb, name)(x=x.copy(), **chosen)), 2e-6)


@pytest.mark.parametrize("name", [*SETTINGS, *BY_CHANNEL])
def test_parameters_of_activations_have_no_defaults(name: str) -> None:
    found = find_handler(name, "iOS17")
    assert found is not None
    assert found.required == set(found.forms)


def test_activation_of_a_tensor_without_axes_keeps_its_shape() -> None:
    for name, formula in PLAIN.items():
        close(handler(name)(np.array(-0.7, np.float32)), formula(np.float64(-0.7)), 1e-6)


def test_thresholded_relu_keeps_what_equals_the_threshold() -> None:
    close(handler("thresholded_relu")(np.array([1.9, 2, 2.1], np.float32), alpha=2.0), np.array([0, 2, 2.1], np.float32), 0)


def test_clamped_relu_with_a_negative_limit_is_at_most_that() -> None:
    close(handler("clamped_relu")(np.array([-3, 3], np.float32), alpha=0.5, beta=-1.0), np.array([-1.5, -1]), 0)


@pytest.mark.parametrize("name", BY_CHANNEL)
@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=3, max_size=5), double=st.booleans())
def test_activation_by_channel_matches_its_formula(name: str, shape: list[int], double: bool) -> None:
    dtype = np.float64 if double else np.float32
    x = (3 * normal(*shape)).astype(dtype)
    chosen = {"alpha": normal(shape[1], seed=1).astype(dtype), "beta": normal(shape[1], seed=2).astype(dtype)}
    if name == "prelu":
        del chosen["beta"]
    wanted = BY_CHANNEL[name](x.astype(np.float64), **{key: broadcast(value, x.ndim) for key, value in chosen.items()})
    got = handler(name)(x, **chosen)
    assert got.dtype == dtype
    close(got, wanted, 1e-13 if double else 2e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (1, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize(("name", "opset", "data", "parameters"), defined(BY_CHANNEL))
def test_activation_by_channel_in_a_package(name: str, opset: str, data: str, parameters: str, shape: tuple[int, ...]) -> None:
    """prelu takes different values only with two spatial axes."""
    x = (3 * normal(*shape)).astype(data)
    alpha, beta = (np.array(values, parameters) for values in ([0.1, 0.3, -0.2], [0.7, 1.3, -1.1]))
    if name == "prelu" and len(shape) != 4:
        alpha[:] = alpha[0]
    chosen = {"alpha": alpha} if name == "prelu" else {"alpha": alpha, "beta": beta}
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, **chosen), x, opset=opset)
    wanted = BY_CHANNEL[name](x.astype(np.float64), **{key: broadcast(value, x.ndim) for key, value in chosen.items()})
    assert got.dtype == x.dtype
    close(got, wanted.astype(data), 2e-6 if data == "f4" else 1e-3)
    if data == parameters == "f4":
        close(got, folded(lambda: getattr(mb, name)(x=x, **chosen), opset), 2e-6)


@pytest.mark.parametrize("name", BY_CHANNEL)
@pytest.mark.parametrize("shape", [(3,), (2, 4, 3), (2, 1, 3)], ids=str)
def test_activation_by_channel_with_other_channels_is_refused(name: str, shape: tuple[int, ...]) -> None:
    three = np.ones(3, np.float32)
    with pytest.raises(PackageError, match="does not fit the channels"):
        handler(name)(normal(*shape), **dict.fromkeys(("alpha", "beta")[: 1 + (name != "prelu")], three))


@pytest.mark.parametrize("mode", GELU)
def test_gelu_matches_the_formula_of_its_mode(mode: str) -> None:
    wanted = GELU[mode](X.astype(np.float64))
    close(handler("gelu")(X, mode=mode), wanted, 2e-6)
    close(handler("gelu")(X.astype(np.float64), mode=mode), wanted, 1e-13)
    for opset, data in product(definitions("gelu"), ("f4", "f2")):
        x = X.astype(data)
        (got,) = run_program(lambda x: mb.gelu(x=x, mode=mode), x, opset=opset)
        close(got, GELU[mode](x.astype(np.float64)).astype(data), 2e-6 if data == "f4" else 1e-3)


def test_gelu_modes_differ_measurably() -> None:
    results = [handler("gelu")(X, mode=mode) for mode in GELU]
    gaps = [np.abs(results[i] - results[j]).max() for i in range(3) for j in range(i)]
    assert min(gaps) > 1e-4


def test_gelu_without_a_mode_is_exact() -> None:
    close(handler("gelu")(X), GELU["EXACT"](X.astype(np.float64)), 2e-6)
    (got,) = run_program(lambda x: mb.gelu(x=x), X)
    close(got, GELU["EXACT"](X.astype(np.float64)), 2e-6)


def test_gelu_of_an_unknown_mode_is_refused() -> None:
    with pytest.raises(PackageError, match="no mode 'exact'"):
        handler("gelu")(X, mode="exact")


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=5), where=st.floats(0, 0.999), negative=st.booleans())
def test_softmax_normalises_along_its_axis(shape: list[int], where: float, negative: bool) -> None:
    axis = int(where * len(shape)) - (len(shape) if negative else 0)
    x = 5 * normal(*shape)
    close(handler("softmax")(x, axis=axis), special.softmax(x.astype(np.float64), axis=axis), 1e-6)
    close(handler("softmax")(x.astype(np.float64), axis=axis), special.softmax(x.astype(np.float64), axis=axis), 1e-14)


@pytest.mark.parametrize("data", ["f4", "f2"])
@pytest.mark.parametrize("axis", [-3, -1, 1, None])
@pytest.mark.parametrize("opset", definitions("softmax"))
def test_softmax_in_a_package_normalises_along_its_axis(opset: str, axis: int | None, data: str) -> None:
    x = (5 * normal(3, 4, 5)).astype(data)
    (got,) = run_program(lambda x: mb.softmax(x=x) if axis is None else mb.softmax(x=x, axis=axis), x, opset=opset)
    wanted = special.softmax(x.astype(np.float64), axis=-1 if axis is None else axis)
    assert got.dtype == x.dtype
    close(got, wanted.astype(data), 1e-6 if data == "f4" else 1e-3)


def test_softmax_survives_masked_and_huge_scores() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4], [3e38, 0, -3e38], [-np.inf, 1, 1]], np.float32)
    close(handler("softmax")(x), special.softmax(x.astype(np.float64), axis=-1), 1e-6)


def test_activations_of_a_package_in_double_precision_keep_it() -> None:
    """Outputs are of their declared type, so the precision shows in what is left after a float32 approximation."""
    x = 3 * normal(2, 3, 4, 5)
    wanted = {name: PLAIN[name](x.astype(np.float64)) for name in PLAIN}
    rough = {name: value.astype(np.float32) for name, value in wanted.items()}
    left = run_program(lambda x: [mb.sub(x=getattr(mb, name)(x=x), y=rough[name]) for name in PLAIN], x, numerics="float64")
    for name, value in zip(PLAIN, left, strict=True):
        close(value.astype(np.float64) + rough[name], wanted[name], 1e-13)


SLOPES = torch.nn.PReLU(3)
SLOPES.weight.data = torch.tensor([0.1, -0.3, 0.7])
MODULES = {
    "relu": ("relu", torch.nn.ReLU()),
    "leaky relu": ("leaky_relu", torch.nn.LeakyReLU(0.1)),
    "prelu of one slope": ("leaky_relu", torch.nn.PReLU(init=0.3)),
    "prelu of a slope a channel": ("prelu", SLOPES),
    "elu": ("elu", torch.nn.ELU(0.7)),
    "selu": ("elu", torch.nn.SELU()),
    "tanh": ("tanh", torch.nn.Tanh()),
    "sigmoid": ("sigmoid", torch.nn.Sigmoid()),
    "hard sigmoid": ("sigmoid_hard", torch.nn.Hardsigmoid()),
    "hard swish": ("thresholded_relu", torch.nn.Hardswish()),
    "silu": ("silu", torch.nn.SiLU()),
    "gelu": ("gelu", torch.nn.GELU()),
    "gelu by tanh": ("gelu", torch.nn.GELU(approximate="tanh")),
    "softplus": ("softplus", torch.nn.Softplus()),
    "softplus of a scale": ("softplus_parametric", torch.nn.Softplus(beta=0.5)),
    "softmax of rows": ("softmax", torch.nn.Softmax(dim=1)),
    "softmax of columns": ("softmax", torch.nn.Softmax(dim=-1)),
}


@pytest.mark.parametrize(("operation", "module"), [pytest.param(*found, id=name) for name, found in MODULES.items()])
def test_traced_activation_matches_torch(operation: str, module: torch.nn.Module) -> None:
    (got,), (wanted,), operations = run_module(module, torch.from_numpy(3 * normal(2, 3, 4, 5)))
    assert operation in operations
    close(got, wanted, 2e-6)
