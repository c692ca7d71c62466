from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from scipy import special
from support.programs import by_name, close, handler, normal, run_module, run_program

X = np.concatenate([np.linspace(-12, 12, 97, dtype=np.float32), np.array([0, -0.0, 1e-6, -1e-6, 88, -88], np.float32)])
GELU: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "EXACT": lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2))),
    "TANH_APPROXIMATION": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "SIGMOID_APPROXIMATION": lambda x: x * special.expit(1.702 * x),
}
PLAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {"relu": lambda x: np.where(x > 0, x, 0), "tanh": np.tanh, "sigmoid": special.expit}


@pytest.mark.parametrize("name", PLAIN)
def test_activation_matches_its_formula(name: str) -> None:
    close(handler(name)(X), PLAIN[name](X.astype(np.float64)), 1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_activation_in_a_package_matches_its_formula(name: str) -> None:
    (got,) = run_program(lambda x: getattr(mb, name)(x=x), X)
    close(got, PLAIN[name](X.astype(np.float64)), 1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.1, 0.5, 1.0, 2.0])
def test_leaky_relu_scales_the_negative_side_by_alpha(alpha: float) -> None:
    wanted = np.where(X > 0, X, alpha * X.astype(np.float64))
    close(handler("leaky_relu")(X, alpha=alpha), wanted, 1e-6)
    (got,) = run_program(lambda x: mb.leaky_relu(x=x, alpha=np.float32(alpha)), X)
    close(got, wanted, 1e-6)


def test_leaky_relu_defaults_to_one_percent() -> None:
    close(handler("leaky_relu")(np.array([-100.0], np.float32)), np.array([-1.0]))


@pytest.mark.parametrize("mode", GELU)
def test_gelu_matches_the_formula_of_its_mode(mode: str) -> None:
    wanted = GELU[mode](X.astype(np.float64))
    close(handler("gelu")(X, mode=mode), wanted, 2e-6)
    (got,) = run_program(lambda x: mb.gelu(x=x, mode=mode), X)
    close(got, wanted, 2e-6)


def test_gelu_modes_differ_measurably() -> None:
    results = [handler("gelu")(X, mode=mode) for mode in GELU]
    gaps = [np.abs(results[i] - results[j]).max() for i in range(3) for j in range(i)]
    assert min(gaps) > 1e-4


def test_gelu_without_a_mode_is_exact() -> None:
    close(handler("gelu")(X), GELU["EXACT"](X.astype(np.float64)), 2e-6)


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
def test_softmax_normalises_along_its_axis(axis: int) -> None:
    x = 5 * normal(3, 4, 5)
    wanted = special.softmax(x.astype(np.float64), axis=axis)
    close(handler("softmax")(x, axis=axis), wanted, 1e-6)
    (got,) = run_program(lambda x: mb.softmax(x=x, axis=axis), x)
    close(got, wanted, 1e-6)


def test_softmax_survives_masked_and_huge_scores() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4], [3e38, 0, -3e38]], np.float32)
    close(handler("softmax")(x), special.softmax(x.astype(np.float64), axis=-1), 1e-6)


MODULES = {
    "relu": torch.nn.ReLU(),
    "leaky relu": torch.nn.LeakyReLU(0.1),
    "tanh": torch.nn.Tanh(),
    "sigmoid": torch.nn.Sigmoid(),
    "gelu": torch.nn.GELU(),
    "gelu by tanh": torch.nn.GELU(approximate="tanh"),
    "softmax of rows": torch.nn.Softmax(dim=1),
    "softmax of columns": torch.nn.Softmax(dim=-1),
}


@pytest.mark.parametrize("module", by_name(MODULES))
def test_traced_activation_matches_torch(module: torch.nn.Module) -> None:
    (got,), (wanted,), _operations = run_module(module, torch.from_numpy(3 * normal(2, 3, 7)))
    close(got, wanted, 2e-6)
