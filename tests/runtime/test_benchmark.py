"""What a benchmark says is what its converters did: times, stages, gains, and outputs that are wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rvc_coreml.errors import BackendError, UsageError
from rvc_coreml.runtime import benchmark, devices
from rvc_coreml.runtime.benchmark import REST, SWITCHES, UPSTREAM, Case, Timing, ablate, ablation_cases, cases, markdown, time_cases
from rvc_coreml.runtime.benchmark_chart import draw
from rvc_coreml.runtime.config import DEVICES, OptimizationConfig
from rvc_coreml.runtime.profiling import Profile

AUDIO = np.linspace(-0.5, 0.5, 1600, dtype=np.float32)
CPU = OptimizationConfig.for_cpu()
Change = Callable[[OptimizationConfig, np.ndarray], np.ndarray]
Broken = Callable[[OptimizationConfig], bool]


class Clock:
    """Seconds that pass only when a fake converter says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def maker(clock: Clock, change: Change = lambda _config, audio: audio, broken: Broken = lambda _config: False) -> benchmark.Make:
    """Converters that take 10 s, less for each switch, 6 of every 10 in the decoder; each conversion is logged."""

    class Fake:
        log: list[tuple[str, bool]] = []  # noqa: RUF012

        def __init__(self, device: str, config: OptimizationConfig, profile: Profile) -> None:
            self.device, self.config, self.profile = device, config, profile
            profile._clock = lambda: clock.now
            if broken(config):
                raise BackendError("this cannot be done here")

        @property
        def executed_by(self) -> dict[str, str]:
            return {"decoder": f"torch ({self.device})"}

        def seconds(self) -> float:
            config = self.config
            return 10.0 / ((1.4 if config.kept_region else 1) * (1.5 if config.pieces else 1) * (2 if config.precision == "fp16" else 1))

        def convert(self, audio: np.ndarray, rate: int, /) -> tuple[np.ndarray, int]:
            assert rate == 16000
            self.log.append((self.device, self.profile.active))
            with self.profile.measure("decoder"), self.profile.measure("inner"):
                clock.now += 0.6 * self.seconds()
            with self.profile.measure("pitch"):
                clock.now += 0.3 * self.seconds()
            clock.now += 0.1 * self.seconds()
            return change(self.config, audio.copy()), 40000

    return Fake


def test_medians_by_stage_are_what_the_converter_spent(clock: Clock) -> None:
    (timing,) = time_cases(maker(clock), [Case("cpu", "cpu", CPU)], AUDIO, 4)
    whole = 10 / 1.4 / 1.5
    assert timing.rounds == pytest.approx([whole] * 4)
    assert timing.by_stage() == pytest.approx({"decoder": 0.6 * whole, "pitch": 0.3 * whole, REST: 0.1 * whole})
    assert sum(timing.by_stage().values()) == pytest.approx(timing.seconds)
    assert timing.first == pytest.approx(whole)
    assert timing.executed_by == {"decoder": "torch (cpu)"}


def test_cases_take_turns_after_all_are_warm(clock: Clock) -> None:
    make = maker(clock)
    given = [Case("a", "cpu", CPU), Case("b", "cpu", OptimizationConfig.upstream())]
    seen: list[tuple[str, float]] = []
    time_cases(make, given, AUDIO, 2, lambda name, share: seen.append((name, share)))
    assert [name for name, _share in seen[:6]] == ["warming up a", "warming up b", "a", "b", "a", "b"]
    assert seen[-1][1] == pytest.approx(1.0)
    assert [share for _name, share in seen] == sorted(share for _name, share in seen)


def test_what_overlaps_is_timed_with_nothing_measured_and_stages_apart(clock: Clock) -> None:
    make = maker(clock)
    (timing,) = time_cases(make, [Case("cpu", "cpu", OptimizationConfig(overlap=True))], AUDIO, 5)
    assert [active for _device, active in make.log] == [False] * 6 + [True] * 3  # type: ignore[attr-defined]
    assert len(timing.rounds) == 5
    assert len(timing.stages) == 3
    make = maker(clock)
    time_cases(make, [Case("cpu", "cpu", CPU)], AUDIO, 5)
    assert [active for _device, active in make.log[-5:]] == [True] * 5  # type: ignore[attr-defined]


def test_a_case_that_cannot_run_is_told_and_the_others_go_on(clock: Clock) -> None:
    given = [Case("bad", "cpu", OptimizationConfig(compile=True)), Case("good", "cpu", CPU)]
    bad, good = time_cases(maker(clock, broken=lambda config: config.compile), given, AUDIO, 2)
    assert "cannot be done" in bad.problem
    assert bad.rounds == []
    assert len(good.rounds) == 2
    report = json.loads(json.dumps(benchmark.report([bad, good], 1.0), allow_nan=False))
    assert [case["seconds"] is None for case in report["cases"]] == [True, False]


@pytest.mark.parametrize("device", DEVICES)
def test_an_ablation_goes_from_everything_off_to_what_the_device_runs_with(device: str) -> None:
    config = OptimizationConfig.for_device(device)
    found, left = ablation_cases(device, config)
    on = [case for case in found if case.name not in left]
    assert found[0].name == UPSTREAM
    assert found[0].config == OptimizationConfig.upstream()
    assert on[-1].config == config
    assert [case.name for case in found[len(on) :]] == left
    assert "torch.compile" in left
    for before, case in pairwise(on):
        changed = {name for name, value in case.config.as_dict().items() if before.config.as_dict()[name] != value}
        assert changed == set(SWITCHES[case.name])
    for case in found[len(on) :]:
        changed = {name for name, value in case.config.as_dict().items() if config.as_dict()[name] != value}
        assert changed == set(SWITCHES[case.name])


def test_every_switch_of_the_configuration_is_in_the_ablation() -> None:
    covered = {name for settings in SWITCHES.values() for name in settings}
    placement = {"load_limit", "prediction_factor", "first_sound_seconds", "watch_every", "compiled_cache_bytes"}
    assert covered == set(OptimizationConfig().as_dict()) - {"profiling", "threads", "piece_frames"} - placement
    upstream, default = OptimizationConfig.upstream().as_dict(), OptimizationConfig(compile=True).resolved("cuda").as_dict()
    assert all(upstream[name] != default[name] for name in covered - {"precision", "retrieval_device", "filter_device"})


def test_gains_are_ratios_of_medians_to_the_line_before_and_to_the_baseline(clock: Clock) -> None:
    steps = ablate(maker(clock), "cpu", CPU, AUDIO, 3)
    found = {step.name: step for step in steps}
    kept, pieces = found["only what is kept is synthesised"], found["pieces that fit the cache"]
    assert (kept.gain, kept.total) == pytest.approx((1.4, 1.4))
    assert (pieces.gain, pieces.total) == pytest.approx((1.5, 2.1))
    last = found["equal windows batched"]
    assert (last.gain, last.total) == pytest.approx((1.0, 2.1))
    assert found["torch.compile"].total == pytest.approx(2.1)
    assert not found["torch.compile"].kept
    assert all(step.correct for step in steps)
    text = markdown(steps, 0.1)
    assert "| pieces that fit the cache | 4.762 | 1.50x | 2.10x | 47.619 | equal |" in text
    assert "(torch.compile: off by default)" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def nan(config: OptimizationConfig, audio: np.ndarray) -> np.ndarray:
    return audio * np.float32(np.nan) if config.pieces else audio


def louder(config: OptimizationConfig, audio: np.ndarray) -> np.ndarray:
    return 4 * audio if config.pieces else audio


def shorter(config: OptimizationConfig, audio: np.ndarray) -> np.ndarray:
    return audio[:-1] if config.pieces else audio


def noisy(config: OptimizationConfig, audio: np.ndarray) -> np.ndarray:
    return audio + np.random.default_rng(0).standard_normal(len(audio)).astype(np.float32) * 0.02 if config.pieces else audio


@pytest.mark.parametrize("change", [nan, louder, shorter, noisy])
def test_a_faster_wrong_answer_shows(clock: Clock, change: Change) -> None:
    steps = {step.name: step for step in ablate(maker(clock, change), "cpu", CPU, AUDIO, 1)}
    assert steps["only what is kept is synthesised"].correct
    wrong = steps["pieces that fit the cache"]
    assert not wrong.correct
    assert "WRONG" in markdown([steps[UPSTREAM], wrong], 1.0)
    report = benchmark.report([], 1.0, list(steps.values()))
    assert [line["correct"] for line in report["ablation"]][:3] == [True, True, False]


def test_rounding_does_not_count_as_wrong(clock: Clock) -> None:
    steps = ablate(maker(clock, lambda config, audio: audio * (1 + 1e-4 * config.pieces)), "cpu", CPU, AUDIO, 1)
    assert all(step.correct for step in steps)
    assert "80.0 dB" in markdown(steps, 1.0)


def test_a_switch_that_fails_leaves_the_gains_of_the_others(clock: Clock) -> None:
    make = maker(clock, broken=lambda config: config.fused_attention and config.batch_size == 1)
    steps = {step.name: step for step in ablate(make, "cpu", CPU, AUDIO, 1)}
    failed = steps["fused attention"]
    assert not failed.correct
    assert "failed" in markdown(list(steps.values()), 1.0)
    assert steps["pieces that fit the cache"].gain == pytest.approx(1.5)
    assert steps["equal windows batched"].gain == pytest.approx(1.0)


def test_cases_are_devices_times_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_devices", lambda: ["coreml", "mps", "cpu"])
    found = cases(["cpu", "coreml", "cpu", "mps"], ["fp32", "fp16", "fp32"], OptimizationConfig.for_device)
    assert [case.name for case in found] == ["cpu fp32", "cpu fp16", "coreml", "mps fp32", "mps fp16"]
    assert [case.config.precision for case in found if case.device == "cpu"] == ["fp32", "fp16"]
    assert [case.name for case in cases(["cpu"], [], OptimizationConfig.for_device)] == ["cpu fp32"]
    with pytest.raises(UsageError, match="cuda"):
        cases(["cuda"], [], OptimizationConfig.for_device)
    with pytest.raises(UsageError, match="fp8"):
        cases(["cpu"], ["fp8"], OptimizationConfig.for_device)


def test_the_example_is_voiced_bounded_and_repeatable() -> None:
    sound = benchmark.example_voice(3.0)
    assert sound.shape == (48000,)
    assert 0.2 < np.abs(sound).max() < 1
    assert np.array_equal(sound, benchmark.example_voice(3.0))
    from rvc_coreml.runtime.pitch import estimate_pitch

    hertz = estimate_pitch(sound, "dio")
    assert np.mean(hertz > 0) > 0.3
    assert 120 < np.median(hertz[hertz > 0]) < 260


def test_the_chart_has_a_bar_for_every_case_and_stage(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **named: (figures.append(self), save(self, *given, **named))[1])
    timings = time_cases(
        maker(clock), [Case("cpu fp32", "cpu", CPU), Case("cpu fp16", "cpu", OptimizationConfig(precision="fp16"))], AUDIO, 1
    )
    steps = ablate(maker(clock), "cpu", CPU, AUDIO, 1)
    draw(timings, steps, tmp_path / "chart.png", "a $title$ with _marks_")
    above, below = figures[0].axes
    assert [label.get_text() for label in above.get_yticklabels()] == ["cpu fp32", "cpu fp16"]
    ends = sorted({round(bar.get_x() + bar.get_width(), 3) for bar in above.patches if bar.get_y() < 0.5})
    assert ends[-1] == pytest.approx(10 / 1.4 / 1.5, abs=1e-3)
    assert len(below.get_yticklabels()) == len(steps)
    assert {text.get_text() for text in above.get_legend().get_texts()} == {"decoder", "pitch", REST}
    assert (tmp_path / "chart.png").stat().st_size > 5000
    assert list(tmp_path.iterdir()) == [tmp_path / "chart.png"]


def test_nothing_to_draw_is_no_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw([Timing(Case("cpu", "cpu", CPU))], [], tmp_path / "chart.svg", "empty")
    assert (tmp_path / "chart.svg").exists()


def test_the_command_line_reads_a_file_from_its_beginning(tmp_path: Path) -> None:
    from rvc_coreml.cli.benchmark import _recorded

    path = tmp_path / "in.wav"
    soundfile.write(path, np.tile(AUDIO, 40), 16000)
    assert _recorded(path, 2.0).shape == (32000,)
    assert _recorded(path, 60.0).shape == (64000,)
