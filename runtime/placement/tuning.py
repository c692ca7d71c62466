"""Measuring what a start has no time for: every candidate of every stage, on all goldens, and the fastest correct one is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ...errors import BackendError, UsageError
from ..backends.base import Packaged, StageRunner, predict_arrays
from ..backends.coreml_backend import CoreMLBackend, require_coreml
from ..config import OptimizationConfig
from ..goldens import GATE
from ..library import Component, Library
from ..manifest import stage_of_entry
from .candidates import STAGES, Candidate
from .decisions import Decisions
from .placement import Notify, Placement
from .record import fastest, is_usable, own_entry
from .trial import Trial, attempt, load, reason_of, unload, verdict_of

REPEATS = 5  # predictions of the gate whose median counts, after those that judged it
LEAST_SECONDS = 0.2  # of repeats, where they are quick: short ones vary
MOST_REPEATS = 25
Progress = Callable[[str, float], None]


def tune(
    library: Library,
    voices: Collection[str] | None = None,
    stages: Collection[str] | None = None,
    *,
    backend: CoreMLBackend | None = None,
    config: OptimizationConfig | None = None,
    notify: Notify = lambda _line: None,
    progress: Progress = lambda _step, _share: None,
    decisions: Decisions | None = None,
    again: bool = False,
) -> list[dict[str, Any]]:
    """The placement table of the stages (None: all), of the voices named (None: all) and what they share, after measuring.

    A program that was tuned before, for this voice or another of its shape, is only checked on what was chosen, unless
    `again`. Raises BackendError without Core ML, UsageError for a stage, LibraryError for a voice that the library has not.
    """
    require_coreml()
    unknown = sorted(set(stages or ()) - set(STAGES))
    if unknown:
        raise UsageError(f"there is no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    config = config or OptimizationConfig.load("coreml")
    placement = Placement(backend or CoreMLBackend(), notify, config=config, decisions=decisions)
    work = [
        unit
        for component in _components(library, voices)
        for stage in component.manifest.stages
        if stages is None or stage_of_entry(stage) in stages
        for unit in placement.units(component, stage)
    ]
    if not work:
        raise UsageError(f"{library.path} has none of the stages {', '.join(stages or ())}: there is nothing to tune")
    placement.start_worker()
    before: Path | None = None
    for number, (component, stage) in enumerate(work):

        def report(step: str, share: float, number: int = number) -> None:
            progress(step, (number + share) / len(work))

        if component.build != before:  # memory holds one voice's network, however many the library has
            for torch in placement.torch_backends:
                torch.release()
        before = component.build
        tune_stage(placement, component, stage, report, again)
    progress("done", 1.0)
    return [placement.known(component, stage) for component, stage in work]


def _components(library: Library, voices: Collection[str] | None) -> list[Component]:
    """What the voices need, themselves last."""
    chosen = [library.voice(name) for name in (library.voice_names() if voices is None else voices)]
    shared = [library.content_encoder()] if library.has_content_encoder() else []
    return [*shared, *(library.pitch_model(kind) for kind in library.pitch_kinds()), *chosen]


def tune_stage(placement: Placement, component: Packaged, stage: str, progress: Progress, again: bool = False) -> None:
    """Measure one stage's candidates and note the fastest correct one."""
    record = placement.record(component, stage)
    names = [candidate.name for candidate in placement.candidates]
    if record.get("tuned") and record.get("chosen") in names and not again:
        chosen = placement.candidates[names.index(record["chosen"])]
        if is_usable(own_entry(record, placement.package(component), chosen.name)):
            return
        progress(f"{component.title}, {stage}: checking {chosen.name}", 0.0)
        if _measured(placement, component, stage, chosen):
            return
    for number, candidate in enumerate(placement.candidates):
        progress(f"{component.title}, {stage}: {candidate.name}", number / len(placement.candidates))
        _measured(placement, component, stage, candidate)
    placement.settle(component, stage, fastest(placement.record(component, stage), names))


def _measured(placement: Placement, component: Packaged, stage: str, candidate: Candidate) -> bool:
    """Try a candidate with all goldens and all the time there is, and remember what came of it; whether it is correct."""
    goldens = component.goldens(stage)
    ordered = [goldens[GATE], *(golden for case, golden in goldens.items() if case != GATE)]
    trial = attempt(candidate, component, stage, ordered, placement.config.load_limit)
    if trial.runner is not None:
        try:
            trial.prediction_seconds = median_seconds(trial.runner, ordered[0].inputs)
            if candidate.is_core_ml:
                trial.load_seconds = _second_load(placement, component, stage, candidate, trial)
        except BackendError as error:
            trial.verdict, trial.reason = verdict_of(error), reason_of(error)
        finally:
            unload(trial.runner)
    placement.remember(component, stage, candidate, trial, anew=True)
    if placement.unstarted:
        raise BackendError(f"nothing can be measured: {placement.unstarted}")
    return trial.usable


def _second_load(placement: Placement, component: Packaged, stage: str, candidate: Candidate, trial: Trial) -> float:
    """Seconds that loading takes once Core ML has compiled it; the first time is kept beside it."""
    trial.first_load_seconds = trial.load_seconds
    if trial.runner is not None:
        unload(trial.runner)
    begun = time.perf_counter()
    unload(load(candidate, component, stage, placement.config.load_limit))
    return time.perf_counter() - begun


def median_seconds(runner: StageRunner, inputs: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of a prediction."""
    taken: list[float] = []
    while len(taken) < REPEATS or (sum(taken) < LEAST_SECONDS and len(taken) < MOST_REPEATS):
        begun = clock()
        predict_arrays(runner, inputs)
        taken.append(clock() - begun)
    return statistics.median(taken)


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A placement table in text, a line for each candidate of each stage; TABLE_HEADINGS are its headings."""
    lines = []
    for row in rows:
        serving = row["ran_on"] or row["chosen"]
        for number, item in enumerate(row["candidates"]):
            mark = "*" if item["name"] == serving else ""
            first = [row["component"], row["stage"]] if number == 0 else ["", ""]
            milliseconds = None if item["prediction_seconds"] is None else 1000 * item["prediction_seconds"]
            figures = [_shown(item["snr_db"], ".1f"), _shown(item["load_seconds"], ".2f"), _shown(milliseconds, ".1f")]
            lines.append([*first, mark, item["name"], item["verdict"] or "not measured", *figures, item["reason"] or ""])
    return lines


TABLE_HEADINGS = ["component", "stage", "", "runs on", "verdict", "SNR dB", "load s", "prediction ms", "remark"]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
