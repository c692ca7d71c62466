"""The table of limits: every row catches an error twice as large as it allows and passes one half as large."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rvc_coreml.golden_outputs import thresholds
from rvc_coreml.golden_outputs.audio_metrics import (
    AudioComparison,
    log_mel_cosine,
    mel_cepstral_distortion,
    pitch_agreement,
    stft_distance,
)
from rvc_coreml.golden_outputs.metrics import Comparison, compare, level_ratio, max_relative_error, snr_db, worst_frame_cosine
from rvc_coreml.golden_outputs.thresholds import LIMITS, SHARED, Limit, Verdict, judge, limit, snapshot, usable, widened

GOOD, DEGRADED, BROKEN = Verdict.GOOD, Verdict.DEGRADED, Verdict.BROKEN
AGREEING = Comparison(200.0, 1.0, 1.0, 0.0, True, 200.0, 0.0, AudioComparison(1.0, 0.0, 0.0, 1.0))
BEST = {"snr_db": np.inf, "psnr_db": np.inf, "max_relative_error": 0.0, "stft_distance": 0.0, "mcd_db": 0.0}  # the rest: 1
MANIFEST = Path(__file__).parents[2] / "golden_outputs" / "recorded" / "manifest.json"
RATE = 16000
Plant = Callable[[float], float]

ROWS = [
    *((what, precision, entry) for (what, precision), entries in LIMITS.items() for entry in entries),
    *(("", "", entry) for entry in SHARED),
]
BORDERS = [
    pytest.param(
        what, precision, entry, border, side, id=f"{what or 'shared'}-{precision}-{entry.metric}-{border}-{'low' if side < 0 else 'high'}"
    )
    for what, precision, entry in ROWS
    for border in ("good", "degraded")
    for side in ((-1, 1) if entry.direction == "range" else (1,))
]


def band(what: str, precision: str, comparison: Comparison) -> Verdict:
    """By the table, or where `what` is empty by what all stages share."""
    if what:
        return judge(comparison, what, precision).verdict
    return GOOD if usable(comparison) else BROKEN


def edge(entry: Limit, border: str, side: int) -> float:
    value = getattr(entry, border)
    return value[(side + 1) // 2] if isinstance(value, tuple) else value


def with_value(metric: str, value: float) -> Comparison:
    """Perfect but for one metric."""
    if metric in {field.name for field in dataclasses.fields(AudioComparison)}:
        assert AGREEING.audio is not None
        return dataclasses.replace(AGREEING, audio=dataclasses.replace(AGREEING.audio, **{metric: value}))
    return dataclasses.replace(AGREEING, **{metric: value})


def with_error_of(metric: str, value: float, times: float) -> float:
    """The metric after an error `times` as large as the one behind `value`."""
    if metric in ("snr_db", "psnr_db"):
        return value - 20 * np.log10(times)
    best = BEST.get(metric, 1.0)
    return best + (value - best) * times


@pytest.mark.parametrize(("what", "precision", "entry", "border", "side"), BORDERS)
def test_a_limit_passes_half_its_error_and_catches_twice_of_it(what: str, precision: str, entry: Limit, border: str, side: int) -> None:
    at = edge(entry, border, side)
    half, twice = (band(what, precision, with_value(entry.metric, with_error_of(entry.metric, at, times))) for times in (0.5, 2.0))
    exactly = band(what, precision, with_value(entry.metric, at))
    if border == "good":
        assert (half, exactly) == (GOOD, GOOD)
        assert twice is not GOOD
    else:
        assert half is not BROKEN
        assert exactly is not BROKEN
        assert twice is BROKEN


@cache
def sound() -> tuple[np.ndarray, np.ndarray]:
    """Three seconds with a voice at 220 Hz over a broad bed, and noise."""
    time = np.arange(3 * RATE) / RATE
    rng = np.random.default_rng(3)
    voice = sum(np.sin(2 * np.pi * 220 * k * time) / k for k in range(1, 20))
    return 0.1 * voice + 0.003 * rng.standard_normal(len(time)), rng.standard_normal(len(time))


@cache
def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    return rng.standard_normal((1, 192, 300)), rng.standard_normal((1, 192, 300))


def louder(size: float) -> float:
    return level_ratio(features()[0], (1 + size) * features()[0])


def noisier(size: float) -> float:
    return snr_db(features()[0], features()[0] + size * features()[1])


def turned(size: float) -> float:
    """One frame of 300 turned by `size`, at right angles."""
    reference = features()[0]
    actual, frame = reference.copy(), reference[0, :, 7]
    across = features()[1][0, :, 7]
    across = across - frame * (across @ frame) / (frame @ frame)
    actual[0, :, 7] += np.tan(size) * across * np.linalg.norm(frame) / np.linalg.norm(across) if size < np.pi / 2 else -2 * frame
    return worst_frame_cosine(reference, actual)


def one_value(size: float) -> float:
    actual = features()[0].copy()
    actual[0, 3, 5] += size
    return max_relative_error(features()[0], actual)


def hiss(metric: Callable[..., float], *options: bool) -> Plant:
    audio, noise = (side[: RATE // 2] for side in sound())
    return lambda size: metric(audio, audio + size * noise, RATE, *options)


def out_of_tune(size: float) -> float:
    """A share of the clip, of `size`, a semitone higher."""
    audio, _noise = sound()
    time = np.arange(len(audio)) / RATE
    higher = 0.1 * sum(np.sin(2 * np.pi * 233.08 * k * time) / k for k in range(1, 20))
    return pitch_agreement(audio, np.where(time < 3 * (1 - size), audio, higher), RATE)


PLANTS: dict[str, Plant] = {
    "snr_db": noisier,
    "worst_cosine": turned,
    "level": louder,
    "max_relative_error": one_value,
    "log_mel_cosine": hiss(log_mel_cosine, True),
    "stft_distance": hiss(stft_distance),
    "mcd_db": hiss(mel_cepstral_distortion),
    "pitch_agreement": out_of_tune,
}


RANGES = {"pitch_agreement": (0.005, 0.5), "level": (1e-5, 0.5), "worst_cosine": (1e-3, 3.0)}  # of the size of an error


def largest_passing(plant: Plant, inside: Callable[[float], bool], lowest: float, highest: float) -> float:
    """The error at which a metric crosses its border, by halving on a logarithmic scale."""
    low, high = np.log(lowest), np.log(highest)
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(plant(float(np.exp(middle)))) else (low, middle)
    return float(np.exp(low))


PLANTED = {
    (entry.metric, edge(entry, border, side), side): entry
    for _what, _precision, entry in ROWS
    for border in ("good", "degraded")
    for side in ((-1, 1) if entry.direction == "range" else (1,))
}


@pytest.mark.parametrize(("metric", "value", "side"), PLANTED, ids=lambda value: f"{value}")
def test_in_arrays_an_error_half_as_large_passes_and_twice_as_large_does_not(metric: str, value: float, side: int) -> None:
    """The error itself is halved and doubled: noise, gain, angle, one value, hiss, seconds out of tune."""
    plant: Plant = (lambda size: louder(side * size)) if metric == "level" else PLANTS[metric]
    one = dataclasses.replace(PLANTED[metric, value, side], good=value)
    if one.direction == "range":
        one = dataclasses.replace(one, good=(value, np.inf) if side < 0 else (-np.inf, value))

    def inside(found: float) -> bool:
        return one.band(found) is GOOD

    border = largest_passing(plant, inside, *RANGES.get(metric, (1e-6, 100.0)))
    assert plant(border) == pytest.approx(value, rel=0.01, abs=0.007 if metric == "pitch_agreement" else 1e-6)
    assert inside(plant(border / 2))
    assert not inside(plant(border * 2))


def test_every_judged_metric_has_a_planted_error() -> None:
    assert {entry.metric for _what, _precision, entry in ROWS} == set(PLANTS)


@pytest.mark.parametrize(("what", "precision"), LIMITS)
def test_a_row_is_ordered_reasoned_and_no_looser_than_what_placement_asks(what: str, precision: str) -> None:
    entries = {entry.metric: entry for entry in LIMITS[what, precision]}
    assert len(entries) == len(LIMITS[what, precision])
    assert {"snr_db", "level", "worst_cosine"} <= set(entries)
    audio = {field.name for field in dataclasses.fields(AudioComparison)}
    assert audio <= set(entries) if what in ("decoder", "pipeline") else not audio & set(entries)
    for entry in entries.values():
        assert len(entry.reason) > 20
        assert isinstance(entry.good, tuple) == isinstance(entry.degraded, tuple) == (entry.direction == "range")
        for side in (-1, 1):
            assert entry.band(edge(entry, "good", side)) is GOOD
        if entry.good != entry.degraded:
            assert all(entry.band(edge(entry, "degraded", side)) is DEGRADED for side in (-1, 1))
    for shared in SHARED:
        assert entries[shared.metric].degraded == shared.good == shared.degraded


def test_every_stage_and_the_pipeline_have_both_precisions() -> None:
    stages = ("content_encoder", "text_encoder", "flow", "decoder", "pitch", "pipeline", "part")
    assert set(LIMITS) == {(what, precision) for what in stages for precision in ("fp16", "fp32")}


@pytest.mark.parametrize("what", sorted({what for what, _precision in LIMITS}))
def test_single_precision_is_held_to_more(what: str) -> None:
    for entry in LIMITS[what, "fp32"]:
        half = limit(what, "fp16", entry.metric)
        assert all(half.band(edge(entry, "good", side)) is GOOD for side in (-1, 1))
        assert entry.degraded == half.degraded


def test_a_judgement_says_what_decided_it() -> None:
    assert judge(AGREEING, "decoder", "fp16").text == "good"
    assert judge(AGREEING, "decoder", "fp16").decided_by == ()
    found = judge(dataclasses.replace(AGREEING, snr_db=28.14, level=1.05), "decoder", "fp16")
    assert (found.verdict, found.decided_by) == (BROKEN, ("snr_db 28.14 is below 30",))
    assert found.text == "broken: snr_db 28.14 is below 30"
    found = judge(dataclasses.replace(AGREEING, snr_db=44, level=1.05, max_relative_error=0.3), "flow", "fp16")
    assert found.verdict is DEGRADED
    assert found.decided_by == ("snr_db 44 is below 45", "level 1.05 is outside 0.99 to 1.01", "max_relative_error 0.3 is above 0.1")
    assert judge(dataclasses.replace(AGREEING, level=4.25), "flow", "fp32").decided_by == ("level 4.25 is outside 0.9 to 1.1",)


@pytest.mark.parametrize(("what", "precision"), LIMITS)
def test_what_is_not_finite_is_broken_whatever_its_metrics_say(what: str, precision: str) -> None:
    found = judge(dataclasses.replace(AGREEING, finite=False), what, precision)
    assert (found.verdict, found.text) == (BROKEN, "broken: it is not finite")
    assert not usable(dataclasses.replace(AGREEING, finite=False))


@pytest.mark.parametrize(("what", "precision", "entry"), [row for row in ROWS if row[0]])
def test_nan_in_any_metric_is_broken(what: str, precision: str, entry: Limit) -> None:
    assert judge(with_value(entry.metric, np.nan), what, precision).verdict is BROKEN


def test_metrics_of_audio_count_only_where_they_were_measured() -> None:
    assert judge(with_value("mcd_db", 20.0), "decoder", "fp16").verdict is BROKEN
    assert judge(dataclasses.replace(AGREEING, audio=None), "decoder", "fp16").verdict is GOOD


@pytest.mark.parametrize("row", [("vocoder", "fp16"), ("decoder", "int8")])
def test_a_row_that_is_not_in_the_table_is_an_error(row: tuple[str, str]) -> None:
    with pytest.raises(KeyError):
        judge(AGREEING, *row)
    with pytest.raises(KeyError):
        limit("decoder", "fp16", "max_relative_error")


@pytest.mark.parametrize(("what", "precision"), LIMITS)
def test_the_known_level_of_broken_half_precision_vocoders_is_broken(what: str, precision: str) -> None:
    reference = 0.1 * np.random.default_rng(0).standard_normal((1, 1, 4000))
    compared = compare(reference, 4.25 * reference, -1, 400)
    assert compared.level == pytest.approx(4.25)
    for found in (compared, dataclasses.replace(compared, snr_db=200.0)):
        assert judge(found, what, precision).verdict is BROKEN
        assert not usable(found)


def test_half_precision_rounding_is_good_as_such_and_degraded_as_single_precision() -> None:
    reference = features()[0].astype(np.float32)
    compared = compare(reference, reference.astype(np.float16).astype(np.float32))
    assert 60 < compared.snr_db < 90
    assert judge(compared, "flow", "fp16").verdict is GOOD
    assert judge(compared, "flow", "fp32").verdict is DEGRADED


# What `widened` sees.
DECODER = "decoder/fp16/snr_db/good"


def recorded() -> dict[str, Any]:
    return json.loads(json.dumps(snapshot(), allow_nan=False))


def change(old: Any, new: Any, **other: Any) -> dict[str, Any]:
    return {"threshold": DECODER, "from": old, "to": new, "why": "a measured reason", "date": "2024-06-01", **other}


def test_a_snapshot_has_every_number_and_reason_and_survives_json() -> None:
    rows = recorded()
    for what, precision, entry in ROWS:
        found = rows[what or "shared"][precision or "any"][entry.metric]
        wanted = {"good": entry.good, "degraded": entry.degraded, "direction": entry.direction, "reason": entry.reason}
        assert {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()} == wanted
    assert widened(rows, []) == []


@pytest.mark.parametrize(("what", "precision", "entry", "border", "side"), BORDERS)
def test_a_number_that_was_stricter_when_recorded_is_told_and_one_that_was_looser_is_not(
    what: str, precision: str, entry: Limit, border: str, side: int
) -> None:
    for factor, told in ((0.5, True), (2.0, False)):
        rows = recorded()
        row = rows[what or "shared"][precision or "any"][entry.metric]
        value = with_error_of(entry.metric, edge(entry, border, side), factor)
        if entry.direction == "range":
            row[border][(side + 1) // 2] = value
        else:
            row[border] = value
        found = widened(rows, [])
        assert len(found) == told
        assert all(f"{what or 'shared'}/{precision or 'any'}/{entry.metric}/{border} is " in line for line in found)


def set_decoder_snr(monkeypatch: pytest.MonkeyPatch, good: float) -> dict[str, Any]:
    """The table as it was, before the decoder's SNR is set to `good`."""
    before = recorded()
    row = tuple(dataclasses.replace(entry, good=good) if entry.metric == "snr_db" else entry for entry in LIMITS["decoder", "fp16"])
    monkeypatch.setitem(thresholds.LIMITS, ("decoder", "fp16"), row)
    return before


def test_a_loosened_limit_needs_a_line_that_leads_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set_decoder_snr(monkeypatch, 38.0)

    def sentence(recorded: int) -> list[str]:
        return [f"the limit {DECODER} is 38, looser than the recorded {recorded}, and no line of threshold_changes says why"]

    assert widened(before, []) == sentence(45)
    assert widened(before, [change(45.0, 40.0)]) == widened(before, [change(40.0, 38.0), change(45.0, 40.0)]) == sentence(40)
    assert widened(before, [change(45.0, 38.0)]) == []
    assert widened(before, [change(45.0, 40.0), change(40.0, 38.0)]) == []
    assert widened(before, [change(45, 38)]) == []
    for lines in (
        [change(44.0, 38.0)],
        [change(45.0, 38.0, why=" ")],
        [change(45.0, 38.0, date=None)],
        [change(45.0, 38.0, threshold="decoder/fp32/snr_db/good")],
        [{key: value for key, value in change(45.0, 38.0).items() if key != "to"}],
    ):
        assert widened(before, lines) == sentence(45)


def test_a_limit_that_is_tightened_needs_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert widened(set_decoder_snr(monkeypatch, 50.0), []) == []


def test_a_limit_or_a_row_that_is_gone_needs_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recorded()
    monkeypatch.setitem(thresholds.LIMITS, ("decoder", "fp16"), LIMITS["decoder", "fp16"][1:])
    assert [line.split(",")[0] for line in widened(before, [])] == [
        f"the limit decoder/fp16/snr_db/{border} is gone" for border in ("good", "degraded")
    ]
    assert widened(before, [change(45.0, None), change(30.0, None, threshold="decoder/fp16/snr_db/degraded")]) == []
    monkeypatch.delitem(thresholds.LIMITS, ("flow", "fp32"))
    assert sum("flow/fp32" in line for line in widened(before, [])) == 2 * 4


def test_an_inaudible_error_that_the_recording_does_not_know_needs_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    known = recorded()
    before = {what: rows for what, rows in known.items() if what != "hearing"}
    names = [f"hearing/any/inaudible_dbfs/{border}" for border in ("good", "degraded")]
    found = widened(before, [])
    assert [line.split(",")[0] for line in found] == [f"the limit {name} is -85" for name in names]
    assert "the recorded none" in found[0]
    lines = [change(None, -85.0, threshold=name) for name in names]
    assert widened(before, lines) == []
    assert len(widened(before, lines[:1])) == 1
    louder = tuple(dataclasses.replace(entry, good=-80.0, degraded=-80.0) for entry in thresholds.HEARING)
    monkeypatch.setattr(thresholds, "HEARING", louder)
    assert len(widened(known, [])) == len(widened(before, lines)) == 2
    assert widened(before, [*lines, *(change(-85.0, -80.0, threshold=name) for name in names)]) == []


def test_a_limit_that_turned_round_is_told() -> None:
    rows = copy.deepcopy(recorded())
    rows["decoder"]["fp16"]["snr_db"]["direction"] = "at_most"
    assert len(widened(rows, [])) == 2


def test_no_limit_is_looser_than_in_the_projects_recorded_golden_outputs() -> None:
    manifest = json.loads(MANIFEST.read_text())
    assert widened(manifest["thresholds"], manifest["threshold_changes"]) == []
