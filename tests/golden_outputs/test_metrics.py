from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from rvc_coreml.golden_outputs.metrics import Comparison, compare, level_ratio, snr_db, worst_frame_cosine
from rvc_coreml.golden_outputs.thresholds import USABLE, VALID, Threshold


def signal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_error(reference: np.ndarray, db: float, axis: int = -1) -> np.ndarray:
    """The reference with noise whose energy is `db` below that of the reference without its mean over `axis`."""
    centred = reference - reference.mean(axis, keepdims=True)
    noise = signal(*reference.shape, seed=99)
    return reference + noise * np.sqrt((centred**2).sum() / (noise**2).sum() / 10 ** (db / 10))


@pytest.mark.parametrize("db", [-20.0, 0.0, 6.0, 30.0, 45.0, 90.0])
@pytest.mark.parametrize(("shape", "axis"), [((400,), -1), ((1, 1, 400), -1), ((1, 8, 100), 2), ((1, 100, 8), 1), ((100, 8), 0)], ids=str)
def test_snr_finds_a_planted_error(shape: tuple[int, ...], axis: int, db: float) -> None:
    reference = signal(*shape)
    assert snr_db(reference, with_error(reference, db, axis), axis) == pytest.approx(db, abs=1e-6)


@pytest.mark.parametrize("constant", [0.5, 100.0, -1e4])
def test_snr_does_not_count_a_constant_that_both_sides_share(constant: float) -> None:
    reference = signal(1, 4, 200)
    actual = with_error(reference, 20)
    assert snr_db(reference + constant, actual + constant) == pytest.approx(snr_db(reference, actual), abs=1e-6)


def test_snr_removes_a_mean_for_every_channel() -> None:
    reference = signal(1, 4, 200)
    actual = with_error(reference, 20)
    means = np.array([0, 10, -300, 5000.0])[:, None]
    assert snr_db(reference + means, actual + means) == pytest.approx(20, abs=1e-6)


def test_snr_counts_a_constant_that_only_one_side_has() -> None:
    reference = signal(1000)
    reference -= reference.mean()
    assert snr_db(reference, reference + reference.std()) == pytest.approx(0, abs=1e-9)


def test_snr_of_the_means_alone_is_no_better_than_nothing() -> None:
    reference = 50 + signal(1000)
    assert snr_db(reference, np.full(1000, reference.mean())) == pytest.approx(0, abs=1e-9)


def test_snr_is_asymmetric_in_the_level() -> None:
    reference = signal(100) * 2
    reference -= reference.mean()
    assert snr_db(reference, reference / 2) == pytest.approx(20 * np.log10(2), abs=1e-9)
    assert snr_db(reference / 2, reference) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_is_the_worst_possible(bad: float) -> None:
    reference = signal(100, 3)
    actual = reference.copy()
    actual[50, 1] = bad
    compared = compare(reference, actual, 0)
    assert (compared.snr_db, compared.worst_cosine, compared.finite) == (-np.inf, -1.0, False)
    assert not any(threshold.passes(compared) for threshold in (USABLE, *VALID.values()))


def test_equal_arrays_are_perfect() -> None:
    reference = signal(100, 3).astype(np.float32)
    compared = compare(reference, reference.copy(), 0)
    assert compared.snr_db == np.inf
    assert compared.worst_cosine == pytest.approx(1, abs=1e-12)
    assert (compared.level, compared.max_error, compared.finite) == (1.0, 0.0, True)


def test_two_silences_agree() -> None:
    compared = compare(np.zeros((4, 100)), np.zeros((4, 100)))
    assert (compared.snr_db, compared.worst_cosine, compared.level) == (np.inf, 1.0, 1.0)


def test_noise_where_silence_belongs_fails_everything() -> None:
    compared = compare(np.zeros((4, 100)), 1e-3 * signal(4, 100))
    assert (compared.snr_db, compared.worst_cosine, compared.level) == (-np.inf, -1.0, np.inf)
    assert not USABLE.passes(compared)


def test_silence_where_a_signal_belongs_fails() -> None:
    reference = signal(4, 100)
    compared = compare(reference, np.zeros((4, 100)))
    assert compared.snr_db <= 0
    assert (compared.worst_cosine, compared.level) == (0.0, 0.0)
    assert not USABLE.passes(compared)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_metrics_compute_beyond_the_precision_of_their_arrays(dtype: type) -> None:
    reference = np.full(5000, 100, dtype)
    reference[::2] = -100
    compared = compare(reference, (reference * dtype(0.5)).astype(dtype))
    assert compared.snr_db == pytest.approx(20 * np.log10(2), abs=1e-6)
    assert compared.level == pytest.approx(0.5)
    assert compared.max_error == 50


@pytest.mark.parametrize("place", [0, 123, 499])
def test_one_bad_frame_among_many_is_found(place: int) -> None:
    reference = signal(1, 192, 500)
    actual = with_error(reference, 60)
    actual[..., place] = signal(1, 192, seed=5)
    assert worst_frame_cosine(reference, with_error(reference, 60)) > 0.999
    assert worst_frame_cosine(reference, actual) < 0.5
    assert snr_db(reference, actual) > 20


def test_worst_cosine_is_that_of_the_frame_turned_by_a_known_angle() -> None:
    reference = np.tile([[1.0], [0.0]], 50)
    actual = reference.copy()
    actual[:, 20] = np.cos(0.3), np.sin(0.3)
    actual[:, 30] = np.cos(0.2), np.sin(0.2)
    assert worst_frame_cosine(reference, actual) == pytest.approx(np.cos(0.3))


def test_worst_cosine_does_not_see_the_level() -> None:
    reference = signal(16, 50)
    assert worst_frame_cosine(reference, 4.25 * reference) == pytest.approx(1)
    assert worst_frame_cosine(reference, -reference) == pytest.approx(-1)


@pytest.mark.parametrize(("share", "counts"), [(1e-4, False), (0.005, False), (0.05, True), (1.0, True)])
def test_frames_below_40_db_have_no_direction(share: float, counts: bool) -> None:
    reference = np.tile(signal(192)[:, None], 100)
    reference[:, 40] *= share
    actual = reference.copy()
    actual[:, 40] *= -1
    assert worst_frame_cosine(reference, actual) == pytest.approx(-1.0 if counts else 1.0)


@pytest.mark.parametrize("frame", [160, 400])
def test_audio_is_compared_in_frames_of_samples(frame: int) -> None:
    reference = signal(1, 1, 50 * frame)
    actual = reference.copy()
    actual[..., 7 * frame : 8 * frame] *= -1
    assert worst_frame_cosine(reference, actual, -1, frame) == pytest.approx(-1)
    assert worst_frame_cosine(reference, actual, -1, 2 * frame) > -0.9


def test_a_remainder_shorter_than_a_frame_is_left_out() -> None:
    reference = signal(1, 1, 1050)
    actual = reference.copy()
    actual[..., 1000:] *= -1
    assert worst_frame_cosine(reference, actual, -1, 100) == pytest.approx(1)


def test_a_remainder_is_compared_where_it_is_all_there_is() -> None:
    reference = signal(1, 1, 50)
    assert worst_frame_cosine(reference, -reference, -1, 100) == pytest.approx(-1)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.0, 4.25])
def test_level_is_the_ratio_of_rms(factor: float) -> None:
    reference = signal(3, 500)
    assert level_ratio(reference, -factor * reference) == pytest.approx(factor)


def test_level_of_something_over_silence_is_infinite() -> None:
    assert level_ratio(np.zeros(5), np.ones(5)) == np.inf


def test_max_error_is_the_largest_deviation() -> None:
    reference = np.zeros((2, 5), np.float32)
    actual = reference.copy()
    actual[0, 3], actual[1, 1] = 0.25, -0.75
    assert compare(reference, actual).max_error == 0.75


@pytest.mark.parametrize("shape", [(3, 4), (12,), (1, 3, 5), (1, 3, 4, 1), ()], ids=str)
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        compare(np.ones((1, 3, 4)), np.ones(shape))


@pytest.mark.parametrize("actual", [np.ones(4), np.full(4, np.nan), np.full(4, np.inf), np.zeros(4)], ids=["equal", "nan", "inf", "silent"])
def test_a_comparison_survives_strict_json(actual: np.ndarray) -> None:
    compared = compare(np.ones(4), actual)
    values = compared.as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values.pop("exact") is (compared.snr_db == np.inf)
    assert list(values) == [field.name for field in dataclasses.fields(Comparison)]
    assert values["finite"] is bool(np.isfinite(actual).all())
    for name, value in values.items():
        original = getattr(compared, name)
        assert value == (original if np.isfinite(original) else None)


THRESHOLDS = [pytest.param(USABLE, id="usable"), *(pytest.param(threshold, id=name) for name, threshold in VALID.items())]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_half_the_allowed_error_passes_and_twice_fails(threshold: Threshold) -> None:
    reference = signal(1, 192, 500)
    step = 20 * np.log10(2)
    assert threshold.passes(compare(reference, with_error(reference, threshold.snr_db + step)))
    assert not threshold.passes(compare(reference, with_error(reference, threshold.snr_db - step)))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_half_the_allowed_level_error_passes_and_twice_fails(threshold: Threshold) -> None:
    agreeing = Comparison(120.0, 1.0, 1.0, 0.0, True)
    for bound in threshold.level:
        assert threshold.passes(dataclasses.replace(agreeing, level=1 + (bound - 1) / 2))
        assert not threshold.passes(dataclasses.replace(agreeing, level=1 + (bound - 1) * 2))


@pytest.mark.parametrize("precision", VALID)
def test_half_the_allowed_angle_passes_and_twice_fails(precision: str) -> None:
    angle = np.arccos(VALID[precision].cosine)
    agreeing = Comparison(120.0, 1.0, 1.0, 0.0, True)
    assert VALID[precision].passes(dataclasses.replace(agreeing, worst_cosine=float(np.cos(angle / 2))))
    assert not VALID[precision].passes(dataclasses.replace(agreeing, worst_cosine=float(np.cos(angle * 2))))


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("field", ["snr_db", "worst_cosine", "level"])
def test_nan_in_any_metric_fails(threshold: Threshold, field: str) -> None:
    agreeing = Comparison(120.0, 1.0, 1.0, 0.0, True)
    assert threshold.passes(agreeing)
    assert not threshold.passes(dataclasses.replace(agreeing, **{field: np.nan}))
    assert not threshold.passes(dataclasses.replace(agreeing, finite=False))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_known_level_of_broken_half_precision_vocoders_fails(threshold: Threshold) -> None:
    reference = 0.1 * signal(1, 1, 4000)
    compared = compare(reference, 4.25 * reference, -1, 400)
    assert compared.level == pytest.approx(4.25)
    assert not threshold.passes(compared)
    assert not threshold.passes(dataclasses.replace(compared, snr_db=200.0))


def test_half_precision_rounding_passes_its_threshold_and_misses_that_of_float32() -> None:
    reference = signal(1, 192, 100).astype(np.float32)
    compared = compare(reference, reference.astype(np.float16).astype(np.float32))
    assert 60 < compared.snr_db < 90
    assert VALID["fp16"].passes(compared)
    assert not VALID["fp32"].passes(compared)
