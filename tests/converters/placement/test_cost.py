"""The model of times: what it adds up, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from rvc_coreml.converters.placement import CHIPS, Assessment
from rvc_coreml.converters.placement.cost import ASSUMPTIONS, WORKING_SET, rates_of
from rvc_coreml.converters.placement.song import predict_song
from rvc_coreml.runtime.segments import plan_segments
from support.placement_functions import Program, tensor, weight


def assumed(name: str) -> float:
    value = ASSUMPTIONS[name].value
    assert value is not None
    return value


def chain(*kinds: str, size: int = 1024, channels: int = 64) -> Program:
    """Operations one after the other on (1, channels, 1, size) in half precision."""
    program, made = Program(x=tensor(1, channels, 1, size)), "x"
    for kind in kinds:
        arguments = {"weight": weight(channels, channels, 1, 3), "pad_type": "same"} if kind == "conv" else {}
        made = program.call(kind, tensor(1, channels, 1, size), x=made, **arguments)
    return program


def test_a_convolution_takes_its_arithmetic_at_the_engine_s_rate() -> None:
    times = chain("conv", channels=512).assess().times
    flops = 2 * 512 * 1024 * 512 * 3
    assert times.by_unit["ane"] == pytest.approx(flops / 4.8e12)
    assert times.total == pytest.approx(flops / 4.8e12 + assumed("ane_dispatch_seconds"))
    assert (times.switches, times.transfer_bytes) == (0, 0)


def test_what_fits_the_working_set_stays_on_the_chip() -> None:
    """Above it, values are read and written at the streaming rate."""
    fits = WORKING_SET // 2 // 512  # a row of 512 channels in half precision
    for size, streamed in ((fits, False), (fits + 1, True)):
        times = chain("relu", channels=512, size=size).assess("m5").times
        assert times.by_unit["ane"] == pytest.approx(512 * (4 * size / 145e9 if streamed else size / 9.5e12))


def test_constants_are_streamed() -> None:
    program = Program(x=tensor(1, 4096))
    program.call("linear", tensor(1, 1024), x="x", weight=weight(1024, 4096))
    assert program.assess().times.by_unit["ane"] == pytest.approx(2 * 1024 * 4096 / 51e9)


def test_every_change_of_unit_is_a_switch_and_moves_what_is_read() -> None:
    times = chain("relu", "lstm", "relu", "tanh").assess().times
    assert times.counts == {"ane": 3, "gpu": 0, "cpu": 1}
    assert times.dispatches == {"ane": 2, "gpu": 0, "cpu": 1}
    assert times.switches == 2
    moved = 2 * (64 * 1024 * 2)  # into the recurrent layer and out of it
    assert times.transfer_bytes == moved
    assert times.transfer_seconds == pytest.approx(2 * assumed("switch_seconds") + 2 * moved / 68.25e9)
    assert times.dispatch_seconds == pytest.approx(2 * assumed("ane_dispatch_seconds") + assumed("cpu_dispatch_seconds"))
    assert times.total == pytest.approx(sum(times.by_unit.values()) + times.dispatch_seconds + times.transfer_seconds)


def test_a_value_that_two_operations_read_moves_once() -> None:
    program = Program(x=tensor(1, 64, 1, 1024))
    made = program.call("relu", tensor(1, 64, 1, 1024), x="x")
    program.call("lstm", tensor(1, 64, 1, 1024), x=made)
    program.call("gru", tensor(1, 64, 1, 1024), x=made)
    assert program.assess().times.transfer_bytes == 64 * 1024 * 2


def test_what_leaves_the_neural_engine_costs_more() -> None:
    placed, wide = chain("conv", "conv", size=16384).assess().times, chain("conv", "conv", size=16385).assess().times
    assert wide.by_unit["gpu"] > placed.by_unit["ane"] > 0
    assert wide.total > placed.total


@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip_has_rates_and_what_is_not_stated_is_marked(chip: str) -> None:
    row, rates = CHIPS[chip], rates_of(CHIPS[chip])
    assert all(fact.value is not None and fact.value > 0 and fact.source for fact in rates.values())
    for name, fact in (("ane_flops", row.engine_flops), ("ane_bandwidth", row.engine_bandwidth), ("gpu_flops", row.gpu_flops)):
        assert (rates[name] == fact) if fact.value is not None else rates[name].confidence == "L"
    assert chain("conv").assess(chip).times.total > 0


def test_marketed_rates_of_int8_are_halved() -> None:
    share = 4.8 / 11
    assert rates_of(CHIPS["m4"])["ane_flops"].value == pytest.approx(38e12 / 2 * share)
    assert rates_of(CHIPS["m2"])["ane_flops"].value == pytest.approx(15.8e12 * share)


def test_it_says_that_it_is_a_model_and_from_what() -> None:
    times = chain("conv").assess().times
    assert times.is_model
    assert set(ASSUMPTIONS) < set(times.assumptions)
    assert all(fact.source and fact.confidence in "HML" for fact in times.assumptions.values())


# ---------------------------------------------------------------- a song


def stages() -> dict[str, Assessment]:
    return {name: chain("conv").assess() for name in ("content_encoder", "text_encoder", "flow", "decoder")}


def test_a_song_is_every_stage_s_windows() -> None:
    """Three minutes are four segments of 38 s and one of 28, with a second of pad at both ends of each."""
    song = predict_song(stages(), {"content_encoder": 2150, "text_encoder": 4096, "flow": 1000, "decoder": 200})
    assert (song.audio_seconds, song.segments) == (180, 5)
    windows = {name: stage.windows for name, stage in song.stages.items()}
    assert windows["content_encoder"] == windows["text_encoder"] == 5
    assert windows["flow"] == 4 * 5 + 4  # 4000 frames in windows of 1000 that keep 952; 3000 in four
    kept = 200 - 2 * 14
    assert windows["decoder"] == 4 * -(-(3800 - 28) // kept) + -(-(2800 - 28) // kept)
    one = chain("conv").assess().times.total
    assert song.total == pytest.approx(one * sum(windows.values()))
    assert song.real_time_factor == pytest.approx(song.total / 180)


@pytest.mark.parametrize(("seconds", "segments"), [(1, 1), (40.9, 1), (41, 2), (76, 2), (77, 3), (180, 5)])
def test_segments_are_cut_as_infer_cuts_them(seconds: float, segments: int) -> None:
    song = predict_song(stages(), dict.fromkeys(stages(), 500), seconds)
    assert song.segments == segments


def test_segments_are_as_many_as_infer_s() -> None:
    audio = np.random.default_rng(0).standard_normal(180 * 16000, dtype=np.float32)
    assert predict_song(stages(), dict.fromkeys(stages(), 500)).segments == len(plan_segments(audio))


def test_a_further_window_of_a_stage_is_told_apart() -> None:
    both = {**stages(), "content_encoder@2150": chain("conv").assess()}
    windows = {"content_encoder": 255, "content_encoder@2150": 2150, "text_encoder": 928, "flow": 928, "decoder": 200}
    song = predict_song(both, windows)
    assert set(song.others) == {"content_encoder@2150"}
    assert song.total == pytest.approx(sum(stage.seconds for stage in song.stages.values()))
    assert song.stages["content_encoder"].windows > song.others["content_encoder@2150"].windows
    alone = predict_song({"content_encoder@2150": both["content_encoder@2150"]}, windows)
    assert set(alone.stages) == {"content_encoder@2150"}


def test_contexts_may_be_given_and_never_fill_the_window() -> None:
    wider = predict_song(stages(), dict.fromkeys(stages(), 500), contexts={"flow": 100})
    plain = predict_song(stages(), dict.fromkeys(stages(), 500))
    assert wider.stages["flow"].windows > plain.stages["flow"].windows
    assert predict_song(stages(), dict.fromkeys(stages(), 20)).total > 0
