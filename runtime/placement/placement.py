"""Which candidate each stage of a conversion runs on: what is known of this machine, tried in order, within a start's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from ... import __version__
from ...errors import RvcCoremlError
from ..backends.base import Backend, Packaged
from ..backends.coreml_backend import CoreMLBackend, coreml_available
from ..backends.torch_backend import TorchBackend
from ..config import OptimizationConfig
from ..worker.client import shared_worker
from ..worker.system import system_facts
from .candidates import Candidate, candidates_of, check_units, units_for
from .decisions import Decisions, Key, Record
from .program import program_key
from .record import is_usable, known_entry, own_entry, serving_order, with_entry
from .stage import PlacedStage
from .trial import LEAST_PREDICTION_SECONDS, UNSTARTED, Trial

if TYPE_CHECKING:
    from ..hybrid.parts import Parts
    from ..hybrid.stages import StageInParts

# Of what is left of a start's time, for one candidate. The Neural Engine's compiler takes its time or ten times that;
# without it packages load in about a second (a HiFi-GAN: 32 to 67 s against 1.3 s, measured by coreml-audio-research).
COMPILED_SHARE, OTHER_SHARE = 0.25, 0.6
LEAST_LOAD_SECONDS = 1.0
ENTRY = ("verdict", "reason", "snr_db", "level", "load_seconds", "first_load_seconds", "prediction_seconds", "when")  # of a row's candidate
Notify = Callable[[str], None]


class Budget:
    """Seconds that a start may spend on loading what is not known to work."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.left = seconds
        self._clock = clock

    def share(self, compiled: bool) -> float:
        """Seconds for the next candidate; `compiled` for those that compile for the Neural Engine."""
        return max(LEAST_LOAD_SECONDS, (COMPILED_SHARE if compiled else OTHER_SHARE) * self.left)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What the block takes is taken off."""
        begun = self._clock()
        try:
            yield
        finally:
            self.left -= self._clock() - begun


class Placement:
    """The stages of one command. `notify` gets one line for every stage that does not run on what would come first.

    `compute_units` are those chosen by hand (`candidates.parse_units`): they are tried first, whatever is known, and given
    all the time there is. `strict` raises StrictError where a stage would have to move on, and gives time likewise.
    Raises UsageError for compute units without Core ML.
    """

    def __init__(
        self,
        backend: Backend,
        notify: Notify = print,
        *,
        config: OptimizationConfig | None = None,
        strict: bool = False,
        compute_units: Mapping[str, str] | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        self.backend = backend
        self.notify = notify
        self.config = config or OptimizationConfig()
        self.strict = strict
        self.candidates = candidates_of(backend)
        self.chosen = dict(compute_units or {})
        self.stages: dict[tuple[str, str], PlacedStage] = {}
        self._in_parts: dict[tuple[str, str], StageInParts] = {}
        self.budget = Budget(self.config.first_sound_seconds)
        self.slow_on = ""  # the stage for which the Neural Engine was slow: the others leave it alone until they are tuned
        self.unstarted = ""  # why Core ML's process does not start: it is not asked again
        check_units(self.chosen, backend)
        self._decisions = decisions or Decisions(notify=notify)
        self._records: dict[str, Record] = {}
        self._keys: dict[tuple[str, str], Key | None] = {}
        self._system: dict[str, str] | None = None

    def start_worker(self) -> None:
        """Have Core ML's process get ready, with this command's settings, while others are busy."""
        if not isinstance(self.backend, CoreMLBackend):
            return
        worker = self.backend.worker or shared_worker()
        worker.notify = self.notify
        if not self.config.compiled_cache_bytes:
            worker.cache = None
        elif worker.cache is not None:
            worker.cache.max_bytes = self.config.compiled_cache_bytes
        with suppress(RvcCoremlError):  # said where a stage is loaded
            worker.start()

    @property
    def uses_core_ml(self) -> bool:
        return self.candidates[0].is_core_ml

    @property
    def torch_backends(self) -> list[TorchBackend]:
        """Those among the candidates."""
        return [item.backend for item in self.candidates if isinstance(item.backend, TorchBackend)]

    def stage(self, component: Packaged, name: str) -> PlacedStage | StageInParts:
        """A stage that is ready; of one in parts each package has its own place.

        Raises StrictError, and what the last candidate raises where it cannot be loaded.
        """
        place = (str(component.build), name)
        if place in self._in_parts:
            return self._in_parts[place]
        if self.in_parts(component, name):
            from ..hybrid.stages import StageInParts

            self._in_parts[place] = StageInParts.loaded(component, name, self.placed, self.torch_backends[-1])
            return self._in_parts[place]
        return self.placed(component, name)

    def placed(self, component: Packaged, name: str) -> PlacedStage:
        """A stage or part that is one package, ready."""
        place = (str(component.build), name)
        if not self.stages:
            self.start_worker()
        if place not in self.stages:
            self.stages[place] = PlacedStage(component, name, self)
        return self.stages[place]

    def in_parts(self, component: Packaged, stage: str) -> bool:
        """Whether a stage runs in parts here; PyTorch runs the network itself."""
        return not isinstance(self.backend, TorchBackend) and component.parts(stage) is not None

    def units(self, component: Packaged, stage: str) -> list[tuple[Packaged, str]]:
        """What of a stage has a place of its own: itself, or the packages of its parts."""
        parts = component.parts(stage) if self.in_parts(component, stage) else None
        return [(component, stage)] if parts is None else [(parts, name) for name in cast("Parts", parts).names]

    def verify(self) -> bool:
        """Run every stage's golden again; False where one has moved on and what came since is to be computed again."""
        verified = [stage.verify() for stage in self.stages.values()]
        return all(verified)

    @property
    def due(self) -> bool:
        """Whether a stage has predicted so much that `verify` should be called."""
        return any(stage.due for stage in self.stages.values())

    def table(self) -> list[dict[str, Any]]:
        """For reports: a row for every stage, with what it ran on and what is known of its candidates."""
        return [self._row(stage.component, stage.stage, stage) for stage in self.stages.values()]

    def known(self, component: Packaged, stage: str) -> dict[str, Any]:
        """A row of the table for a stage that is not loaded."""
        return self._row(component, stage, None)

    def _row(self, component: Packaged, stage: str, placed: PlacedStage | None) -> dict[str, Any]:
        record, package = self.record(component, stage), self.package(component)
        rows = []
        for candidate in self.candidates:
            entry = known_entry(record, package, candidate.name) or {}
            if placed is not None and candidate.name in placed.trials:
                entry = placed.trials[candidate.name].as_record()
            rows.append({"name": candidate.name, **{name: entry.get(name) for name in ENTRY}})
        return {
            "component": component.title,
            "stage": stage,
            "ran_on": None if placed is None else placed.executed_by,
            "tuned": bool(record.get("tuned")),
            "chosen": record.get("chosen"),
            "candidates": rows,
        }

    def expected(self, component: Packaged, stage: str) -> Candidate | None:
        """What a start would choose by what is known; None where nothing usable is."""
        record, package = self.record(component, stage), self.package(component)
        queue = self.queue(component, stage)
        return next((item for item in queue if is_usable(known_entry(record, package, item.name))), None)

    # What follows is for the stages.

    def queue(self, component: Packaged, stage: str) -> list[Candidate]:
        """The candidates in the order in which this stage tries them."""
        by_name = {candidate.name: candidate for candidate in self.candidates}
        order = [by_name[name] for name in serving_order(self.record(component, stage), list(by_name))]
        units = units_for(stage, self.chosen)
        if units is not None:
            order.sort(key=lambda candidate: candidate.units != units)
        return order[: order.index(self.candidates[-1]) + 1]  # nothing comes after what is trusted

    def patient(self, stage: str, candidate: Candidate) -> bool:
        """Whether a candidate is tried whatever is known of it, for as long as it takes."""
        return self.strict or (candidate.is_core_ml and candidate.units == units_for(stage, self.chosen))

    def standing_by(self) -> AbstractContextManager[None]:
        """For a trial that may well end Core ML's process: another one waits meanwhile."""
        backend = self.backend
        return (backend.worker or shared_worker()).standing_by() if isinstance(backend, CoreMLBackend) else nullcontext()

    def renew_budget(self) -> None:
        """A stage that goes bad in use has a start's time to find another place."""
        self.budget = Budget(self.config.first_sound_seconds)

    def prediction_limit(self, golden_seconds: float | None) -> float | None:
        """Seconds after which a prediction is stuck."""
        if golden_seconds is None:
            return None
        return max(LEAST_PREDICTION_SECONDS, self.config.prediction_factor * golden_seconds)

    def package(self, component: Packaged) -> str:
        """What tells one conversion of a program from another."""
        return component.build_id

    def key(self, component: Packaged, stage: str) -> Key | None:
        """Under which this machine remembers a stage's program; None where nothing is remembered: no Core ML, no such package."""
        place = (str(component.build), stage)
        if place not in self._keys:
            self._keys[place] = self._made_key(component, stage) if self.uses_core_ml else None
        return self._keys[place]

    def record(self, component: Packaged, stage: str) -> Record:
        """What is known."""
        key = self.key(component, stage)
        if key is None:
            return {}
        if key.digest not in self._records:
            found = self._decisions.load(key.digest) or {}
            self._records[key.digest] = found if found.get("key") == asdict(key) else {}
        return self._records[key.digest]

    def remember(self, component: Packaged, stage: str, candidate: Candidate, trial: Trial, anew: bool = False) -> None:
        """Add what a trial found; `anew` also where it was known to be usable. That no process starts holds for this command only."""
        if trial.verdict == UNSTARTED:
            self.unstarted = trial.reason
            return
        key = self.key(component, stage)
        if key is None:
            return
        package, entry = self.package(component), trial.as_record()
        before = own_entry(self.record(component, stage), package, candidate.name)
        if not anew and trial.usable and is_usable(before):
            return  # nothing new: a start need not write

        def change(old: Record) -> Record:
            return {**with_entry(old, package, candidate.name, entry), "key": asdict(key), "stage": stage}

        self._records[key.digest] = self._decisions.update(key.digest, change)

    def settle(self, component: Packaged, stage: str, chosen: str | None) -> None:
        """Note what tuning chose."""
        key = self.key(component, stage)
        if key is not None:
            self._records[key.digest] = self._decisions.update(key.digest, lambda old: {**old, "tuned": True, "chosen": chosen})

    def _made_key(self, component: Packaged, stage: str) -> Key | None:
        with suppress(RvcCoremlError):
            facts = self._system = self._system or system_facts()
            program, function = program_key(component.package(stage)), component.function(stage)
            program = program if function is None else f"{program}:{function}"
            return Key(program, facts["chip"], facts["os_build"], facts["coremltools"], __version__)
        return None


def chosen_units(component: Packaged, stage: str) -> str | None:
    """The compute units that this machine found for a stage; None where it has found none, or PyTorch."""
    if not coreml_available():
        return None
    found = Placement(CoreMLBackend(), lambda _line: None).expected(component, stage)
    return None if found is None else found.units
