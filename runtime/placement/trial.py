"""One candidate tried on one stage: loaded, run on goldens, judged, timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from ...errors import BackendError, RvcCoremlError, WorkerFailure
from ...golden_outputs.golden import Golden
from ...golden_outputs.metrics import Comparison
from ...golden_outputs.thresholds import Verdict, judge, usable
from ..backends.base import Packaged, PackageRunner, StageRunner, predict_arrays
from ..backends.coreml_backend import CoreMLBackend
from .candidates import Candidate
from .record import WHEN

GOOD, DEGRADED, BROKEN, FAILED, SLOW = "good", "degraded", "broken", "failed", "slow"  # what became of a candidate
UNSTARTED = "unstarted"  # nothing did: Core ML's process does not start
USABLE = (GOOD, DEGRADED)
LEAST_PREDICTION_SECONDS = 5.0  # that a prediction may always take: the golden's own time is milliseconds


@dataclass
class Trial:
    """What was found. `runner` is there where the candidate may serve. Seconds; `reason` says what is wrong."""

    verdict: str
    reason: str = ""
    runner: StageRunner | None = None
    snr_db: float | None = None
    level: float | None = None
    load_seconds: float | None = None
    first_load_seconds: float | None = None  # where `load_seconds` is a second one
    prediction_seconds: float | None = None

    @property
    def usable(self) -> bool:
        return self.verdict in USABLE

    def as_record(self) -> dict[str, Any]:
        """JSON of all but the runner."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "snr_db": _rounded(self.snr_db, 2),
            "level": _rounded(self.level, 4),
            "load_seconds": _rounded(self.load_seconds, 4),
            "first_load_seconds": _rounded(self.first_load_seconds or self.load_seconds, 4),
            "prediction_seconds": _rounded(self.prediction_seconds, 6),
            "when": time.strftime(WHEN),
        }


def attempt(
    candidate: Candidate,
    component: Packaged,
    stage: str,
    goldens: Sequence[Golden],
    load_limit: float | None = None,
    prediction_limit: float | None = None,
    short: bool = False,
) -> Trial:
    """Load, then run the goldens in turn; the first decides how long predictions take. Never raises for what a backend does.

    Limits are Core ML's, in seconds. `short`: running out of them says nothing but that it is slow.
    """
    started = time.perf_counter()
    runner: StageRunner | None = None
    trial = Trial(GOOD)
    try:
        runner = load(candidate, component, stage, load_limit)
        trial.load_seconds = time.perf_counter() - started
        limit_predictions(runner, prediction_limit)
        for golden in goldens:
            begun = time.perf_counter()
            outputs = predict_arrays(runner, golden.inputs)
            if trial.prediction_seconds is None:
                trial.prediction_seconds = time.perf_counter() - begun
            _judge(trial, golden, outputs, precision_of(candidate, component, stage))
            if not trial.usable:
                break
    except Exception as error:  # noqa: BLE001 - any failure of a backend is answered by the next one
        trial.verdict, trial.reason = verdict_of(error, short), reason_of(error)
    if trial.usable:
        trial.runner = runner
    elif runner is not None:
        unload(runner)
    return trial


def load(candidate: Candidate, component: Packaged, stage: str, limit: float | None = None) -> StageRunner:
    """`limit` is Core ML's, in seconds."""
    if isinstance(candidate.backend, CoreMLBackend):
        return candidate.backend.load(component, stage, limit=limit)
    return candidate.backend.load(component, stage)


def precision_of(candidate: Candidate, component: Packaged, stage: str) -> str:
    """Whose limits a candidate's outputs are judged by."""
    backend = candidate.backend
    return str(getattr(backend, "precision", component.precision(stage)))


def limit_predictions(runner: StageRunner, seconds: float | None) -> None:
    """The time that Core ML may take for one; other runners have none."""
    if isinstance(runner, PackageRunner) and hasattr(runner.model, "prediction_limit"):
        runner.model.prediction_limit = seconds


def unload(runner: StageRunner) -> None:
    """Give back what a package takes in Core ML."""
    with suppress(RvcCoremlError):
        if isinstance(runner, PackageRunner) and hasattr(runner.model, "unload"):
            runner.model.unload()


def wrong(golden: Golden, outputs: Mapping[str, Any]) -> str | None:
    """What is wrong with a golden's outputs; None where they are usable."""
    trial = Trial(GOOD)
    _judge(trial, golden, outputs, "fp16")
    return None if trial.usable else trial.reason


def _judge(trial: Trial, golden: Golden, outputs: Mapping[str, Any], precision: str) -> None:
    """Into the trial: the worst verdict so far and its figures, a reason where it is broken."""
    try:
        compared = golden.compare(cast("Any", outputs), audio=False)
    except ValueError as error:
        trial.verdict, trial.reason = BROKEN, f"its golden output cannot be compared: {error}"
        return
    for name, comparison in compared.items():
        if trial.snr_db is None or not comparison.snr_db >= trial.snr_db:
            trial.snr_db, trial.level = comparison.snr_db, comparison.level
        if not usable(comparison):
            trial.verdict, trial.reason = BROKEN, f"its golden output {name} is {_fault(comparison)}"
            return
        if judge(comparison, golden.what, precision).verdict is not Verdict.GOOD:
            trial.verdict = DEGRADED


def _fault(comparison: Comparison) -> str:
    if not comparison.finite:
        return "not finite"
    return f"wrong (SNR {comparison.snr_db:.1f} dB, level {comparison.level:.2f})"


def verdict_of(error: Exception, short: bool = False) -> str:
    """On a candidate that raised; `short` as in `attempt`."""
    kind = error.kind if isinstance(error, WorkerFailure) else ""
    if kind == "unstarted":
        return UNSTARTED
    return SLOW if short and kind == "timeout" else FAILED


def reason_of(error: Exception) -> str:
    """On one line; errors that are not ours say what they are."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if isinstance(error, (BackendError, RvcCoremlError)) else f"it failed ({type(error).__name__}: {text})"


def _rounded(value: float | None, digits: int) -> float | None:
    """JSON has no infinity and no NaN."""
    return round(value, digits) if value is not None and abs(value) < float("inf") else None
