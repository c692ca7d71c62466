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
from support.programs import OPSETS, close, definitions, handler, normal, run_program

X = 3 * normal(2, 3, 4, 5) + 1
PAIRS = {"iOS15": [("f4", "f4"), ("f2", "f2")], "iOS17": [("f4", "f4"), ("f2", "f2"), ("f4", "f2"), ("f2", "f4")]}
AFFINE = list(product([False, True], repeat=2))
Array = np.ndarray


def defined(name: str) -> list[Any]:
    """Every opset that defines an operation, with the type of `x` and that of the parameters."""
    return [(opset, *pair) for opset in definitions(name) for pair in PAIRS[opset]]


def normalised(x: Array, axes: list[int], gamma: Array | None, beta: Array | None, epsilon: float) -> Array:
    """`gamma` and `beta` in the shape that broadcasts, or that of the last axes."""
    values, over = x.astype(np.float64), tuple(axis % x.ndim for axis in axes)
    centred = values - values.mean(over, keepdims=True)
    result = centred / np.sqrt((centred**2).mean(over, keepdims=True) + epsilon)
    return result * (1 if gamma is None else gamma) + (0 if beta is None else beta)


def broadcast(value: Array | None, axes: list[int], x: Array) -> Array | None:
    kept = {axis % x.ndim for axis in axes}
    return None if value is None else value.astype(np.float64).reshape([x.shape[axis] if axis in kept else 1 for axis in range(x.ndim)])


def parameters(shape: list[int] | tuple[int, ...], affine: tuple[bool, bool], dtype: Any = np.float32) -> dict[str, Array]:
    found = {"gamma": 1 + normal(*shape, seed=1), "beta": normal(*shape, seed=2)}
    return {name: np.asarray(value).astype(dtype) for (name, value), wanted in zip(found.items(), affine, strict=True) if wanted}


def agree(got: Array, wanted: Array, data: str) -> None:
    assert got.dtype == np.dtype(data)
    close(got, wanted.astype(data), 1e-5 if data == "f4" else 2e-3)


def applied(name: str, **chosen: Any) -> Callable[..., Any]:
    return lambda x: getattr(mb, name)(x=x, **chosen)


def folded(build: Callable[[], Any], opset: str = "iOS17") -> Array:
    """What coremltools itself computes for an operation on constants."""
    with Function({}, opset_version=OPSETS[opset]):
        return build().val


SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5)
CHANNELS = st.lists(st.integers(1, 5), min_size=3, max_size=5)
EPSILONS = st.sampled_from([1e-12, 1e-5, 1e-3, 0.5])
DOUBLE = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)], ids=["float32", "float64"])


@DOUBLE
@pytest.mark.parametrize("affine", AFFINE, ids=str)
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, epsilon=st.sampled_from([1e-5, 1e-3, 0.5]), data=st.data())
def test_layer_norm_over_any_axes_matches_its_formula(
    affine: tuple[bool, bool], dtype: Any, tolerance: float, shape: list[int], epsilon: float, data: Any
) -> None:
    rank = len(shape)
    chosen = data.draw(st.lists(st.integers(0, rank - 1), min_size=1, unique=True))
    axes = [axis - rank if data.draw(st.booleans()) else axis for axis in chosen]
    x = (3 * normal(*shape) + 1).astype(dtype)
    given_ = parameters([shape[axis] for axis in sorted(chosen)], affine, dtype)
    got = handler("layer_norm")(x, axes=axes, epsilon=epsilon, **given_)
    assert got.dtype == dtype
    gamma, beta = (broadcast(given_.get(name), axes, x) for name in ("gamma", "beta"))
    spread = np.sqrt(x.astype(np.float64).var(axis=tuple(axes)).min() + epsilon)
    rounding = 4 * np.finfo(dtype).eps * np.abs(x).max() / spread  # of x - mean, where a group's values are nearly equal
    close(got, normalised(x, axes, gamma, beta, epsilon), max(tolerance, rounding))


AXES = [[3], [-1], [2, 3], [-1, -2], [0, 1, 2, 3], [1], [0], [1, 3], [3, 0], [-3]]


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize(("opset", "data", "kind"), defined("layer_norm"))
def test_layer_norm_in_a_package_matches_its_formula(opset: str, data: str, kind: str, axes: list[int]) -> None:
    """Since iOS17 the parameters may be of another type than the data."""
    x, epsilon = X.astype(data), np.dtype(kind).type(0.1)
    given_ = parameters([X.shape[axis] for axis in sorted(axis % 4 for axis in axes)], (True, True), kind)
    (got,) = run_program(lambda x: mb.layer_norm(x=x, axes=axes, epsilon=epsilon, **given_), x, opset=opset)
    wanted = normalised(x, axes, broadcast(given_["gamma"], axes, x), broadcast(given_["beta"], axes, x), float(epsilon))
    agree(got, wanted, data)
    if data == kind == "f4":
        close(got, folded(lambda: mb.layer_norm(x=x, axes=axes, epsilon=epsilon, **given_), opset))


@pytest.mark.parametrize("affine", [(False, False), (True, False), (True, True)], ids=str)
def test_layer_norm_in_a_package_with_or_without_parameters(affine: tuple[bool, bool]) -> None:
    """coremltools cannot build one with a `beta` but no `gamma`."""
    given_ = parameters([4, 5], affine)
    (got,) = run_program(lambda x: mb.layer_norm(x=x, axes=[2, 3], **given_), X)
    close(got, normalised(X, [2, 3], given_.get("gamma"), given_.get("beta"), 1e-5))


def test_layer_norm_defaults_to_all_axes_and_an_epsilon_of_1e_5() -> None:
    x = 1e-3 * normal(3, 4)
    wanted = normalised(x, [0, 1], None, None, 1e-5)
    assert not np.allclose(wanted, normalised(x, [1], None, None, 1e-5))
    close(handler("layer_norm")(x), wanted)


def test_layer_norm_of_a_constant_is_its_beta() -> None:
    beta = normal(4, seed=2)
    got = handler("layer_norm")(np.full((2, 4), 7, np.float32), axes=[-1], gamma=normal(4), beta=beta)
    close(got, np.stack([beta, beta]))


def test_layer_norm_over_no_axes_leaves_only_beta() -> None:
    """Each value is then its own mean, as coremltools computes it too."""
    gamma, beta = np.array(2, np.float32), np.array(0.5, np.float32)
    close(handler("layer_norm")(X, axes=[], gamma=gamma, beta=beta), np.full_like(X, 0.5))
    close(handler("layer_norm")(np.array(3, np.float32)), np.array(0))


@pytest.mark.parametrize("axes", [[4], [-5], [1, 1], [1, -3]], ids=str)
def test_layer_norm_over_axes_that_are_not_there_is_refused(axes: list[int]) -> None:
    with pytest.raises(PackageError, match="layer_norm over the axes"):
        handler("layer_norm")(X, axes=axes)


@DOUBLE
@pytest.mark.parametrize("affine", AFFINE, ids=str)
@settings(max_examples=25, deadline=None)
@given(shape=CHANNELS, epsilon=EPSILONS)
def test_batch_norm_matches_its_formula(affine: tuple[bool, bool], dtype: Any, tolerance: float, shape: list[int], epsilon: float) -> None:
    x, given_ = normal(*shape).astype(dtype), parameters([shape[1]], affine, dtype)
    mean, variance = normal(shape[1], seed=3).astype(dtype), (0.1 + normal(shape[1], seed=4) ** 2).astype(dtype)
    got = handler("batch_norm")(x, mean=mean, variance=variance, epsilon=epsilon, **given_)
    assert got.dtype == dtype
    close(got, scaled(x, mean, variance, given_, epsilon), tolerance)


def scaled(x: Array, mean: Array, variance: Array, given_: dict[str, Array], epsilon: float) -> Array:
    mean, variance = (value.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2)) for value in (mean, variance))
    gamma, beta = (broadcast(given_.get(name), [1], x) for name in ("gamma", "beta"))
    return (x.astype(np.float64) - mean) / np.sqrt(variance + epsilon) * (1 if gamma is None else gamma) + (0 if beta is None else beta)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize(("opset", "data", "kind"), defined("batch_norm"))
def test_batch_norm_in_a_package_matches_its_formula(opset: str, data: str, kind: str, shape: tuple[int, ...]) -> None:
    x = normal(*shape).astype(data)
    mean, variance = (np.array(values, kind) for values in ([0.3, -1.1, 2.0], [0.1, 1.5, 7.0]))
    for affine in AFFINE:
        given_ = parameters([3], affine, kind)
        (got,) = run_program(applied("batch_norm", mean=mean, variance=variance, **given_), x, opset=opset)
        agree(got, scaled(x, mean, variance, given_, 1e-5), data)
    epsilon = np.dtype(kind).type(0.3)
    (got,) = run_program(lambda x: mb.batch_norm(x=x, mean=mean, variance=variance, epsilon=epsilon), x, opset=opset)
    agree(got, scaled(x, mean, variance, {}, float(epsilon)), data)


def test_batch_norm_around_a_large_mean_does_not_cancel() -> None:
    x = 1e4 + normal(2, 3, 50)
    mean, variance = np.full(3, 1e4, np.float32), np.full(3, 1e-2, np.float32)
    close(handler("batch_norm")(x, mean=mean, variance=variance), scaled(x, mean, variance, {}, 1e-5), 1e-6)


@DOUBLE
@pytest.mark.parametrize("affine", AFFINE, ids=str)
@settings(max_examples=25, deadline=None)
@given(shape=CHANNELS, epsilon=st.sampled_from([1e-5, 1e-3, 0.5]))
def test_instance_norm_matches_its_formula(
    affine: tuple[bool, bool], dtype: Any, tolerance: float, shape: list[int], epsilon: float
) -> None:
    x, given_ = (3 * normal(*shape) + 1).astype(dtype), parameters([shape[1]], affine, dtype)
    got = handler("instance_norm")(x, epsilon=epsilon, **given_)
    assert got.dtype == dtype
    gamma, beta = (broadcast(given_.get(name), [1], x) for name in ("gamma", "beta"))
    close(got, normalised(x, list(range(2, x.ndim)), gamma, beta, epsilon), tolerance)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 3)], ids=str)
@pytest.mark.parametrize(("opset", "data", "kind"), defined("instance_norm"))
def test_instance_norm_in_a_package_matches_its_formula(opset: str, data: str, kind: str, shape: tuple[int, ...]) -> None:
    x, axes = normal(*shape).astype(data), list(range(2, len(shape)))
    for affine in AFFINE:
        given_ = parameters([3], affine, kind)
        (got,) = run_program(applied("instance_norm", **given_), x, opset=opset)
        gamma, beta = (broadcast(given_.get(name), [1], x) for name in ("gamma", "beta"))
        agree(got, normalised(x, axes, gamma, beta, 1e-5), data)
    epsilon = np.dtype(kind).type(0.3)
    (got,) = run_program(lambda x: mb.instance_norm(x=x, epsilon=epsilon), x, opset=opset)
    agree(got, normalised(x, axes, None, None, float(epsilon)), data)


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_parameters_of_other_channels_are_refused(name: str) -> None:
    three = np.ones(3, np.float32)
    for channels in (1, 2):
        with pytest.raises(PackageError, match=f"{name} of shape"):
            handler("instance_norm")(normal(2, channels, 4), **{name: three})
        with pytest.raises(PackageError, match="of shape"):
            handler("batch_norm")(normal(2, channels, 4), mean=three, variance=three)


@pytest.mark.parametrize("name", ["instance_norm", "l2_norm"])
def test_norm_of_too_few_axes_is_refused(name: str) -> None:
    with pytest.raises(PackageError, match="2 axes"):
        handler(name)(normal(2, 3))


def unit(x: Array, epsilon: float) -> Array:
    values = x.astype(np.float64)
    lengths = (values.reshape(*x.shape[:-3], -1) ** 2).sum(-1) + epsilon
    return values / np.sqrt(lengths)[..., None, None, None]


@DOUBLE
@settings(max_examples=25, deadline=None)
@given(shape=CHANNELS, epsilon=EPSILONS)
def test_l2_norm_divides_by_the_length_over_the_last_three_axes(dtype: Any, tolerance: float, shape: list[int], epsilon: float) -> None:
    x = normal(*shape).astype(dtype)
    close(handler("l2_norm")(x, epsilon=epsilon), unit(x, epsilon), tolerance)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 2, 3)], ids=str)
@pytest.mark.parametrize(("opset", "data", "kind"), defined("l2_norm"))
def test_l2_norm_in_a_package_matches_its_formula(opset: str, data: str, kind: str, shape: tuple[int, ...]) -> None:
    x, epsilon = normal(*shape).astype(data), np.dtype(kind).type(0.1)
    (got,) = run_program(lambda x: mb.l2_norm(x=x, epsilon=epsilon), x, opset=opset)
    agree(got, unit(x, float(epsilon)), data)
    if data == kind == "f4":
        close(got, folded(lambda: mb.l2_norm(x=x, epsilon=epsilon), opset))


def test_l2_norm_defaults_to_an_epsilon_of_1e_6() -> None:
    x = 1e-4 * normal(2, 3, 4)
    assert not np.allclose(unit(x, 1e-6), unit(x, 1e-5))
    close(handler("l2_norm")(x), unit(x, 1e-6))
    (got,) = run_program(lambda x: mb.l2_norm(x=x), x)
    close(got, unit(x, 1e-6))


def responded(x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    values = np.moveaxis(x.astype(np.float64), -3, 0)
    result = np.empty_like(values)
    for channel in range(len(values)):
        near = values[max(0, channel - size // 2) : channel + (size - 1) // 2 + 1]
        result[channel] = values[channel] / (k + alpha / size * (near**2).sum(0)) ** beta
    return np.moveaxis(result, 0, -3)


@DOUBLE
@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=3, max_size=5),
    size=st.integers(1, 9),
    alpha=st.floats(0, 2, width=32),
    beta=st.floats(0, 2, width=32),
    k=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_local_response_norm_matches_its_formula(
    dtype: Any, tolerance: float, shape: list[int], size: int, alpha: float, beta: float, k: float
) -> None:
    x = (3 * normal(*shape)).astype(dtype)
    got = handler("local_response_norm")(x, size=size, alpha=alpha, beta=beta, k=k)
    assert got.dtype == dtype
    close(got, responded(x, size, alpha, beta, k), tolerance)


@pytest.mark.parametrize("shape", [(5, 4, 2), (2, 5, 3, 2)], ids=str)
@pytest.mark.parametrize(("opset", "data", "kind"), defined("local_response_norm"))
def test_local_response_norm_in_a_package_matches_its_formula(opset: str, data: str, kind: str, shape: tuple[int, ...]) -> None:
    x = (3 * normal(*shape)).astype(data)
    for size in (2, 3):
        (got,) = run_program(applied("local_response_norm", size=size), x, opset=opset)
        agree(got, responded(x, size), data)
    values = {name: np.dtype(kind).type(value) for name, value in {"alpha": 0.3, "beta": 0.6, "k": 1.7}.items()}
    (got,) = run_program(lambda x: mb.local_response_norm(x=x, size=4, **values), x, opset=opset)
    agree(got, responded(x, 4, **{name: float(value) for name, value in values.items()}), data)


def test_local_response_norm_of_three_axes_gives_the_values_that_core_ml_gives() -> None:
    """From coremltools' test against Core ML: no value has a neighbour, since they lie along the first axis."""
    x = np.array([[[1, -7], [5, -6], [-3, -5]]], np.float32)
    for size, wanted in {
        2: [[0.99996257, -6.98716545], [4.99531746, -5.99191284], [-2.99898791, -4.99531746]],
        3: [[0.99997497, -6.99143696], [4.99687672, -5.99460602], [-2.99932504, -4.99687672]],
    }.items():
        close(handler("local_response_norm")(x, size=size), np.array([wanted]), 1e-6)


def test_local_response_norm_of_four_axes_is_that_of_torch() -> None:
    x = 3 * normal(2, 6, 3, 4)
    for size in (1, 2, 3, 4, 5, 15):
        wanted = torch.nn.LocalResponseNorm(size, alpha=0.5, beta=0.6, k=2.0)(torch.from_numpy(x))
        close(handler("local_response_norm")(x, size=size, alpha=0.5, beta=0.6, k=2.0), wanted.numpy(), 2e-6)


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 4), 0), ((2, 3, 4), -3), ((5, 4), 1)])
def test_local_response_norm_without_a_window_is_refused(shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(PackageError, match="local_response_norm over"):
        handler("local_response_norm")(normal(*shape), size=size)


def test_local_response_norm_over_a_huge_window_takes_no_memory_for_it() -> None:
    x = normal(3, 2, 1)
    close(handler("local_response_norm")(x, size=2**31 - 1, alpha=1e9), responded(x, 2**31 - 1, alpha=1e9))


def test_norms_of_a_package_in_double_precision_keep_it() -> None:
    """Outputs are of their declared type, so the precision shows in what is left after a float32 approximation."""
    x, half = 10 + normal(2, 3, 4, 5), np.float32(0.5)
    three = np.array([0.25, 1.5, 3], np.float32)
    calls = {
        "layer_norm": {"axes": [1], "epsilon": half},
        "instance_norm": {"epsilon": half},
        "l2_norm": {"epsilon": half},
        "local_response_norm": {"size": 3, "alpha": half},
        "batch_norm": {"mean": three, "variance": three, "epsilon": half},
    }
    wanted = [normalised(x, [1], None, None, 0.5), normalised(x, [2, 3], None, None, 0.5), unit(x, 0.5), responded(x, 3, 0.5)]
    wanted.append(scaled(x, three, three, {}, 0.5))
    rough = [value.astype(np.float32) for value in wanted]

    def build(x: Any) -> list[Any]:
        results = [applied(name, **chosen)(x) for name, chosen in calls.items()]
        return [mb.sub(x=result, y=base) for result, base in zip(results, rough, strict=True)]

    for left, base, value in zip(run_program(build, x, numerics="float64"), rough, wanted, strict=True):
        close(left.astype(np.float64) + base, value, 1e-12)
