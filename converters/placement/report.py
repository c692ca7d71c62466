"""What the linter says of a package or a library, put together for people: the same findings as one, shares, times, a song.

`Report` is what text.py, markdown.py, page.py and JSON are made from. Shares are rounded down, so that 100% is all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import printable
from .assess import Assessment, Placed, assess_package
from .chips import Chip, find_chip
from .compute_plan import ANE, Comparison, compare_plan, compute_plans, require_plan
from .registry import RULES, Finding
from .subjects import Subject, Subjects

if TYPE_CHECKING:
    from .song import SongPrediction

SECTIONS = {  # key -> heading
    "blocked": "blocked",
    "hazard": "hazards",
    "unproven": "unproven",
    "slow": "slow",
    "note": "notes",
}
SONG_SECONDS = 180.0


@dataclass(frozen=True)
class Case:
    """Operations of one type of which a rule says the same."""

    type: str
    what: str
    operations: tuple[Placed, ...]


@dataclass(frozen=True)
class Group:
    """What a rule found in a function, with one remedy. `section`: a key of SECTIONS. A case without operations is of the whole."""

    section: str
    rule: str
    title: str
    severity: str
    proven: bool
    confidence: str
    source: str
    remedy: str
    cases: tuple[Case, ...]

    @property
    def operations(self) -> tuple[Placed, ...]:
        """Each once."""
        return tuple({placed.name: placed for case in self.cases for placed in case.operations}.values())


@dataclass(frozen=True)
class StageReport:
    """One function on one chip. `comparison`: with Core ML's own plan, where one was asked for."""

    subject: Subject
    assessment: Assessment
    comparison: Comparison | None = None

    @property
    def counted(self) -> tuple[Placed, ...]:
        """The operations that have a place."""
        return self.assessment.counted

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """In the order of SECTIONS; within one, what concerns most FLOPs first."""
        found: dict[tuple[str, ...], list[tuple[Finding, Placed | None]]] = {}
        for finding in self.assessment.general:
            found.setdefault((section_of(finding), finding.rule, finding.remedy), []).append((finding, None))
        for placed in self.assessment.operations:
            for finding in placed.findings:
                key = (section_of(finding), finding.rule, finding.remedy)
                found.setdefault(key, []).append((finding, placed))
        groups = [_group(key[0], items) for key, items in found.items()]
        order = list(SECTIONS)
        return tuple(sorted(groups, key=lambda group: (order.index(group.section), -sum(_flops(item) for item in group.operations))))

    def of(self, section: str) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.section == section)

    def names(self, section: str) -> frozenset[str]:
        """Operations with a finding of a section."""
        return self._names.get(section, frozenset())

    @cached_property
    def _names(self) -> dict[str, frozenset[str]]:
        return {
            section: frozenset(placed.name for group in self.of(section) for placed in group.operations)
            for section in {group.section for group in self.groups}
        }

    def count(self, section: str) -> int:
        """Operations with a finding of a section; a finding about the whole function is one."""
        return len(self.names(section)) + sum(not case.operations for group in self.of(section) for case in group.cases)

    def share_of(self, operations: Iterable[Placed]) -> float:
        """Of the FLOPs that are counted, 0 to 1."""
        return sum(_flops(placed) for placed in operations if placed.counted) / self.total_flops if self.total_flops else 0.0

    @property
    def total_flops(self) -> int:
        return self.assessment.flops

    def units(self) -> dict[str, int]:
        """Counted operations on each unit, as the linter places them."""
        return {unit: sum(placed.unit == unit for placed in self.counted) for unit in ("ane", "gpu", "cpu")}

    def module(self, placed: Placed) -> str:
        """Its name in the source network; empty where the package has no operation map."""
        return printable(placed.source)

    def place(self, placed: Placed) -> str:
        """Its module and its own name."""
        module = self.module(placed)
        return f"{module} ({printable(placed.name)})" if module else printable(placed.name)


@dataclass(frozen=True)
class Report:
    """Everything that one path names, on one chip."""

    path: Path
    kind: str
    chip: Chip
    stages: tuple[StageReport, ...]
    songs: Mapping[str, SongPrediction]

    def total(self, section: str) -> int:
        return sum(stage.count(section) for stage in self.stages)

    @property
    def share_of_flops(self) -> float:
        """Over all stages; where none has FLOPs, as with open shapes, their share of the operations."""
        counted = [placed for stage in self.stages for placed in stage.counted]
        on_engine = [placed for placed in counted if placed.unit == ANE]
        total = sum(stage.total_flops for stage in self.stages)
        if total:
            return sum(map(_flops, on_engine)) / total
        return len(on_engine) / len(counted) if counted else 1.0

    @property
    def planned(self) -> bool:
        """Whether Core ML's plan stands beside the linter."""
        return any(stage.comparison is not None for stage in self.stages)


def make_report(
    subjects: Subjects,
    chip: str,
    *,
    plan: bool = False,
    compute_units: str = "ALL",
    ranges: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """Assess every subject; with `plan`, ask Core ML too, which needs a Mac.

    `ranges`: stage (for a package by itself, its name without ending) -> what a run has seen of each value, lowest and highest.

    Raises UsageError for an unknown chip, PackageError, BackendError off a Mac, WorkerFailure.
    """
    row = find_chip(chip)
    if plan:
        require_plan()
    stages = []
    assessed: dict[tuple[Path, str], dict[str, Assessment]] = {}
    plans: dict[Path, Any] = {}
    for subject in subjects.found:
        key = (subject.package, subject.stage)
        if key not in assessed:
            seen = (ranges or {}).get(subject.stage or subject.package.stem)
            assessed[key] = assess_package(subject.package, row.name, operations=subject.operations, ranges=seen)
        assessment = assessed[key][subject.function]
        comparison = None
        if plan:
            if subject.package not in plans:
                plans[subject.package] = compute_plans(subject.package, compute_units)
            if subject.function in plans[subject.package]:
                comparison = compare_plan(assessment, plans[subject.package][subject.function])
        stages.append(StageReport(subject, assessment, comparison))
    return Report(subjects.path, subjects.kind, row, tuple(stages), dict(_songs(subjects, stages)))


def placed_by_plan(report: Report) -> Report:
    """The same report with Core ML's placement in the place of the linter's, where there is a plan; findings stay the linter's."""
    return replace(report, stages=tuple(_by_plan(stage) for stage in report.stages))


def _by_plan(stage: StageReport) -> StageReport:
    if stage.comparison is None:
        return stage
    planned = stage.comparison.plan.operations
    operations = tuple(
        replace(placed, unit=planned[placed.name].unit) if placed.name in planned else placed for placed in stage.assessment.operations
    )
    return replace(stage, assessment=replace(stage.assessment, operations=operations))


def section_of(finding: Finding) -> str:
    """An unproven finding is its own section, whatever its severity."""
    if not finding.proven:
        return "unproven"
    return "blocked" if finding.severity == "off-ane" else finding.severity


def _group(section: str, items: list[tuple[Finding, Placed | None]]) -> Group:
    finding = items[0][0]
    cases: dict[tuple[str, str], list[Placed]] = {}
    for each, placed in items:
        cases.setdefault(("" if placed is None else placed.type, each.what), []).extend([] if placed is None else [placed])
    rule = RULES.get(finding.rule)
    return Group(
        section,
        finding.rule,
        finding.rule if rule is None else rule.title,
        finding.severity,
        finding.proven,
        "" if rule is None else rule.confidence,
        "" if rule is None else rule.source,
        finding.remedy,
        tuple(Case(kind, what, tuple(found)) for (kind, what), found in sorted(cases.items(), key=lambda item: -len(item[1]))),
    )


def _flops(placed: Placed) -> int:
    return placed.flops or 0


def _songs(subjects: Subjects, stages: Iterable[StageReport]) -> Iterator[tuple[str, SongPrediction]]:
    """A prediction for every voice of a library that has all of its stages in single packages."""
    if subjects.kind != "library":
        return
    from .song import predict_song

    by_component: dict[str, dict[str, StageReport]] = {}
    contexts: dict[str, dict[str, int]] = {}
    for component in subjects.components:
        contexts[component.title] = {name: entry.context for name, entry in component.manifest.stages.items()}
    for stage in stages:
        by_component.setdefault(stage.subject.component, {}).setdefault(stage.subject.stage, stage)
    shared: dict[str, StageReport] = {}
    shared_contexts: dict[str, int] = {}
    for component in subjects.components:
        if component.manifest.kind != "voice":
            shared = by_component.get(component.title, {}) | shared
            shared_contexts = contexts[component.title] | shared_contexts
    for component in subjects.components:
        if component.manifest.kind == "voice":
            chosen = shared | by_component.get(component.title, {})
            windows = {name: int(stage.subject.facts["window"]) for name, stage in chosen.items()}
            assessments = {name: stage.assessment for name, stage in chosen.items()}
            yield component.title, predict_song(assessments, windows, SONG_SECONDS, shared_contexts | contexts[component.title])


def percent(share: float) -> str:
    """0 to 1, rounded down: 100% is all of it, and what is not nothing is not 0%."""
    if share >= 1 or share <= 0:
        return "100%" if share >= 1 else "0%"
    return f"{math.floor(share * 10000) / 100:.2f}%" if share >= 0.0001 else "less than 0.01%"


def shown_flops(count: float) -> str:
    for size, unit in ((1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP")):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} FLOP"


def shown_seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
