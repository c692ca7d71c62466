from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.golden_outputs.metrics import (
    Comparison,
    compare,
    compare_audio,
    frame_errors_db,
    level_ratio,
    max_relative_error,
    psnr_db,
    snr_db,
    worst_frame_cosine,
)
from rvc_coreml.golden_outputs.thresholds import usable


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
    assert compared.psnr_db == -np.inf
    assert not np.isfinite(compared.max_relative_error)
    assert not usable(compared)


def test_equal_arrays_are_perfect() -> None:
    reference = signal(100, 3).astype(np.float32)
    compared = compare(reference, reference.copy(), 0)
    assert compared.snr_db == np.inf
    assert compared.worst_cosine == pytest.approx(1, abs=1e-12)
    assert (compared.level, compared.max_error, compared.finite) == (1.0, 0.0, True)
    assert (compared.psnr_db, compared.max_relative_error, compared.audio) == (np.inf, 0.0, None)


def test_two_silences_agree() -> None:
    compared = compare(np.zeros((4, 100)), np.zeros((4, 100)))
    assert (compared.snr_db, compared.worst_cosine, compared.level) == (np.inf, 1.0, 1.0)
    assert (compared.psnr_db, compared.max_relative_error) == (np.inf, 0.0)


def test_noise_where_silence_belongs_fails_everything() -> None:
    compared = compare(np.zeros((4, 100)), 1e-3 * signal(4, 100))
    assert (compared.snr_db, compared.worst_cosine, compared.level) == (-np.inf, -1.0, np.inf)
    assert (compared.psnr_db, compared.max_relative_error) == (-np.inf, np.inf)
    assert not usable(compared)


def test_silence_where_a_signal_belongs_fails() -> None:
    reference = signal(4, 100)
    compared = compare(reference, np.zeros((4, 100)))
    assert compared.snr_db <= 0
    assert (compared.worst_cosine, compared.level) == (0.0, 0.0)
    assert not usable(compared)


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
    assert list(values) == [field.name for field in dataclasses.fields(Comparison) if field.name != "audio"]
    assert values["finite"] is bool(np.isfinite(actual).all())
    for name, value in values.items():
        original = getattr(compared, name)
        assert value == (original if np.isfinite(original) else None)


@pytest.mark.parametrize("clip", [0.1 * signal(1600), np.full(1600, np.nan)], ids=["noise", "nan"])
def test_the_metrics_of_audio_stand_beside_the_others_in_json(clip: np.ndarray) -> None:
    compared = compare_audio(0.1 * signal(1600, seed=1), clip, 16000)
    values = compared.as_dict()
    assert compared.audio is not None
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for name, value in dataclasses.asdict(compared.audio).items():
        assert values[name] == (value if np.isfinite(value) else None)
    assert "audio" not in values


@pytest.mark.parametrize("db", [10.0, 30.0, 60.0])
@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_psnr_is_the_peak_over_the_error_wherever_the_peak_and_the_axes_are(constant: float, db: float) -> None:
    """coremltools' own divides by the first axis alone: 39 dB off for (1, 192, 40)."""
    reference = signal(1, 192, 40) + constant
    noise = signal(1, 192, 40, seed=9)
    noise *= np.abs(reference).max() / 10 ** (db / 20) / np.sqrt(np.mean(noise**2))
    actual = reference + noise
    assert psnr_db(reference, actual) == pytest.approx(db, abs=1e-9)
    for shape in ((192, 40), (7680,), (1, 1, 7680), (40, 192)):
        assert psnr_db(reference.reshape(shape), actual.reshape(shape)) == pytest.approx(db, abs=1e-9)


def test_psnr_of_a_sine_is_its_snr_and_3_db() -> None:
    reference = np.sin(2 * np.pi * np.arange(8000) / 80)
    actual = with_error(reference, 40)
    assert psnr_db(reference, actual) == pytest.approx(snr_db(reference, actual) + 10 * np.log10(2), abs=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_one_wrong_value_in_many_is_seen_by_the_largest_relative_error_alone(scale: float) -> None:
    reference = scale * np.sign(signal(1, 768, 200))
    actual = reference.copy()
    actual[0, 100, 50] += 2 * scale
    compared = compare(reference, actual)
    assert compared.max_relative_error == pytest.approx(2)
    assert compared.max_error == pytest.approx(2 * scale)
    assert compared.snr_db > 45
    assert compared.worst_cosine > 0.99
    assert compared.level == pytest.approx(1, abs=1e-4)


def test_a_relative_error_is_not_that_of_a_value_near_zero() -> None:
    reference = np.array([1.0, -1.0, 1e-9, 1.0])
    assert max_relative_error(reference, reference + np.array([0, 0, 0.1, 0])) == pytest.approx(0.1 / np.sqrt(0.75))


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_snr_of_a_single_frame_removes_the_mean_of_its_values(mean: float) -> None:
    """Its mean over time is itself, and would leave no signal."""
    reference = signal(1, 192, 1)
    reference -= reference.mean()
    noise = signal(1, 192, 1, seed=3)
    noise *= np.sqrt((reference**2).sum() / (noise**2).sum()) / 100
    assert snr_db(reference + mean, reference + mean + noise, 2) == pytest.approx(40, abs=1e-9)
    assert frame_errors_db(reference + mean, reference + mean + noise, 2) == pytest.approx([40], abs=1e-9)


def test_snr_of_a_steady_reference_removes_the_mean_of_all_values() -> None:
    reference = np.repeat(signal(1, 192, 1), 50, axis=2)
    reference += 5 - reference.mean()
    noise = signal(1, 192, 50, seed=3)
    actual = reference + noise * np.sqrt(((reference - 5) ** 2).sum() / (noise**2).sum()) / 100
    assert snr_db(reference, actual, 2) < -200
    assert compare(reference, actual, 2, steady=True).snr_db == pytest.approx(40, abs=1e-9)
    errors = frame_errors_db(reference, actual, 2, steady=True)
    assert -10 * np.log10(np.mean(10 ** (-errors / 10))) == pytest.approx(40, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(-1, 1), (2, 1), (1, 1), (0, 1), (2, 5)]),
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    st.floats(-20, 100),
)
def test_the_errors_of_the_frames_add_up_to_the_snr(axis_and_frame: tuple[int, int], shape: tuple[int, int, int], db: float) -> None:
    axis, frame = axis_and_frame
    whole = (*shape[:2], shape[2] * frame) if frame > 1 else shape
    reference = signal(*whole) + 7
    actual = reference + signal(*whole, seed=4) * 10 ** (-db / 20)
    errors = frame_errors_db(reference, actual, axis, frame)
    assert errors.shape == (whole[axis] // frame,)
    total = snr_db(reference, actual, axis)
    if np.isfinite(total):
        assert -10 * np.log10(np.mean(10 ** (-errors / 10))) == pytest.approx(total, abs=1e-9)
    else:
        assert np.all(errors == total)


def test_the_errors_of_the_frames_say_which_frame_is_wrong() -> None:
    reference = signal(1, 1, 100 * 160)
    actual = reference.copy()
    actual[..., 30 * 160 : 31 * 160] += 0.1
    actual[..., 70 * 160] = np.nan
    errors = frame_errors_db(reference, actual, -1, 160)
    wanted = np.full(100, np.inf)
    wanted[30], wanted[70] = 20 + 10 * np.log10(reference.var()), -np.inf
    np.testing.assert_allclose(errors, wanted, atol=1e-9)


def test_frame_errors_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        frame_errors_db(np.ones((1, 3, 4)), np.ones((1, 3, 5)))


def test_compare_audio_is_compare_in_frames_of_10_ms() -> None:
    reference = signal(16000)
    actual = with_error(reference, 20)
    actual[4000:4160] *= -1
    compared = compare_audio(reference, actual, 16000)
    assert dataclasses.replace(compared, audio=None) == compare(reference, actual, 0, 160)
    assert compared.worst_cosine < -0.9


@pytest.mark.parametrize("shape", [(1, 1600), (1, 1, 1600), (1600, 1)], ids=str)
def test_compare_audio_takes_clips_without_other_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a clip is"):
        compare_audio(np.ones(shape), np.ones(shape), 16000)
