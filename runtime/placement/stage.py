"""One stage that runs on the first candidate found correct, is watched while it does, and moves on when that one goes bad."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import LibraryError, StrictError
from ...golden_outputs.golden import Golden
from ..backends.base import Packaged, StageRunner, Tensors, predict_arrays
from ..goldens import GATE
from .candidates import NEURAL_ENGINE, Candidate
from .record import age, is_usable, known_entry, own_entry
from .trial import BROKEN, LEAST_PREDICTION_SECONDS, SLOW, Trial, attempt, limit_predictions, reason_of, unload, verdict_of, wrong
from .watch import LevelWatch, finite, valid_frames

if TYPE_CHECKING:
    from .placement import Placement

PARTIAL = "short"  # the case that is run again as well where windows were not full
KNOWN_FACTOR = 3.0  # times what loading took before: beyond, something has changed, such as the system's own cache
SLOW_SECONDS = 86400.0  # after which a start gives another share of its time to what was slow
TUNE = "'rvc-coreml tune'"


class PlacedStage:
    """Predicts as a StageRunner does. The last candidate is trusted: it defines correct."""

    def __init__(self, component: Packaged, stage: str, owner: Placement) -> None:
        self.component = component
        self.stage = stage
        self.trials: dict[str, Trial] = {}
        self._owner = owner
        self._queue = owner.queue(component, stage)
        self._goldens: dict[str, Golden] = {}
        self._watch: LevelWatch | None = None
        self._trusted: StageRunner | None = None
        self._since = 0  # predictions since the golden was last run
        self._partial = False  # whether one of them was of a window that was not full
        self._moved = False  # a candidate that had predicted since then was given up
        self._candidate, self._runner = self._place()

    @property
    def executed_by(self) -> str:
        """Name of what serves, with its device or compute units."""
        return self._candidate.name

    @property
    def candidate(self) -> Candidate:
        return self._candidate

    @property
    def window(self) -> int | None:
        """Frames that the runner which serves now always takes; None where it takes any number."""
        return self._runner.window

    @property
    def device(self) -> torch.device:
        return self._runner.device

    @property
    def due(self) -> bool:
        """Whether so much was predicted that the golden should be run again."""
        return self._moved or (self._candidate.is_core_ml and self._since >= self._owner.config.watch_every)

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        """One window. A failure or a wrong value moves the stage on and the window is run again."""
        while self._queue:
            verdict = BROKEN
            try:
                outputs = self._runner.predict(inputs, wanted)
                reason = self._complaint(inputs, outputs)
            except Exception as error:  # noqa: BLE001 - any failure of a backend is answered by the next one
                outputs, verdict, reason = {}, verdict_of(error), reason_of(error)
            if reason is None:
                self._since += 1
                return outputs
            self._move_on(reason, verdict)
        return self._runner.predict(inputs, wanted)

    def verify(self) -> bool:
        """Run the golden again. False: the stage has moved on, and what came since the last time is to be computed again."""
        moved, self._moved = self._moved, False
        if self._candidate.is_core_ml and self._since and not moved:
            reason = self._recheck()
            if reason is not None:
                self._move_on(reason, BROKEN)
                moved, self._moved = True, False
        self._since, self._partial = 0, False
        return not moved

    def _complaint(self, inputs: Mapping[str, Tensor], outputs: Tensors) -> str | None:
        """What is wrong with a window, as far as it shows without its right result."""
        if not finite(outputs):
            return "its output is not finite"
        if not self._candidate.is_core_ml or self._watch is None:
            return None
        valid = valid_frames(inputs)
        self._partial |= valid < (self.window or valid)
        unusual = self._watch.unusual(outputs, valid)
        if not unusual:
            return None
        if self._trusted is None:
            self._trusted = self._owner.candidates[-1].backend.load(self.component, self.stage)
        return self._watch.confirm(unusual, dict(inputs), outputs, valid, self._trusted)

    def _recheck(self) -> str | None:
        """What is wrong with the goldens now; None where they are still right."""
        cases = [GATE, *([PARTIAL] if self._partial and PARTIAL in self._goldens else [])]
        for case in cases:
            golden = self._goldens[case]
            try:
                reason = wrong(golden, predict_arrays(self._runner, golden.inputs))
            except Exception as error:  # noqa: BLE001 - as in predict
                reason = reason_of(error)
            if reason is not None:
                return f"{reason}, after {self._since} predictions" if self._since else reason
        return None

    def _move_on(self, reason: str, verdict: str) -> None:
        """Give up what serves, in use."""
        trial = self.trials.get(self._candidate.name) or Trial(verdict)
        trial.verdict, trial.reason, trial.runner = verdict, reason, None
        self._moved |= self._candidate.is_core_ml and self._since > 0
        self._since = 0
        unload(self._runner)
        self._owner.remember(self.component, self.stage, self._candidate, trial)
        self._owner.renew_budget()
        self._candidate, self._runner = self._place(f"{self._candidate.name} is not used, {reason}")

    def _place(self, failed: str = "") -> tuple[Candidate, StageRunner]:
        """The first candidate that reproduces its golden, `failed` being what was just given up. The last is not asked to."""
        problem = failed
        while True:
            passed_over: list[tuple[Candidate, str, str]] = []
            candidate = self._queue.pop(0)
            while self._queue and (why := self._passed_over(candidate)):
                passed_over.append((candidate, *why))
                candidate = self._queue.pop(0)
            self._tell(problem, passed_over, candidate)
            if not self._queue:
                return candidate, candidate.backend.load(self.component, self.stage)
            try:
                golden = self._gate(candidate)
            except LibraryError as error:
                del self._queue[:-1]  # no candidate can be checked
                problem = str(error)
                continue
            trial = self._attempt(candidate, golden)
            self.trials[candidate.name] = trial
            if trial.verdict != SLOW or candidate.units in NEURAL_ENGINE:  # others are slow on a busy machine only
                self._owner.remember(self.component, self.stage, candidate, trial)
            if trial.runner is not None:
                limit_predictions(trial.runner, self._owner.prediction_limit(trial.prediction_seconds))
                return candidate, trial.runner
            problem = f"{candidate.name} is not used, {trial.reason}"

    def _gate(self, candidate: Candidate) -> Golden:
        """The golden that a candidate has to reproduce; for Core ML also those that the watch goes by."""
        if GATE not in self._goldens or (candidate.is_core_ml and self._watch is None):
            found = self.component.goldens(self.stage, None if candidate.is_core_ml else (GATE,))
            if GATE not in found:
                raise LibraryError(f"the golden outputs of the {self.component.title}, {self.stage}, lack the case {GATE!r}")
            if candidate.is_core_ml:
                self._watch = LevelWatch(list(found.values()))
            self._goldens = {case: golden for case, golden in found.items() if case in (GATE, PARTIAL)}
        return self._goldens[GATE]

    def _attempt(self, candidate: Candidate, golden: Golden) -> Trial:
        owner = self._owner
        if not candidate.is_core_ml:
            return attempt(candidate, self.component, self.stage, [golden])
        if owner.patient(self.stage, candidate):
            return attempt(candidate, self.component, self.stage, [golden], owner.config.load_limit)
        record, package = owner.record(self.component, self.stage), owner.package(self.component)
        own, known = own_entry(record, package, candidate.name), known_entry(record, package, candidate.name)
        limit = owner.budget.share(candidate.units in NEURAL_ENGINE)
        if own is not None and is_usable(own):
            limit = min(owner.config.load_limit, max(limit, KNOWN_FACTOR * (own.get("load_seconds") or 0.0)))
        elif known is not None and is_usable(known):
            limit = max(limit, min(owner.budget.left, KNOWN_FACTOR * (known.get("first_load_seconds") or 0.0)))
        unknown = known is None and candidate.units in NEURAL_ENGINE
        with nullcontext() if is_usable(own) else owner.budget.spending(), owner.standing_by() if unknown else nullcontext():
            trial = attempt(candidate, self.component, self.stage, [golden], limit, max(limit, LEAST_PREDICTION_SECONDS), short=True)
        if trial.verdict == SLOW:
            trial.load_seconds = limit
            trial.reason = f"it was not ready within {limit:.1f} s; {TUNE} gives it time"
            if candidate.units in NEURAL_ENGINE:
                owner.slow_on = self.stage
        return trial

    def _passed_over(self, candidate: Candidate) -> tuple[str, str] | None:
        """Why a candidate is not tried now: (what to say, the reason); None where it is."""
        owner = self._owner
        if owner.unstarted and candidate.is_core_ml:
            return "no", owner.unstarted
        if owner.patient(self.stage, candidate):
            return None
        record, package = owner.record(self.component, self.stage), owner.package(self.component)
        entry = known_entry(record, package, candidate.name)
        if entry is not None and not is_usable(entry):
            slow = entry["verdict"] == SLOW
            if slow and age(entry) > SLOW_SECONDS:
                return None  # the machine may have been busy
            if slow and candidate.units in NEURAL_ENGINE:
                owner.slow_on = owner.slow_on or self.stage
            when = entry.get("when")
            return ("left", f"it was slow to load on {when}") if slow else ("bad", f"{entry.get('reason')} ({when})")
        if not candidate.is_core_ml or is_usable(own_entry(record, package, candidate.name)):
            return None
        if entry is not None:  # another package of the same program ran: what loading took there is to be expected here
            expected = entry.get("first_load_seconds") or 0.0
            return ("left", f"loading takes about {expected:.0f} s") if expected > owner.budget.left else None
        if candidate.units in NEURAL_ENGINE and owner.slow_on:
            return "left", f"the Neural Engine was slow for {owner.slow_on}"
        return ("left", f"the {owner.config.first_sound_seconds:g} s of a start are spent") if owner.budget.left <= 0 else None

    def _tell(self, problem: str, passed_over: list[tuple[Candidate, str, str]], following: Candidate) -> None:
        """One line, where what runs is not what would have been first. Raises StrictError instead where nothing else is allowed."""
        tuned = bool(self._owner.record(self.component, self.stage).get("tuned"))  # then what was bad is known
        said = [problem] if problem else []
        said += _passed_over([item for item in passed_over if not (tuned and item[1] == "bad")])
        if not said:
            return
        place = f"{self.component.title}, {self.stage}"
        if self._owner.strict:
            advice = "choose other units with --compute-units, or leave it out" if self._owner.uses_core_ml else "leave it out"
            raise StrictError(f"{place}: {'; '.join(said)}, and --strict allows nothing else: {advice}")
        self._owner.notify(f"{place}: {'; '.join(said)}; running on {following.name} instead")


def _passed_over(items: list[tuple[Candidate, str, str]]) -> list[str]:
    """In words, those with one reason together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for candidate, kind, reason in items:
        groups.setdefault((kind, reason), []).append(candidate.name)
    said = []
    for (kind, reason), names in groups.items():
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        verb = "is" if len(names) == 1 else "are"
        said.append(f"{listed} {verb} {f'left for {TUNE}' if kind == 'left' else 'not used'}, {reason}")
    return said
