"""Conversions timed side by side: by stage, device and precision, and with each optimisation in turn.

Everything that is compared is loaded and warmed up first and then run in turn, round after round, so that a machine
that gets busier slows all of it. Figures are medians over the rounds; ratios are of medians. Measuring a stage makes the
device wait, which would hide what overlapping gains: the whole is timed with nothing measured inside, and stages in
rounds of their own, except on a CPU without overlap, where both are the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RvcCoremlError
from ..golden_outputs.metrics import Comparison, compare
from ..golden_outputs.thresholds import usable
from . import devices
from .config import OptimizationConfig
from .profiling import Profile

RATE = 16000
WHOLE = "whole"  # a conversion while its stages were measured
MOST_MEASURED = 3  # rounds that measure stages apart
REST = "rest"  # of a conversion, outside every measured stage
UPSTREAM = "all off: the work that RVC-WebUI does"
# A switch's name -> the settings it turns on, in the order in which they are added. Settings of None take the device's
# own value, where that differs from the baseline's.
SWITCHES: dict[str, dict[str, Any]] = {
    "only what is kept is synthesised": {"kept_region": True},
    "pieces that fit the cache": {"pieces": True},
    "fused attention": {"fused_attention": True},
    "equal windows batched": {"batch_size": None},
    "retrieval on the device": {"retrieval_device": "device"},
    "high-pass on the device": {"filter_device": "device"},
    "host and device overlap": {"overlap": True},
    "half precision": {"precision": "fp16"},
    "torch.compile": {"compile": True},
}
Audio = NDArray[np.float32]
Progress = Callable[[str, float], None]


class Converts(Protocol):
    """What is timed: a VoiceConverter, or what behaves like one. `executed_by`: stage -> what runs it."""

    @property
    def executed_by(self) -> dict[str, str]: ...

    def convert(self, audio: Audio, sample_rate: int, /) -> tuple[Audio, int]: ...


Make = Callable[[str, OptimizationConfig, Profile], Converts]


@dataclass(frozen=True)
class Case:
    """One thing to time: a configuration on a device."""

    name: str
    device: str
    config: OptimizationConfig


@dataclass
class Timing:
    """What one case took: seconds of each round, and of each stage in the rounds that measured them; `first` is the warm-up's."""

    case: Case
    first: float = 0.0
    rounds: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    output: Audio | None = None
    executed_by: dict[str, str] = field(default_factory=dict)  # after falling back, where a stage had to
    problem: str = ""

    @property
    def seconds(self) -> float:
        """Median of a conversion; NaN where there is none."""
        return statistics.median(self.rounds) if self.rounds else float("nan")

    def by_stage(self) -> dict[str, float]:
        """Stage -> median seconds: outermost stages, and what none of them covers."""
        names = dict.fromkeys(name for times in self.stages for name in times if "/" not in name and name != WHOLE)
        if not self.stages:
            return {}
        rest = statistics.median(times[WHOLE] - sum(times.get(name, 0.0) for name in names) for times in self.stages)
        return {name: statistics.median(times.get(name, 0.0) for times in self.stages) for name in names} | {REST: max(0.0, rest)}


def cases(chosen: Sequence[str], precisions: Sequence[str], config: Callable[[str], OptimizationConfig]) -> list[Case]:
    """Every device in every precision; packages have their own, so `coreml` is one case. Raises UsageError for a missing device."""
    found = []
    for device in dict.fromkeys(chosen):
        devices.require_device(device)
        base = config(device)
        if devices.kind_of(device) == "coreml":
            found.append(Case("coreml", device, base))
            continue
        for precision in dict.fromkeys(precisions or (base.precision,)):
            found.append(Case(f"{device} {precision}", device, replace(base, precision=precision).resolved(device)))
    return found


def time_cases(make: Make, given: Sequence[Case], audio: Audio, runs: int, progress: Progress | None = None) -> list[Timing]:
    """Warm every case up, then run all of them `runs` times in turn. One that fails keeps its problem and no times."""
    timings = [Timing(case) for case in given]
    ready: list[tuple[Timing, Converts, Profile]] = []
    measured = min(runs, MOST_MEASURED)
    steps, done = len(given) * (1 + runs + measured), 0

    def report(name: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(name, done / steps)

    for timing in timings:
        case = timing.case
        profile = Profile("mps" if case.device == "coreml" and "mps" in devices.available_devices() else case.device)
        profile.active = False
        try:
            converter = make(case.device, case.config, profile)
            with devices.threads(case.config.threads):
                timing.first, (timing.output, _rate) = _timed(converter, audio, case.device)
        except (RvcCoremlError, RuntimeError, NotImplementedError, OSError, MemoryError) as error:
            timing.problem = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            timing.executed_by = converter.executed_by
            ready.append((timing, converter, profile))
        report(f"warming up {case.name}")
    for number in range(runs + measured):
        for timing, converter, profile in ready:
            case = timing.case
            at_once = devices.kind_of(case.device) == "cpu" and not case.config.overlap
            profile.active = number >= runs or at_once
            if not (at_once and number >= runs):
                with devices.threads(case.config.threads):
                    seconds, _output = _timed(converter, audio, case.device)
                if number < runs:
                    timing.rounds.append(seconds)
                if profile.active:
                    timing.stages.append(profile.take() | {WHOLE: seconds})
            report(case.name)
    return timings


def _timed(converter: Converts, audio: Audio, device: str) -> tuple[float, tuple[Audio, int]]:
    devices.synchronize(device)
    start = time.perf_counter()
    result = converter.convert(audio, RATE)
    devices.synchronize(device)
    return time.perf_counter() - start, result


@dataclass(frozen=True)
class Step:
    """A line of the ablation: a configuration, its time, and its output against the baseline's."""

    name: str
    timing: Timing
    before: Timing  # what the gain is counted against
    baseline: Timing
    kept: bool  # whether the following lines have it on as well

    @property
    def gain(self) -> float:
        """How many times faster than the line it is added to."""
        return self.before.seconds / self.timing.seconds

    @property
    def total(self) -> float:
        """How many times faster than the baseline."""
        return self.baseline.seconds / self.timing.seconds

    @property
    def agreement(self) -> Comparison | None:
        """None where there is nothing to compare: a failure, or another length."""
        ours, theirs = self.timing.output, self.baseline.output
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return None
        return compare(theirs, ours)

    @property
    def correct(self) -> bool:
        """Whether the output is the baseline's, to within what half precision may cost."""
        found = self.agreement
        return found is not None and usable(found)


def ablation_cases(device: str, config: OptimizationConfig) -> tuple[list[Case], list[str]]:
    """The baseline, then each switch added to those before it; and the switches that this configuration leaves off.

    Those come last, each alone on top of all that are on. `config` is what the device would run with.
    """
    on = {name: settings for name, settings in SWITCHES.items() if _is_on(config, settings)}
    left = {name: settings for name, settings in SWITCHES.items() if name not in on and _applies(name, device)}
    current = replace(OptimizationConfig.upstream(), threads=config.threads, piece_frames=config.piece_frames)
    found = [Case(UPSTREAM, device, current)]
    for name, settings in on.items():
        current = replace(current, **{key: getattr(config, key) for key in settings})
        found.append(Case(name, device, current))
    return found + [Case(name, device, replace(current, **settings)) for name, settings in left.items()], list(left)


def _is_on(config: OptimizationConfig, settings: dict[str, Any]) -> bool:
    """Whether a configuration has a switch on; a batch of any size but one is."""
    return all(getattr(config, key) != 1 if key == "batch_size" else getattr(config, key) == value for key, value in settings.items())


def _applies(name: str, device: str) -> bool:
    """Whether a switch that is off could be on: on the CPU host and device are one, and half precision is far slower."""
    elsewhere = name in ("retrieval on the device", "high-pass on the device", "half precision")
    return not (elsewhere and devices.kind_of(device) in ("cpu", "coreml"))


def ablate(make: Make, device: str, config: OptimizationConfig, audio: Audio, runs: int, progress: Progress | None = None) -> list[Step]:
    """The baseline and the gain of each optimisation in turn, measured in one interleaved run."""
    given, left = ablation_cases(device, config)
    timings = time_cases(make, given, audio, runs, progress)
    baseline, steps, before = timings[0], [], timings[0]
    for timing in timings:
        kept = timing.case.name not in left
        steps.append(Step(timing.case.name, timing, before, baseline, kept))
        if kept and not timing.problem:
            before = timing
    return steps


def markdown(steps: Sequence[Step], seconds: float) -> str:
    """The ablation as a Markdown table. `seconds` of audio were converted."""
    lines = [
        "| added | seconds | gain | faster than the baseline | real-time factor | SNR against the baseline |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for step in steps:
        name = step.name if step.kept else f"({step.name}: off by default)"
        if step.timing.problem:
            lines.append(f"| {name} | failed | - | - | - | {step.timing.problem.replace('|', '/')} |")
            continue
        first = step is steps[0]
        gain, total = ("-", "-") if first else (f"{step.gain:.2f}x", f"{step.total:.2f}x")
        took = step.timing.seconds
        lines.append(f"| {name} | {took:.3f} | {gain} | {total} | {took / seconds:.3f} | {'-' if first else agreement_text(step)} |")
    return "\n".join(lines)


def agreement_text(step: Step) -> str:
    """SNR in words; an output that is wrong says so."""
    found = step.agreement
    if found is None:
        return "WRONG: another length" if step.timing.output is not None else "-"
    if not found.finite:
        return "WRONG: not finite"
    shown = "equal" if found.snr_db == np.inf else f"{found.snr_db:.1f} dB"
    return shown if step.correct else f"WRONG: {shown}, level {found.level:.2f}"


def report(timings: Sequence[Timing], seconds: float, steps: Sequence[Step] = ()) -> dict[str, Any]:
    """For JSON: every round of every case, medians by stage, and the ablation."""
    found: dict[str, Any] = {"audio_seconds": round(seconds, 3), "cases": [_case(timing, seconds) for timing in timings]}
    if steps:
        found["ablation"] = [
            {
                **_case(step.timing, seconds),
                "kept": step.kept,
                "gain": _number(step.gain),
                "faster_than_baseline": _number(step.total),
                "agreement": step.agreement.as_dict() if step.agreement else None,
                "correct": step.correct,
            }
            for step in steps
        ]
    return found


def _case(timing: Timing, seconds: float) -> dict[str, Any]:
    return {
        "name": timing.case.name,
        "device": timing.case.device,
        "config": timing.case.config.as_dict(),
        "executed_by": timing.executed_by,
        "problem": timing.problem or None,
        "first_seconds": timing.first,
        "seconds": _number(timing.seconds),
        "real_time_factor": _number(timing.seconds / seconds),
        "rounds": timing.rounds,
        "stages": timing.by_stage(),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def example_voice(seconds: float, seed: int = 0) -> Audio:
    """Something to convert where no file is given: sung syllables with vibrato, breath and pauses, 16 kHz (N,)."""
    generator = np.random.default_rng(seed)
    time_axis = np.arange(max(1, round(seconds * RATE))) / RATE
    hertz = 180 * 2 ** (np.sin(2 * np.pi * 0.23 * time_axis) / 2) * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * time_axis))
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    voice = np.sum([np.sin(number * phase) / number**1.3 for number in range(1, 16)], axis=0)
    syllables = np.clip(1.5 * np.sin(2 * np.pi * 1.4 * time_axis) + 0.9, 0, 1) * (np.sin(2 * np.pi * 0.11 * time_axis) > -0.9)
    sound = 0.25 * voice * syllables + 0.01 * generator.standard_normal(len(time_axis))
    return sound.astype(np.float32)
