from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError
from support.programs import close, handler, normal, run_module, run_program

X = 3 * normal(2, 3, 4, 5) + 1
AXES = [[3], [-1], [2, 3], [-1, -2], [3, 2], [1, 2, 3], [0, 1, 2, 3]]


def normalised(x: np.ndarray, axes: list[int], gamma: np.ndarray | None, beta: np.ndarray | None, epsilon: float) -> np.ndarray:
    values, over = x.astype(np.float64), tuple(axis % x.ndim for axis in axes)
    centred = values - values.mean(over, keepdims=True)
    result = centred / np.sqrt((centred**2).mean(over, keepdims=True) + epsilon)
    return result * (1 if gamma is None else gamma) + (0 if beta is None else beta)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12, 0.5])
@pytest.mark.parametrize("with_beta", [False, True])
@pytest.mark.parametrize("with_gamma", [False, True])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_layer_norm_matches_its_formula(axes: list[int], with_gamma: bool, with_beta: bool, epsilon: float) -> None:
    shape = [X.shape[axis] for axis in sorted(axis % 4 for axis in axes)]
    gamma = normal(*shape, seed=1) if with_gamma else None
    beta = normal(*shape, seed=2) if with_beta else None
    got = handler("layer_norm")(X, axes=axes, gamma=gamma, beta=beta, epsilon=epsilon)
    close(got, normalised(X, axes, gamma, beta, epsilon))


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
@pytest.mark.parametrize("axes", [[-1], [2, 3]], ids=str)
def test_layer_norm_in_a_package_matches_its_formula(axes: list[int], epsilon: float) -> None:
    shape = [X.shape[axis] for axis in axes]
    gamma, beta = normal(*shape, seed=1), normal(*shape, seed=2)
    (got,) = run_program(lambda x: mb.layer_norm(x=x, axes=axes, gamma=gamma, beta=beta, epsilon=np.float32(epsilon)), X)
    close(got, normalised(X, axes, gamma, beta, epsilon))


def test_layer_norm_defaults_to_all_axes_and_an_epsilon_of_1e_5() -> None:
    x = 1e-3 * normal(3, 4)
    wanted = normalised(x, [0, 1], None, None, 1e-5)
    assert not np.allclose(wanted, normalised(x, [1], None, None, 1e-5))
    close(handler("layer_norm")(x), wanted)


def test_layer_norm_of_a_constant_is_its_beta() -> None:
    beta = normal(4, seed=2)
    got = handler("layer_norm")(np.full((2, 4), 7, np.float32), axes=[-1], gamma=normal(4), beta=beta)
    close(got, np.stack([beta, beta]))


@pytest.mark.parametrize("axes", [[1], [0], [1, 3], [0, 1]], ids=str)
def test_layer_norm_over_other_than_the_last_axes_is_refused(axes: list[int]) -> None:
    with pytest.raises(PackageError, match="layer_norm over the axes"):
        handler("layer_norm")(X, axes=axes)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(5,), (4, 5)], ids=str)
def test_traced_layer_norm_matches_torch(shape: tuple[int, ...], affine: bool) -> None:
    module = torch.nn.LayerNorm(shape, eps=1e-3, elementwise_affine=affine)
    if affine:
        module.weight.data, module.bias.data = torch.from_numpy(normal(*shape, seed=1)), torch.from_numpy(normal(*shape, seed=2))
    (got,), (wanted,), operations = run_module(module, torch.from_numpy(X))
    close(got, wanted)
    assert "layer_norm" in operations
