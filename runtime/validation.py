"""`validate`: every package of a library against recorded, recomputed or upstream's numbers, and the whole pipeline too.

One stage is loaded at a time. What cannot be loaded or run is broken, with its reason; nothing is run elsewhere instead.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import LibraryError, RvcCoremlError, UsageError
from ..golden_outputs.golden import AGAIN, AUDIO, PIPELINE, Golden, GoldenSet, read_manifest
from ..golden_outputs.reports import Check, Report
from ..golden_outputs.reports.evidence import evidence_of
from ..golden_outputs.thresholds import Judgement, Verdict, judge, widened
from ..models.stages import VOICE_STAGES
from .backends.base import Backend, StageRunner, predict_arrays
from .backends.torch_backend import HALF_STAGES, TorchBackend
from .goldens import GATE, golden_folder, padded, pipeline_goldens, stage_goldens
from .library import CONTENT_ENCODER, PITCH, Component, Library
from .manifest import stage_of_entry
from .recording import tool_versions
from .upstream import require_recordings, upstream_goldens, upstream_outputs, upstream_pipeline

RECORDED, FLOAT64, UPSTREAM = AGAINST = ("recorded", "float64", "upstream")
STAGES = (CONTENT_ENCODER, PITCH, *VOICE_STAGES, PIPELINE)
WEIGHTS = "weights"  # the case of an audit
FULL_PRECISION = "fp32"
Progress = Callable[[str, float], None]
Outputs = Mapping[str, np.ndarray]


class AuditProblem(Protocol):
    """What an audit says of a stage."""

    @property
    def stage(self) -> str: ...

    @property
    def text(self) -> str: ...


Audit = Callable[[Component], Iterable[AuditProblem]]


def validate_library(
    library: Library,
    backend: Backend,
    progress: Progress | None = None,
    *,
    against: str = RECORDED,
    stages: Collection[str] | None = None,
    voices: Collection[str] | None = None,
    explain: bool = False,
    strict: bool = False,
    evidence: bool = False,
    audit: Audit | None = None,
) -> Report:
    """Checks for every component, stage, case and output, or for the `stages` and `voices` named.

    `explain` names the first operation that departs in a stage that fails, `evidence` keeps what a page draws, `audit`
    compares weights as well. Raises UsageError for names that the library lacks, LibraryError where it is damaged or, against
    upstream, holds nothing that upstream's recordings are of.
    """
    start = time.perf_counter()
    if against == UPSTREAM:
        require_recordings()
    run = _Run(library, backend, against, strict, explain, evidence)
    work = _selected(library, stages, voices, against, isinstance(backend, TorchBackend))
    checks: list[Check] = []
    total = max(1, sum(len(names) for _component, names in work))
    done = 0
    for component, names in work:
        run.open(component)
        for name in names:
            if progress:
                progress(f"{component.title}, {name}", done / total)
            checks += run.stage(name) if name != PIPELINE else run.pipeline()
            done += 1
        if audit is not None:
            checks += _audited(component, [name for name in names if name != PIPELINE], audit)
        run.close()
    if against == UPSTREAM and not checks:
        raise LibraryError(
            f"{library.path} cannot be held against upstream: its recordings are of seeded weights, and no component asked for has them"
        )
    return Report(
        library=str(library.path),
        backend=backend.name,
        detail=backend.detail,
        against=against,
        checks=tuple(checks),
        strict=strict,
        widened=tuple(_widened(component for component, _names in work)),
        notes=tuple(run.notes),
        tools=tool_versions(),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=time.perf_counter() - start,
    )


def _selected(
    library: Library, stages: Collection[str] | None, voices: Collection[str] | None, against: str, in_torch: bool
) -> list[tuple[Component, list[str]]]:
    """Components with the stages of each that were asked for, a voice's pipeline after its stages; PyTorch knows no further windows."""
    unknown = sorted(set(voices or ()) - set(library.voice_names()))
    if unknown:
        library.voice(unknown[0])  # raises, naming the voices that there are
    wanted = set(STAGES if stages is None else stages)
    if not wanted <= set(STAGES):
        raise UsageError(f"there is no stage {min(wanted - set(STAGES))!r}; the stages are {', '.join(STAGES)}")
    work = []
    for component in library.components():
        if component.manifest.kind == "voice" and voices is not None and component.manifest.name not in voices:
            continue
        names = [*component.manifest.stages, *([PIPELINE] if component.manifest.kind == "voice" else [])]
        chosen = [name for name in names if stage_of_entry(name) in wanted and (name == stage_of_entry(name) or not in_torch)]
        if chosen:
            work.append((component, chosen))
    if against == FLOAT64 and wanted == {PIPELINE}:
        raise UsageError("the pipeline has host steps in float32, so it cannot be held against float64: name a stage")
    if not work:
        raise UsageError(f"{library.path} has none of the stages asked for ({', '.join(sorted(wanted))})")
    return work


@dataclass
class _Found:
    """One case that ran: outputs beside the golden, and how long it took."""

    golden: Golden
    outputs: Outputs
    seconds: float


class _Run:
    """One validation: what was asked, and the component that is open."""

    def __init__(self, library: Library, backend: Backend, against: str, strict: bool, explain: bool, evidence: bool) -> None:
        self.library, self.backend, self.against = library, backend, against
        self.strict, self.explain, self.evidence = strict, explain, evidence
        self.notes: list[str] = []
        self.open_component: Component | None = None
        self.torch = TorchBackend("cpu")

    @property
    def component(self) -> Component:
        assert self.open_component is not None, "no component is open"  # noqa: S101
        return self.open_component

    def open(self, component: Component) -> None:
        self.open_component = component
        self.torch = TorchBackend("cpu")  # holds one component's network

    def close(self) -> None:
        self.torch = TorchBackend("cpu")

    # ------------------------------------------------------------ stages

    def stage(self, name: str) -> list[Check]:
        """Every case of one stage, and PyTorch's own numbers today."""
        try:
            goldens = self._goldens(name)
        except RvcCoremlError as error:
            return [self._problem(name, GATE, str(error), 0.0)]
        if not goldens:
            return []
        checks = self._package(name, goldens)
        if self.against == RECORDED and GATE in goldens and stage_of_entry(name) == name and not self._in_torch():
            checks += self._today(name, goldens[GATE])
        return self._explained(name, goldens, checks) if self.explain else checks

    def _in_torch(self) -> bool:
        """Whether the backend is itself what the goldens were recorded with."""
        return self.backend.name == "torch" and self.backend.detail == self.torch.detail

    def _goldens(self, name: str) -> dict[str, Golden]:
        """The references of a stage, at its window."""
        if self.against == UPSTREAM:
            return upstream_goldens(self.component, name, self.torch)
        if self.against == RECORDED:
            return stage_goldens(self.component, name)
        entry, path = self.component.manifest.stages[name], self.component.golden(name)
        recorded = GoldenSet.load(path.parent, only=[path.stem]).sets[path.stem]
        double = copy.deepcopy(self.torch.stage(self.component, name)).double()
        try:
            return {case: padded(_recomputed(golden, double), entry.inputs, entry.outputs) for case, golden in recorded.items()}
        except (ValueError, RuntimeError) as error:
            raise LibraryError(f"the golden inputs of the {self.component.title}, {name}, do not fit its weights ({error})") from error

    def _package(self, name: str, goldens: Mapping[str, Golden]) -> list[Check]:
        """What the backend makes of every case."""
        begin = time.perf_counter()
        try:
            runner = self.backend.load(self.component, name)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a backend raises is its stage's verdict
            return [self._problem(name, next(iter(goldens)), _reason(error), time.perf_counter() - begin)]
        try:
            return [check for case, golden in goldens.items() for check in self._cases(name, case, golden, runner)]
        finally:
            _release(runner)

    def _cases(self, name: str, case: str, golden: Golden, runner: StageRunner) -> list[Check]:
        begin = time.perf_counter()
        try:
            outputs = predict_arrays(runner, golden.inputs)
            seconds = time.perf_counter() - begin
            if self.against == UPSTREAM:
                outputs = upstream_outputs(self.component, name, outputs, golden, self.torch)
            return self._compared(name, _Found(golden, outputs, seconds), self._ran(), self._precision(name))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return [self._problem(name, case, _reason(error), time.perf_counter() - begin)]

    def _today(self, name: str, golden: Golden) -> list[Check]:
        """PyTorch on the library's weights: shows weights or recordings that are damaged."""
        begin = time.perf_counter()
        try:
            outputs = predict_arrays(self.torch.load(self.component, name), golden.inputs)
            found = _Found(golden, outputs, time.perf_counter() - begin)
            return self._compared(name, found, "torch (cpu)", FULL_PRECISION)
        except (RvcCoremlError, ValueError, RuntimeError) as error:
            problem = self._problem(name, GATE, _reason(error), time.perf_counter() - begin)
            return [replace(problem, ran="torch (cpu)", precision=FULL_PRECISION)]

    # ------------------------------------------------------------ pipeline

    def pipeline(self) -> list[Check]:
        """A voice's recorded clip through the VoiceConverter on this backend; a stage that ran elsewhere is broken."""
        if self.against == FLOAT64:
            return []  # float64 is recomputed stage by stage
        begin = time.perf_counter()
        try:
            if self.against == UPSTREAM:
                goldens = upstream_pipeline(self.library, self.component)
            else:
                goldens = pipeline_goldens(self.component, self._content())
        except RvcCoremlError as error:
            return [self._problem(PIPELINE, "speech", str(error), time.perf_counter() - begin)]
        if not goldens and self.against == RECORDED:
            self.notes.append(f"{self.component.title}: no pipeline was recorded, for want of its content encoder; {AGAIN}")
        checks = []
        for case, golden in goldens.items():
            begin = time.perf_counter()
            notes: list[str] = []
            try:
                outputs = {AUDIO: self._converted(golden, notes)}
                if notes:
                    checks.append(self._problem(PIPELINE, case, "; ".join(notes), time.perf_counter() - begin))
                    continue
                found = _Found(golden, outputs, time.perf_counter() - begin)
                checks += self._compared(PIPELINE, found, self._ran(), self._precision(PIPELINE))
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                checks.append(self._problem(PIPELINE, case, "; ".join([*notes, _reason(error)]), time.perf_counter() - begin))
        return checks

    def _content(self) -> Component | None:
        return self.library.content_encoder() if self.library.has_content_encoder() else None

    def _converted(self, golden: Golden, notes: list[str]) -> np.ndarray:
        from .converter import VoiceConverter

        converter = VoiceConverter(self.library, self.component.manifest.name, self.backend, notes.append)
        samples, _rate = converter.convert(
            golden.inputs["audio"],
            16000,
            f0=golden.inputs.get("f0"),
            noise=lambda index, _shape: torch.from_numpy(golden.inputs[f"noise_{index}"]),
            **golden.facts["options"],
        )
        return samples

    # ------------------------------------------------------------ verdicts

    def _ran(self) -> str:
        return f"torch ({self.backend.detail})" if isinstance(self.backend, TorchBackend) else self.backend.name

    def _precision(self, name: str) -> str:
        """Whose limits apply: the package's precision, or what PyTorch computes in."""
        if isinstance(self.backend, TorchBackend):
            return self.backend.precision if stage_of_entry(name) in (*HALF_STAGES, PIPELINE) else FULL_PRECISION
        entries = self.component.manifest.stages
        if name != PIPELINE:
            return entries[name].precision
        content = self._content()
        used = [entry.precision for entry in entries.values()]
        used += [entry.precision for entry in content.manifest.stages.values()] if content else []
        return FULL_PRECISION if set(used) == {FULL_PRECISION} else "fp16"

    def _compared(self, name: str, found: _Found, ran: str, precision: str) -> list[Check]:
        """A check for every output."""
        checks = []
        compared = found.golden.compare(found.outputs)
        for output, comparison in compared.items():
            limits = self._limits(name, precision)
            check = Check(self.component.title, name, found.golden.case, output, precision, ran, self.against)
            judgement = judge(comparison, stage_of_entry(name), limits)
            evidence = self._evidence(found, output) if self.evidence else None
            share = found.seconds / len(compared)
            checks.append(replace(check, comparison=comparison, judgement=judgement, seconds=share, evidence=evidence))
        return checks

    def _limits(self, name: str, precision: str) -> str:
        """Upstream's pipeline ends in 16-bit integers, which allows no more than half precision's limits."""
        return "fp16" if self.against == UPSTREAM and name == PIPELINE else precision

    def _evidence(self, found: _Found, output: str) -> Any:
        layout = found.golden.layouts[output]
        wanted, got = (layout.crop(np.asarray(side[output])) for side in (found.golden.outputs, found.outputs))
        rate = found.golden.facts.get("rate") if output == AUDIO else None
        return evidence_of(wanted, got, layout.time_axis, layout.samples, rate, found.golden.steady(output))

    def _problem(self, name: str, case: str, problem: str, seconds: float) -> Check:
        precision = self._precision(name)
        return Check(self.component.title, name, case, "", precision, self._ran(), self.against, problem=problem, seconds=seconds)

    def _accepts(self, check: Check) -> bool:
        return check.verdict is Verdict.GOOD or (check.verdict is Verdict.DEGRADED and not self.strict)

    def _explained(self, name: str, goldens: Mapping[str, Golden], checks: list[Check]) -> list[Check]:
        """The first operation that departs in the first case that fails, on every check of the stage that fails.

        What the reference executor or PyTorch could not run at all, they cannot explain either.
        """
        from .explain import explain

        failed = (check for check in checks if not self._accepts(check) and (check.comparison is not None or check.ran == "coreml"))
        first = next(failed, None)
        if first is None:
            return checks
        where, golden = f"{self.component.title}, {name}", goldens[first.case]
        if set(golden.outputs) != set(self.component.manifest.stages[name].outputs):
            self.notes.append(f"{where}: upstream recorded another output than the package gives, so it cannot be explained from that")
            return checks
        try:
            found = explain(self.component, name, golden)
        except RvcCoremlError as error:
            self.notes.append(f"{where}: it cannot be explained, {error}")
            return checks
        if found is None:
            self.notes.append(f"{where}: {self._unexplained()}")
            return checks
        values = asdict(found)
        return [check if self._accepts(check) or check.comparison is None else replace(check, explanation=values) for check in checks]

    def _unexplained(self) -> str:
        """What it means that the reference executor and the source network agree."""
        if self.backend.name == "reference":
            return "its package computes what its weights do, and no operation departs from the source network"
        return f"the reference executor computes this package right, so the fault lies in how {self._ran()} runs it"


def _recomputed(golden: Golden, double: Any) -> Golden:
    """The same inputs through the network in float64; outputs keep the shapes of the recorded ones."""
    with torch.inference_mode():
        found = double.compute({name: torch.from_numpy(array).double() for name, array in golden.inputs.items()})
    return replace(golden, outputs={name: found[name].numpy() for name in golden.outputs})


def _audited(component: Component, names: Collection[str], audit: Audit) -> Iterator[Check]:
    """A check of the weights for every stage."""
    begin = time.perf_counter()
    problems = [problem for problem in audit(component) if problem.stage in names]
    share = (time.perf_counter() - begin) / max(1, len(names))
    for name in names:
        found = tuple(problem.text for problem in problems if problem.stage == name)
        judgement = Judgement(Verdict.BROKEN if found else Verdict.GOOD, found)
        precision = component.manifest.stages[name].precision
        yield Check(component.title, name, WEIGHTS, "", precision, "audit", "weights", judgement=judgement, seconds=share)


def _widened(components: Iterable[Component]) -> Iterator[str]:
    """Thresholds that are looser than when the components were recorded, each once."""
    found: dict[str, None] = {}
    for component in components:
        try:
            manifest = read_manifest(golden_folder(component))
        except LibraryError:
            continue  # its stages say so
        found |= dict.fromkeys(widened(manifest["thresholds"], manifest["threshold_changes"]))
    yield from found


def _release(runner: StageRunner) -> None:
    """Models of another process are unloaded; the others go with their last reference."""
    for part in (runner, *getattr(runner, "placed", {}).values()):
        unload = getattr(getattr(part, "model", None), "unload", None)
        if unload is not None:
            unload()


def _reason(error: Exception) -> str:
    if isinstance(error, (RvcCoremlError, ValueError)):
        return str(error)
    text = str(error).splitlines()[0] if str(error) else "no message"
    return f"it failed ({type(error).__name__}: {text})"
