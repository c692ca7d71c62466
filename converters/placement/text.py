"""The report on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ...errors import printable
from .compute_plan import ANE
from .report import SECTIONS, Group, Report, StageReport, counted, percent, shown_flops
from .wording import DISAGREEMENTS, MODEL, NOT_ASKED, UNIT_TITLES, disagreements, overview, song_lines, time_parts

MOST_CASES, MOST_NAMES, MOST_LINES = 4, 3, 20  # cases of a rule, operations of a case, disagreements of a kind
NARROW_TITLE = 16


def render_text(report: Report, width: int) -> str:
    """Lines of at most `width` columns, except where a name is longer."""
    lines = [f"placement on {report.chip.title}. {NOT_ASKED if not report.planned else 'Core ML was asked as well.'}"]
    if len(report.stages) > 1:
        lines += ["", *_table(report, width)]
    for name, song in report.songs.items():
        lines += ["", *_wrapped(f"{printable(name)}, 3 minutes ({MODEL})", width)]
        lines += [line for text in song_lines(song) for line in _wrapped(text, width, 2)]
    for stage in report.stages:
        lines += ["", *_stage(stage, width, titled=len(report.stages) > 1)]
    return "\n".join(lines)


def _table(report: Report, width: int) -> Iterator[str]:
    headings, rows = overview(report)
    sizes = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    sizes[0] = min(sizes[0], max(NARROW_TITLE, width - sum(size + 2 for size in sizes[1:])))
    for row in (headings, *rows):
        cells = [_shortened(row[0], sizes[0]).ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _shortened(title: str, most: int) -> str:
    """Cut in its middle: the end names the stage."""
    kept = most - 3
    return title if len(title) <= most else f"{title[: kept // 3]}...{title[-(kept - kept // 3) :]}"


def _stage(stage: StageReport, width: int, titled: bool) -> Iterator[str]:
    assessment = stage.assessment
    if titled:
        facts = ", ".join(f"{name} {value}" for name, value in stage.subject.facts.items())
        yield from _wrapped(f"{printable(stage.subject.title)}{f' ({facts})' if facts else ''}", width)
    yield from _wrapped(
        f"can go to the Neural Engine: {percent(assessment.share_of_operations)} of {counted(len(stage.counted), 'operation')},"
        f" {percent(assessment.share_of_flops)} of {shown_flops(stage.total_flops)}",
        width,
        2,
    )
    if assessment.uncounted_flops:
        yield from _wrapped(f"{counted(assessment.uncounted_flops, 'operation')} of flexible shape: FLOPs not counted", width, 2)
    (_total, total), *parts = time_parts(assessment)
    yield from _wrapped(f"predicted: {total} ({', '.join(f'{name} {text}' for name, text in parts)}); {MODEL}", width, 2)
    yield from _plan(stage, width)
    for section, heading in SECTIONS.items():
        groups = stage.of(section)
        if groups:
            share = percent(stage.share_of({item.name: item for group in groups for item in group.operations}.values()))
            yield f"  {heading}: {counted(stage.count(section), 'operation')}, {share} of the FLOPs"
            for group in groups:
                yield from _group(stage, group, width)
        elif section in ("blocked", "hazard", "unproven"):
            yield f"  {heading}: none"
    if assessment.unchecked:
        listed = ", ".join(assessment.unchecked)
        yield from _wrapped(f"not checked, because it needs the values of a run: {listed}", width, 2)


def _group(stage: StageReport, group: Group, width: int) -> Iterator[str]:
    severity = f"; would be {group.severity}" if not group.proven else ""
    yield from _wrapped(f"{group.rule}  {group.title} (confidence {group.confidence}{severity})", width, 4)
    for case in group.cases[:MOST_CASES]:
        if not case.operations:
            yield from _wrapped(case.what, width, 6)
            continue
        yield from _wrapped(f"{len(case.operations)} {printable(case.type)}: {printable(case.what)}", width, 6)
        names = [stage.place(placed) for placed in case.operations[:MOST_NAMES]]
        rest = len(case.operations) - len(names)
        yield from _wrapped(", ".join(names) + (f", and {rest} more" if rest else ""), width, 8)
    rest = sum(len(case.operations) for case in group.cases[MOST_CASES:])
    if rest:
        yield f"      and {counted(rest, 'more operation')} of {counted(len(group.cases) - MOST_CASES, 'other shape')}"
    yield from _wrapped(f"remedy: {group.remedy}", width, 6)


def _plan(stage: StageReport, width: int) -> Iterator[str]:
    if stage.comparison is None:
        return
    comparison = stage.comparison
    plan = comparison.plan
    shares = ", ".join(f"{UNIT_TITLES[unit]} {percent(plan.share(unit))}" for unit in (ANE, "gpu", "cpu"))
    cost = percent(plan.share_of_cost())
    yield from _wrapped(f"Core ML's plan ({plan.compute_units}): {shares}; {cost} of its estimated cost on the Neural Engine", width, 2)
    found = dict(disagreements(stage))
    yield from _wrapped(f"compared: {counted(comparison.compared, 'operation')}, {len(comparison.disagreements)} disagree", width, 4)
    for kind, lines in found.items():
        yield from _wrapped(f"{len(lines)}: {DISAGREEMENTS[kind]}", width, 4)
        for line in lines[:MOST_LINES]:
            yield from _wrapped(line, width, 6)
        if len(lines) > MOST_LINES:
            yield f"      and {len(lines) - MOST_LINES} more"
    if comparison.unplanned:
        yield from _wrapped(
            f"{counted(len(comparison.unplanned), 'operation')} not in the plan: Core ML has fused or dropped them", width, 4
        )


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """Names are not broken: they are there to be copied."""
    first = " " * indent
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=f"{first}  ", break_long_words=False, break_on_hyphens=False
    ) or [""]
