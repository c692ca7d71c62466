"""The report as Markdown, and as data for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ...errors import printable
from .assess import Placed
from .compute_plan import ANE
from .report import SECTIONS, Group, Report, StageReport, counted, percent, shown_flops
from .wording import DISAGREEMENTS, MODEL, NOT_ASKED, UNIT_TITLES, disagreements, overview, song_lines, time_parts

MOST_NAMES = 20  # operations listed under one finding


def render_markdown(report: Report) -> str:
    """Headings, tables and lists; names out of files are escaped."""
    return "\n".join(_lines(report)) + "\n"


def as_dict(report: Report) -> dict[str, Any]:
    """Everything, for JSON: every operation with its unit and findings."""
    return {
        "path": str(report.path),
        "kind": report.kind,
        "chip": report.chip.name,
        "share_of_flops": report.share_of_flops,
        "stages": [_stage_dict(stage) for stage in report.stages],
        "songs": {name: {**asdict(song), "total": song.total} for name, song in report.songs.items()},
        "times_are": MODEL,
    }


def _stage_dict(stage: StageReport) -> dict[str, Any]:
    assessment, times = stage.assessment, stage.assessment.times
    return {
        "title": stage.subject.title,
        "component": stage.subject.component,
        "stage": stage.subject.stage,
        "package": str(stage.subject.package),
        "function": stage.subject.function,
        **stage.subject.facts,
        "operations_counted": len(stage.counted),
        "share_of_operations": assessment.share_of_operations,
        "flops": stage.total_flops,
        "operations_of_flexible_shape": assessment.uncounted_flops,
        "share_of_flops": assessment.share_of_flops,
        "units": stage.units(),
        "predicted_seconds": {
            "total": times.total,
            **times.by_unit,
            "dispatch": times.dispatch_seconds,
            "transfer": times.transfer_seconds,
            "changes_of_unit": times.switches,
        },
        "found": {section: stage.count(section) for section in SECTIONS},
        "rules": [_group_dict(group) for group in stage.groups],
        "rules_not_checked": list(assessment.unchecked),
        "operations": [_operation_dict(stage, placed) for placed in assessment.operations],
        **({} if stage.comparison is None else {"compute_plan": stage.comparison.as_dict()}),
    }


def _group_dict(group: Group) -> dict[str, Any]:
    fields = ("section", "rule", "title", "severity", "proven", "confidence", "source", "remedy")
    cases = [{"type": case.type, "what": case.what, "operations": [placed.name for placed in case.operations]} for case in group.cases]
    return {**{name: getattr(group, name) for name in fields}, "cases": cases}


def _operation_dict(stage: StageReport, placed: Placed) -> dict[str, Any]:
    return {
        "name": placed.name,
        "type": placed.type,
        "module": stage.module(placed),
        "unit": placed.unit if placed.counted else None,
        "inputs": [[tensor.dtype, *tensor.shape] for tensor in placed.inputs if not tensor.is_fixed],
        "outputs": [[tensor.dtype, *tensor.shape] for tensor in placed.outputs],
        "flops": placed.flops,
        "bytes": placed.bytes,
        "findings": [
            {"rule": item.rule, "severity": item.severity, "proven": item.proven, "what": item.what, "remedy": item.remedy}
            for item in placed.findings
        ],
    }


def _lines(report: Report) -> Iterator[str]:
    yield f"# Placement on {report.chip.title}: {escaped(str(report.path.name))}\n"
    yield f"{NOT_ASKED if not report.planned else 'Core ML was asked as well.'} Times are {MODEL}.\n"
    if len(report.stages) > 1:
        headings, rows = overview(report)
        yield from _table(headings, rows)
    for name, song in report.songs.items():
        yield f"## {escaped(name)}, 3 minutes\n"
        yield from (f"- {escaped(line)}" for line in song_lines(song))
        yield ""
    for stage in report.stages:
        yield from _stage(stage)


def _stage(stage: StageReport) -> Iterator[str]:
    assessment = stage.assessment
    yield f"## {escaped(stage.subject.title)}\n"
    facts = {**stage.subject.facts, "package": stage.subject.package.name, "function": stage.subject.function}
    yield ", ".join(f"{name} {escaped(str(value))}" for name, value in facts.items()) + "\n"
    operations = f"{percent(assessment.share_of_operations)} of {len(stage.counted)}"
    rows = [["operations that can go to the Neural Engine", operations]]
    rows += [["FLOPs that can", f"{percent(assessment.share_of_flops)} of {shown_flops(stage.total_flops)}"]]
    rows += [[f"predicted, {name}", text] for name, text in time_parts(assessment)]
    yield from _table(("", ""), rows)
    if stage.comparison is not None:
        yield from _plan(stage)
    for section, heading in SECTIONS.items():
        groups = stage.of(section)
        if groups:
            yield f"### {heading.capitalize()}\n"
            yield from _table(("rule", "found", "operations", "remedy"), [row for group in groups for row in _rows(stage, group)])
        elif section in ("blocked", "hazard", "unproven"):
            yield f"### {heading.capitalize()}\n\nNone.\n"
    if assessment.unchecked:
        yield f"Not checked, because it needs the values of a run: {', '.join(assessment.unchecked)}.\n"


def _rows(stage: StageReport, group: Group) -> Iterator[list[str]]:
    for case in group.cases:
        names = [f"`{stage.place(placed).replace('`', '')}`" for placed in case.operations[:MOST_NAMES]]
        rest = len(case.operations) - len(names)
        listed = ", ".join(names) + (f" and {rest} more" if rest else "")
        rule = f"{group.rule} ({group.confidence}{'' if group.proven else f', unproven, would be {group.severity}'})"
        found = f"{len(case.operations)} {case.type}: {case.what}" if case.operations else case.what
        yield [rule, escaped(found), listed.replace("|", "\\|"), escaped(group.remedy)]


def _plan(stage: StageReport) -> Iterator[str]:
    comparison = stage.comparison
    assert comparison is not None  # noqa: S101 - asked before
    shares = ", ".join(f"{UNIT_TITLES[unit]} {percent(comparison.plan.share(unit))}" for unit in (ANE, "gpu", "cpu"))
    yield f"### Core ML's own plan\n\n{shares} of its operations; {counted(len(comparison.disagreements), 'disagreement')}.\n"
    for kind, lines in disagreements(stage):
        yield f"{len(lines)}: {DISAGREEMENTS[kind]}\n"
        yield from (f"- {escaped(line)}" for line in lines)
        yield ""


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    headings = list(headings)
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def escaped(text: str) -> str:
    """What Markdown or HTML would read as its own."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "|`*_[]" else letter for letter in text)
