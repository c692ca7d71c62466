from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil import get_new_symbol
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.program import TensorType
from scipy import special, stats
from support.programs import (
    OPSETS,
    build_program,
    by_name,
    definitions,
    handler,
    normal,
    note_executed,
    run_module,
    run_program,
    write_program,
)

COUNT = 20_000
PLAUSIBLE = 1e-3  # seeds are fixed, so a test passes always or never
INPUT = np.zeros(1, np.float32)
SHAPES = st.lists(st.integers(1, 5), max_size=4)
SHAPED = ["random_bernoulli", "random_normal", "random_uniform"]


def draw(operation: str, **arguments: Any) -> np.ndarray:
    """What a handler draws, from a generator with seed 0 unless another is given."""
    if operation == "random_uniform":
        arguments["declared"] = (TensorType("fp32", ()),)
    arguments.setdefault("generator", torch.Generator().manual_seed(0))
    return handler(operation)(**arguments)


def load(folder: Path, build: Callable[..., Any], inputs: list[np.ndarray], **options: Any) -> ReferenceModel:
    path = folder / "model.mlpackage"
    if not path.exists():
        write_program(build_program(build, inputs, "iOS15"), path, "iOS15")
    return ReferenceModel(path, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("mean", "stddev"), [(0.0, 1.0), (-3.0, 0.25), (100.0, 10.0), (0.5, 2.0)])
def test_random_normal_is_normal(mean: float, stddev: float, dtype: type) -> None:
    got = draw("random_normal", shape=[COUNT], mean=mean, stddev=stddev)
    assert stats.kstest(got, "norm", (mean, stddev)).pvalue > PLAUSIBLE
    (got,) = run_program(lambda x: mb.random_normal(shape=[COUNT], mean=dtype(mean), stddev=dtype(stddev)), INPUT, opset="iOS15")
    assert got.dtype == dtype
    # half precision has few numbers, which the test on a continuous distribution would see
    spacing = np.spacing(np.abs(got)).astype(np.float64)
    smooth = got + spacing * (np.random.default_rng(0).random(COUNT) - 0.5)
    assert stats.kstest(smooth, "norm", (mean, stddev)).pvalue > PLAUSIBLE


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, 5.0), (100.0, 101.0), (-1e-3, 0.0)])
def test_random_uniform_is_uniform(low: float, high: float) -> None:
    got = draw("random_uniform", shape=[COUNT], low=low, high=high)
    assert low <= got.min()
    assert got.max() < high
    assert stats.kstest(got, "uniform", (low, high - low)).pvalue > PLAUSIBLE
    low, high = np.float32(low), np.float32(high)
    (got,) = run_program(lambda x: mb.random_uniform(shape=[COUNT], low=low, high=high), INPUT, opset="iOS15")
    assert stats.kstest(got, "uniform", (low, high - low)).pvalue > PLAUSIBLE


@pytest.mark.parametrize("numerics", ["declared", "float32", "float64"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 3.0), (-3.0, -2.0)])
def test_random_uniform_never_reaches_its_upper_bound_in_half_precision(low: float, high: float, numerics: str) -> None:
    """Rounding alone would: one in some thousand numbers below 1 is nearer to 1 than to any other half."""
    low, high = np.float16(low), np.float16(high)
    (got,) = run_program(lambda x: mb.random_uniform(shape=[10 * COUNT], low=low, high=high), INPUT, opset="iOS15", numerics=numerics)
    assert got.dtype == np.float16
    assert got.min() >= low
    assert got.max() == np.nextafter(high, low)


def test_random_uniform_gives_low_where_there_is_nothing_between() -> None:
    np.testing.assert_array_equal(draw("random_uniform", shape=[9], low=2.5, high=2.5), np.full(9, 2.5))


@pytest.mark.parametrize("prob", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
def test_random_bernoulli_gives_ones_with_its_probability(dtype: type, prob: float) -> None:
    (packaged,) = run_program(lambda x: mb.random_bernoulli(shape=[COUNT], prob=dtype(prob)), INPUT, opset="iOS15")
    assert packaged.dtype == dtype
    for got in (draw("random_bernoulli", shape=[COUNT], prob=prob), packaged):
        assert set(np.unique(got)) <= {0.0, 1.0}
        assert stats.binomtest(int(got.astype(np.float64).sum()), COUNT, float(dtype(prob))).pvalue > PLAUSIBLE


@pytest.mark.parametrize("mode", ["logits", "probs"])
@pytest.mark.parametrize("classes", [2, 5, 20])
def test_random_categorical_draws_each_row_from_its_own_distribution(classes: int, mode: str) -> None:
    """Probabilities need not add up to 1."""
    logits = 1.5 * normal(2, 2, classes)
    wanted = special.softmax(logits.astype(np.float64), -1)
    x = logits if mode == "logits" else (0.3 * wanted).astype(np.float32)
    (packaged,) = run_program(lambda x: mb.random_categorical(x=x, mode=mode, size=COUNT), x, opset="iOS15")
    for got in (draw("random_categorical", x=x, mode=mode, size=COUNT), packaged):
        assert got.shape == (2, 2, COUNT)
        assert got.dtype == np.float32
        for row in np.ndindex(2, 2):
            counted = np.bincount(got[row].astype(np.int64), minlength=classes)
            assert stats.chisquare(counted, COUNT * wanted[row] / wanted[row].sum()).pvalue > PLAUSIBLE


def test_random_categorical_takes_logits_and_draws_once_by_default() -> None:
    x = np.zeros((COUNT, 3), np.float32)
    x[:, 1] = np.log(2)
    (got,) = run_program(lambda x: mb.random_categorical(x=x), x, opset="iOS15")
    assert got.shape == (COUNT, 1)
    assert stats.chisquare(np.bincount(got[:, 0].astype(np.int64)), COUNT * np.array([0.25, 0.5, 0.25])).pvalue > PLAUSIBLE


IMPOSSIBLE = [("logits", [-np.inf, 0, -np.inf, 0]), ("logits", [-900, 900, 0, 900]), ("probs", [0, 1, 0, 2])]


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("mode", "x"), IMPOSSIBLE, ids=str)
def test_random_categorical_never_draws_what_cannot_be(mode: str, x: list[float], dtype: type) -> None:
    (got,) = run_program(lambda x: mb.random_categorical(x=x, mode=mode, size=1000), np.array(x, dtype), opset="iOS15")
    assert got.dtype == dtype
    assert set(got) == {1, 3}


DEFAULTS: dict[str, dict[str, Any]] = {
    "random_bernoulli": {"prob": np.float32(0.5)},
    "random_normal": {"mean": np.float32(0), "stddev": np.float32(1)},
    "random_uniform": {"low": np.float32(0), "high": np.float32(1)},
}


@pytest.mark.parametrize("operation", DEFAULTS)
@pytest.mark.parametrize("opset", ["iOS15", "iOS16", "iOS17", "iOS18"])
def test_what_is_left_out_has_the_definitions_default(operation: str, opset: str) -> None:
    assert definitions(operation) == ["iOS15"]
    left_out = run_program(lambda x: getattr(mb, operation)(shape=[50]), INPUT, opset=opset)
    written = run_program(lambda x: getattr(mb, operation)(shape=[50], seed=-1, **DEFAULTS[operation]), INPUT, opset=opset)
    np.testing.assert_array_equal(left_out, written)
    assert np.unique(left_out).size > 1


@pytest.mark.parametrize("operation", SHAPED)
@given(shape=SHAPES)
@settings(max_examples=25, deadline=None)
def test_draws_have_the_shape_that_is_asked_for(operation: str, shape: list[int]) -> None:
    assert draw(operation, shape=shape).shape == tuple(shape)


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), size=st.integers(1, 5), mode=st.sampled_from(["logits", "probs"]))
@settings(max_examples=25, deadline=None)
def test_random_categorical_replaces_the_last_axis(shape: list[int], size: int, mode: str) -> None:
    got = draw("random_categorical", x=np.abs(normal(*shape)) + 0.1, size=size, mode=mode)
    assert got.shape == (*shape[:-1], size)
    assert set(np.unique(got)) <= set(range(shape[-1]))


@pytest.mark.parametrize("operation", SHAPED)
def test_a_shape_may_be_computed_while_running(operation: str) -> None:
    def build(shape: Any) -> Any:
        return getattr(mb, operation)(shape=shape, seed=3)

    for shape in ([2, 3, 4], [1], [7, 1]):
        (got,) = run_program(build, np.array(shape, np.int32), opset="iOS15")
        fixed = draw(operation, shape=shape, seed=3).astype(np.float32)
        assert got.shape == tuple(shape)
        np.testing.assert_array_equal(got, fixed)


def test_a_shape_may_be_that_of_a_flexible_input(tmp_path: Path) -> None:
    specs = [mb.TensorSpec(shape=(2, get_new_symbol()))]
    program = mb.program(input_specs=specs, opset_version=OPSETS["iOS15"])(lambda x: mb.random_normal(shape=mb.shape(x=x)))
    model = ReferenceModel(write_program(program, tmp_path / "model.mlpackage", "iOS15"))
    for length in (3, 8):
        (got,) = model.predict({"x": normal(2, length)}).values()
        assert got.shape == (2, length)


EVERY: dict[str, Callable[..., Any]] = {
    "random_bernoulli": lambda x, **seed: mb.random_bernoulli(shape=[500], **seed),
    "random_categorical": lambda x, **seed: mb.random_categorical(x=x, size=500, **seed),
    "random_normal": lambda x, **seed: mb.random_normal(shape=[500], **seed),
    "random_uniform": lambda x, **seed: mb.random_uniform(shape=[500], **seed),
}


@pytest.mark.parametrize("build", by_name(EVERY))
def test_without_a_seed_draws_follow_the_models_and_each_prediction_starts_anew(build: Callable[..., Any], tmp_path: Path) -> None:
    x = np.zeros(4, np.float32)

    def twice(x: Any) -> Any:
        return build(x), build(x, seed=-1)

    model = load(tmp_path, twice, [x])
    first, second = model.predict({"x": x}).values()
    note_executed(model)
    assert not np.array_equal(first, second)
    for left, right in zip(model.predict({"x": x}).values(), (first, second), strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(load(tmp_path, twice, [x], seed=0).predict({"x": x}).values(), (first, second), strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(load(tmp_path, twice, [x], seed=1).predict({"x": x}).values(), (first, second), strict=True):
        assert not np.array_equal(left, right)


@pytest.mark.parametrize("build", by_name(EVERY))
def test_with_a_seed_draws_depend_on_it_alone(build: Callable[..., Any], tmp_path: Path) -> None:
    x = np.zeros(4, np.float32)

    def program(x: Any) -> Any:
        return build(x, seed=7), build(x), build(x, seed=7), build(x, seed=8), build(x, seed=2**31 - 1), build(x, seed=-2)

    seven, free, again, *others = load(tmp_path, program, [x]).predict({"x": x}).values()
    np.testing.assert_array_equal(seven, again)
    drawn = [seven, free, *others]
    for index, left in enumerate(drawn):
        assert all(not np.array_equal(left, right) for right in drawn[:index])
    other_model = list(load(tmp_path, program, [x], seed=5).predict({"x": x}).values())
    assert not np.array_equal(other_model[1], free)
    for left, right in zip([other_model[0], *other_model[2:]], [seven, again, *others], strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_seeded_draw_leaves_the_models_generator_alone() -> None:
    def build(x: Any) -> Any:
        first = mb.random_normal(shape=[9])
        mb.random_normal(shape=[9], seed=4)
        return first, mb.random_normal(shape=[9])

    def unseeded(x: Any) -> Any:
        return mb.random_normal(shape=[9]), mb.random_normal(shape=[9])

    np.testing.assert_array_equal(run_program(build, INPUT), run_program(unseeded, INPUT))


@pytest.mark.parametrize("operation", SHAPED)
def test_draws_are_independent_of_earlier_ones_and_of_their_neighbours(operation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (draw(operation, generator=generator, shape=[COUNT]) for _ in range(2))
    bound = 4 / np.sqrt(COUNT)
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(first[lag:], first[:-lag])[0, 1]) < bound


def test_categorical_draws_are_independent_of_each_other_and_of_other_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = draw("random_categorical", generator=generator, x=np.zeros((2, 6), np.float32), size=COUNT)
    for left, right in ((rows[0], rows[1]), (rows[0][1:], rows[0][:-1])):
        table = np.histogram2d(left, right, bins=[np.arange(7) - 0.5] * 2)[0]
        assert stats.chi2_contingency(table).pvalue > PLAUSIBLE


@pytest.mark.parametrize("operation", SHAPED)
def test_all_policies_see_the_same_draws(operation: str, tmp_path: Path) -> None:
    """The float64 policy keeps them unrounded, as a trace shows; half precision rounds the same ones."""
    half = {name: np.float16(value) for name, value in DEFAULTS[operation].items()}

    def build(x: Any) -> Any:
        return getattr(mb, operation)(shape=[300], **half)

    found = {}
    for numerics in ("float64", "float32", "declared"):
        *_, last = load(tmp_path, build, [INPUT], numerics=numerics).trace({"x": INPUT})
        (found[numerics],) = (value.numpy() for value in last.results.values())
    assert [value.dtype for value in found.values()] == [np.float64, np.float32, np.float16]
    np.testing.assert_array_equal(found["float64"].astype(np.float32), found["float32"])
    np.testing.assert_array_equal(found["float64"].astype(np.float16), found["declared"])
    if operation != "random_bernoulli":
        assert not np.array_equal(found["float64"], found["float32"])


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "probability above 1": ("random_bernoulli", {"shape": [2], "prob": 1.5}, "is no probability"),
    "probability below 0": ("random_bernoulli", {"shape": [2], "prob": -0.1}, "is no probability"),
    "probability that is no number": ("random_bernoulli", {"shape": [2], "prob": float("nan")}, "is no probability"),
    "negative deviation": ("random_normal", {"shape": [2], "stddev": -1.0}, "standard deviation of -1.0"),
    "bounds in the wrong order": ("random_uniform", {"shape": [2], "low": 1.0, "high": 0.0}, "nothing to draw from 1.0 to 0.0"),
    "endless bounds": ("random_uniform", {"shape": [2], "high": float("inf")}, "nothing to draw from 0.0 to inf"),
    "bounds that are no numbers": ("random_uniform", {"shape": [2], "low": float("nan")}, "nothing to draw"),
    "negative size": ("random_uniform", {"shape": [2, -1]}, "must be positive"),
    "nothing to draw": ("random_normal", {"shape": [2, 0]}, "must be positive"),
    "unknown mode": ("random_categorical", {"x": np.ones(3, np.float32), "mode": "odds"}, "no mode 'odds'"),
    "no draws": ("random_categorical", {"x": np.ones(3, np.float32), "size": 0}, "0 draws"),
    "a scalar": ("random_categorical", {"x": np.array(1, np.float32)}, "tensor of 0 axes"),
}


@pytest.mark.parametrize("case", by_name(REFUSED))
def test_what_cannot_be_drawn_is_refused(case: tuple[str, dict[str, Any], str]) -> None:
    operation, arguments, message = case
    with pytest.raises(PackageError, match=message):
        draw(operation, **arguments)


NO_DISTRIBUTIONS = [("probs", [0, 0]), ("probs", [1, -1]), ("logits", [np.nan, 0]), ("logits", [-np.inf] * 2)]


@pytest.mark.parametrize(("mode", "x"), NO_DISTRIBUTIONS, ids=str)
def test_what_is_no_distribution_is_refused(mode: str, x: list[float]) -> None:
    with pytest.raises(PackageError, match="random_categorical"):
        run_program(lambda x: mb.random_categorical(x=x, mode=mode, size=2), np.array(x, np.float32), opset="iOS15")


@pytest.mark.parametrize("operation", SHAPED)
def test_a_computed_shape_beyond_the_memory_limit_is_refused_before_it_is_drawn(operation: str, tmp_path: Path) -> None:
    shape = np.array([1000, 1000], np.int32)
    model = load(tmp_path, lambda shape: getattr(mb, operation)(shape=shape), [shape], memory_limit=4_000_000)
    with pytest.raises(PackageError, match=r"8\.0 MB would be needed"):
        model.predict({"shape": shape})


class Draws(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        drawn = torch.multinomial(torch.softmax(x[0, :4], -1), COUNT, replacement=True).float()
        return torch.rand_like(x), torch.randn_like(x), torch.randint(3, 7, (COUNT,)).float(), drawn


def test_traced_draws_are_distributed_as_torchs() -> None:
    x = normal(4, COUNT // 4)
    (uniform, gaussian, integers, classes), wanted, operations = run_module(Draws(), torch.from_numpy(x))
    assert {"random_uniform", "random_normal", "random_categorical"} <= set(operations)
    assert [value.shape for value in (uniform, gaussian, integers, classes)] == [value.shape for value in wanted]
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > PLAUSIBLE
    assert stats.kstest(gaussian.ravel(), "norm").pvalue > PLAUSIBLE
    assert stats.chisquare(np.bincount(integers.astype(np.int64), minlength=7)[3:]).pvalue > PLAUSIBLE
    counted = np.bincount(classes.astype(np.int64), minlength=4)
    assert stats.chisquare(counted, COUNT * special.softmax(x[0, :4].astype(np.float64))).pvalue > PLAUSIBLE
