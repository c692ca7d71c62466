"""The report as one HTML page without anything from elsewhere: every operation of a network in a strip, coloured by its unit.

A unit shows by colour, height and pattern, a hazard or an unproven finding by a mark. The strip is one stop for the keyboard,
arrow keys go through it; what a screen reader or a browser without scripts needs is in the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from typing import Any

from ...errors import printable
from .assess import Placed
from .compute_plan import ANE
from .report import SECTIONS, Group, Report, StageReport, counted, percent, shown_flops
from .wording import DISAGREEMENTS, MODEL, NOT_ASKED, UNIT_TITLES, disagreements, overview, shapes_of, song_lines, time_parts

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
LABELS = {"blocked": "off the ANE", "hazard": "hazard", "unproven": "unproven", "slow": "slow", "note": "note"}
SIGNS = {"blocked": "✕", "hazard": "▲", "unproven": "○", "slow": "▾", "note": "·"}
HINT = "Point at an operation, or focus the strip and use the arrow keys."
MOST_NAMES = 200  # of operations listed under one finding


def render_page(report: Report) -> str:
    """The whole page."""
    style, script = (files(__package__ or "").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = [_data(stage) for stage in report.stages]
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(printable(str(report.path.name)))}: placement on {escape(report.chip.title)}</title>",
        f"<style>\n{style}</style>",
        "<body>",
        *_header(report),
        "<main>",
        *_overview(report),
        *_songs(report),
        *(line for index, stage in enumerate(report.stages) for line in _stage(index, stage)),
        "</main>",
        *_footer(),
        f'<script type="application/json" id="data">{_embedded(data)}</script>',
        f"<script>\n{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _header(report: Report) -> Iterator[str]:
    facts = {
        "Chip": report.chip.title,
        "Operations off the Neural Engine": str(report.total("blocked")),
        "With a hazard": str(report.total("hazard")),
        "Unproven": str(report.total("unproven")),
        "Stages": str(len(report.stages)),
    }
    yield '<header><p class="brand">rvc-coreml <span>placement report</span></p>'
    yield f"<h1><b>{percent(report.share_of_flops)}</b> of the work can go to the Neural Engine</h1>"
    yield f'<p class="subject">{escape(printable(str(report.path)))}</p>'
    yield _facts(facts)
    yield f'<p class="said">{escape(NOT_ASKED if not report.planned else "Core ML was asked too: see each stage.")}</p></header>'


def _facts(facts: dict[str, str], name: str = "") -> str:
    items = "".join(f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd></div>" for title, value in facts.items())
    return f"<dl{name}>{items}</dl>"


def _overview(report: Report) -> Iterator[str]:
    if len(report.stages) < 2:
        return
    headings, rows = overview(report)
    yield '<section><h2>Stages</h2><table class="stacked"><thead><tr>'
    yield "".join(f'<th scope="col"{_number(position)}>{escape(heading)}</th>' for position, heading in enumerate(headings))
    yield '<th scope="col">share of FLOPs</th></tr></thead><tbody>'
    for index, (stage, row) in enumerate(zip(report.stages, rows, strict=True)):
        yield f'<tr><th scope="row"><a href="#stage{index}">{escape(row[0])}</a></th>'
        cells = enumerate(zip(headings[1:], row[1:], strict=True), 1)
        yield "".join(f'<td data-name="{escape(heading)}"{_number(position)}>{escape(cell)}</td>' for position, (heading, cell) in cells)
        yield f'<td data-name="share of FLOPs">{_bar(stage.assessment.share_of_flops)}</td></tr>'
    yield "</tbody></table></section>"


def _number(position: int) -> str:
    return ' class="number"' if position else ""


def _bar(share: float) -> str:
    return f'<span class="bar" role="img" aria-label="{percent(share)}"><i style="width:{100 * share:.2f}%"></i></span>'


def _songs(report: Report) -> Iterator[str]:
    if not report.songs:
        return
    yield f"<section><h2>A song of three minutes <small>{escape(MODEL)}</small></h2>"
    for name, song in report.songs.items():
        lines = "".join(f"<li>{escape(line)}</li>" for line in song_lines(song))
        yield f'<h3>{escape(printable(name))}</h3><ul class="song">{lines}</ul>'
    yield "</section>"


def _stage(index: int, stage: StageReport) -> Iterator[str]:
    assessment = stage.assessment
    yield f'<section id="stage{index}" data-stage="{index}"><h2>{escape(printable(stage.subject.title))}'
    yield f"<small>{escape(', '.join(f'{name} {value}' for name, value in stage.subject.facts.items()))}</small></h2>"
    total = len(stage.counted)
    (_name, total_time), *parts = time_parts(assessment)
    facts = {
        "Operations": f"{percent(assessment.share_of_operations)} of {total} can go to the ANE",
        "FLOPs": f"{percent(assessment.share_of_flops)} of {shown_flops(stage.total_flops)}",
        "Predicted for one window": total_time,
    }
    yield _facts(facts, ' class="facts"')
    yield f'<p class="said">{MODEL[0].upper()}{MODEL[1:]}: {escape(", ".join(f"{name} {text}" for name, text in parts))}.</p>'
    yield from _plan(stage)
    yield '<ul class="key">'
    units = stage.units() | {"none": len(assessment.operations) - total}
    for unit, count in units.items():
        if count:
            yield f'<li><i class="op {unit}"></i>{escape(UNIT_TITLES[unit])}, {count}</li>'
    for section in ("hazard", "unproven"):
        if stage.count(section):
            yield f'<li><i class="op mark {section}"></i>{section}, {stage.count(section)}</li>'
    yield "</ul>"
    name = f"{counted(len(assessment.operations), 'operation')} of {stage.subject.title}, in order; arrow keys go through them"
    yield f'<div class="strip" role="listbox" tabindex="0" aria-label="{escape(printable(name))}">'
    yield "".join(_cells(index, stage)) + "</div>"
    yield f'<div class="about" aria-live="polite"><p class="soft">{HINT}</p></div>'
    yield from _findings(stage)
    yield "</section>"


def _cells(index: int, stage: StageReport) -> Iterator[str]:
    for position, placed in enumerate(stage.assessment.operations):
        unit = placed.unit if placed.counted else "none"
        mark = next((f" {section}" for section in ("hazard", "unproven") if placed.name in stage.names(section)), "")
        label = f"{placed.type}, {UNIT_TITLES[unit]}{mark}"
        yield f'<i class="op {unit}{mark}" id="s{index}o{position}" role="option" aria-label="{escape(printable(label))}"></i>'


def _findings(stage: StageReport) -> Iterator[str]:
    if not stage.groups:
        yield '<p class="clean">No rule found anything.</p>'
        return
    sections = [section for section in SECTIONS if stage.of(section)]
    yield '<div class="filters" role="group" aria-label="Show">'
    yield '<button type="button" data-show="all" aria-pressed="true">All</button>'
    for section in sections:
        yield f'<button type="button" data-show="{section}" aria-pressed="false">{LABELS[section]}, {stage.count(section)}</button>'
    yield '</div><table class="stacked findings"><thead><tr>'
    yield "".join(f'<th scope="col">{heading}</th>' for heading in ("", "rule", "operations and remedy")) + "</tr></thead><tbody>"
    for group in stage.groups:
        yield from _row(stage, group)
    yield "</tbody></table>"


def _row(stage: StageReport, group: Group) -> Iterator[str]:
    yield f'<tr data-section="{group.section}"><td><span class="badge {group.section}">'
    yield f'<span aria-hidden="true">{SIGNS[group.section]}</span> {LABELS[group.section]}</span></td>'
    source = f'<span class="rule">{escape(group.rule)}, confidence {escape(group.confidence)}; {escape(group.source)}</span>'
    yield f'<td class="wide">{escape(group.title)}{source}</td><td class="wide">'
    if group.operations:
        share = percent(stage.share_of(group.operations))
        yield f"<p><b>{counted(len(group.operations), 'operation')}</b>, {share} of the FLOPs</p>"
    yield f'<p class="remedy">{escape(group.remedy)}</p>'
    for case in group.cases:
        if not case.operations:
            yield f"<p>{escape(printable(case.what))}</p>"
            continue
        names = [stage.place(placed) for placed in case.operations]
        rest = len(names) - MOST_NAMES
        items = "".join(f"<li>{escape(name)}</li>" for name in names[:MOST_NAMES]) + (f"<li>and {rest} more</li>" if rest > 0 else "")
        heading = escape(printable(f"{len(names)} {case.type}: {case.what}"))
        yield f"<details><summary>{heading}</summary><ul>{items}</ul></details>"
    yield "</td></tr>"


def _plan(stage: StageReport) -> Iterator[str]:
    if stage.comparison is None:
        return
    comparison = stage.comparison
    shares = ", ".join(f"{UNIT_TITLES[unit]} {percent(comparison.plan.share(unit))}" for unit in (ANE, "gpu", "cpu"))
    yield f"<h3>Core ML's own plan</h3><p>Of its operations: {escape(shares)}.</p>"
    for kind, items in disagreements(stage):
        listed = "".join(f"<li>{escape(item)}</li>" for item in items[:MOST_NAMES])
        yield f"<details><summary>{len(items)}: {escape(DISAGREEMENTS[kind])}</summary><ul>{listed}</ul></details>"


def _data(stage: StageReport) -> dict[str, Any]:
    """What the script reads: all text, no HTML."""
    findings: list[dict[str, str]] = []
    of: dict[str, list[list[Any]]] = {}
    for group in stage.groups:
        for case in group.cases:
            for placed in case.operations:
                of.setdefault(placed.name, []).append([len(findings), printable(case.what)])
        label = f"{SIGNS[group.section]} {LABELS[group.section]}"
        findings.append({"section": group.section, "label": label, "rule": group.rule, "remedy": group.remedy})
    return {"operations": [_operation(stage, placed, of) for placed in stage.assessment.operations], "findings": findings}


def _operation(stage: StageReport, placed: Placed, of: dict[str, list[list[Any]]]) -> list[Any]:
    unit = placed.unit if placed.counted else "none"
    work = shown_flops(placed.flops) if placed.flops else ""
    return [printable(placed.name), printable(placed.type), unit, stage.module(placed), shapes_of(placed), work, of.get(placed.name, [])]


def _footer() -> Iterable[str]:
    yield "<footer><p>Rules, their sources and confidence: docs/placement_rules.md. No rule was fitted to a package of this project.</p>"
    yield "<p>Times are a model's and not a measurement. Not yet run on a Mac.</p>"
    yield "<p>This page is complete in itself and loads nothing.</p></footer>"


def _embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
