"""The page: one file with everything in it, to look at and to listen to, that asks no network for anything.

The summary, the chart and the table are plain HTML and stand without scripts; `page.js` draws what a check's row unfolds.
A content security policy in the page forbids every request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from typing import Any

from ..golden import PIPELINE
from ..thresholds import LIMITS, SEVERITY, Verdict
from .model import Check, Report, figures, groups, worst

MAX_PAGE_BYTES = 24 << 20  # evidence beyond it is left out, that of good checks first
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src blob: data:"
TITLES = {Verdict.GOOD: "Every output is good", Verdict.DEGRADED: "Degraded", Verdict.BROKEN: "Broken"}
SIGNS = {Verdict.GOOD: "✓", Verdict.DEGRADED: "!", Verdict.BROKEN: "✕"}
_CHART_WIDTH, _CHART_LEFT, _CHART_RIGHT, _ROW, _TOP = 950, 332, 18, 30, 8  # the left holds 20 characters of a name, a stage and a kind
_METRICS = {  # what the page calls a metric, and how it is written
    "snr_db": ("SNR", "{:.1f} dB"),
    "psnr_db": ("PSNR", "{:.1f} dB"),
    "worst_cosine": ("worst-frame cosine", "{:.6f}"),
    "level": ("level", "{:.4f}"),
    "max_error": ("largest error", "{:.3g}"),
    "max_relative_error": ("largest error / RMS", "{:.3g}"),
    "log_mel_cosine": ("log-mel cosine", "{:.5f}"),
    "stft_distance": ("STFT distance", "{:.4f}"),
    "mcd_db": ("mel cepstral distortion", "{:.3f} dB"),
    "pitch_agreement": ("pitch agreement", "{:.1%}"),
}


def render_html(report: Report) -> str:
    """The whole page, below MAX_PAGE_BYTES plus the table's own size."""
    shown = _within_budget(report)
    featured = _featured(report, shown)
    data = {
        "checks": {str(index): _unfolded(report.checks[index], index in shown) for index in _unfoldable(report, shown)},
        "listen": featured,
    }
    style, script = (files(__name__.rpartition(".")[0]).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    title = f"{report.title}: {TITLES[report.verdict].lower()}"
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style}</style>",
        "<body>",
        *_header(report),
        "<main>",
        *_widened(report),
        *_chart(report),
        *_listen(report, featured),
        *_table(report, shown),
        "</main>",
        *_footer(report),
        f'<script type="application/json" id="data">{_embedded(data)}</script>',
        f"<script>\n{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _within_budget(report: Report) -> set[int]:
    """Checks whose evidence the page holds: the worst first, audio before features, until MAX_PAGE_BYTES are spent."""
    having = [index for index, check in enumerate(report.checks) if check.evidence is not None]
    having.sort(key=lambda index: (-SEVERITY[report.checks[index].verdict], not _has_audio(report.checks[index]), index))
    shown, spent = set(), 0
    for index in having:
        evidence = report.checks[index].evidence
        if evidence is not None and spent + evidence.size <= MAX_PAGE_BYTES:
            spent += evidence.size
            shown.add(index)
    return shown


def _has_audio(check: Check) -> bool:
    return check.evidence is not None and "rate" in check.evidence.values


def _featured(report: Report, shown: set[int]) -> int | None:
    """The check that is unfolded at the top: the worst one with audio; of equals the pipeline, then the longest."""

    def rank(index: int) -> tuple[int, bool, float]:
        check = report.checks[index]
        assert check.evidence is not None  # noqa: S101 - `shown` holds no others
        return -SEVERITY[check.verdict], check.stage != PIPELINE, -check.evidence.values["seconds"]

    return min((index for index in shown if _has_audio(report.checks[index])), key=rank, default=None)


def _unfoldable(report: Report, shown: set[int]) -> list[int]:
    return [index for index, check in enumerate(report.checks) if index in shown or check.comparison is not None or check.explanation]


def _unfolded(check: Check, drawn: bool) -> dict[str, Any]:
    """What a row unfolds to, as the script reads it; all text, no HTML."""
    values: dict[str, Any] = {"title": f"{check.component}, {check.stage}, {check.case}, {check.output}", "metrics": _metrics(check)}
    values["lines"] = {name: round(value, 1) for name, value in _bands(check.stage, check.precision).items() if math.isfinite(value)}
    if check.explanation is not None:
        values["explanation"] = {name: str(value) for name, value in check.explanation.items() if value is not None}
    if drawn and check.evidence is not None:
        values |= {"evidence": check.evidence.values}
    elif check.evidence is not None:
        values["left_out"] = f"The curves and sounds of this check are left out: a page holds at most {MAX_PAGE_BYTES >> 20} MB of them."
    return values


def _metrics(check: Check) -> list[list[str]]:
    if check.comparison is None:
        return []
    found = check.comparison.as_dict()
    rows = []
    for name, (title, form) in _METRICS.items():
        value = found.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append([title, form.format(value)])
        elif name == "snr_db":
            rows.append([title, "exact" if found.get("exact") else "none"])
    return [*rows, ["finite", "yes" if check.comparison.finite else "no"]]


def _header(report: Report) -> Iterator[str]:
    verdict = report.verdict
    backend = f"{report.backend} ({report.detail})" if report.detail else report.backend
    facts = {"Backend": backend, "Held against": report.against}
    facts |= {"Bands": "strict: degraded fails" if report.strict else "degraded passes", "Took": f"{report.seconds:.1f} s"}
    facts |= {"Made": report.created} if report.created else {}
    facts |= dict(report.tools)
    yield f'<header class="{verdict.value}">'
    yield '<p class="brand">rvc-coreml <span>validation report</span></p>'
    yield f'<h1><span class="sign" aria-hidden="true">{SIGNS[verdict]}</span>{escape(TITLES[verdict])}</h1>'
    yield f'<p class="library">{escape(report.title)}</p>'
    yield f'<p class="counts" aria-label="{escape(report.summary)}">'
    for each in Verdict:
        yield f'<span class="count {each.value}{"" if report.count(each) else " none"}"><b>{report.count(each)}</b> {each.value}</span>'
    yield "</p>"
    yield "<dl>" + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items()) + "</dl>"
    yield "</header>"


def _widened(report: Report) -> Iterator[str]:
    if report.widened:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.widened)
        yield f'<section class="alert"><h2>Thresholds were widened</h2><ul>{items}</ul></section>'
    if report.notes:
        yield '<section class="notes"><ul>' + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul></section>"


def _bands(stage: str, precision: str) -> dict[str, float]:
    """SNR in dB where good begins and where broken ends, by the table of thresholds."""
    for limit in LIMITS.get((stage, precision), ()):
        if limit.metric == "snr_db":
            return {"good": float(limit.good), "broken": float(limit.degraded)}  # type: ignore[arg-type]
    return {}


def _chart(report: Report) -> Iterator[str]:
    """A row for every component, stage and what ran it, a dot for every check at its SNR, over the bands of its thresholds."""
    rows: dict[tuple[str, str, str], list[Check]] = {}
    for check in report.checks:
        if check.comparison is not None:
            kind = check.precision if check.ran.startswith(report.backend) else f"{check.precision} torch"
            rows.setdefault((check.component, check.stage, kind), []).append(check)
    if not rows:
        return
    values = [check.comparison.snr_db for checks in rows.values() for check in checks if check.comparison is not None]
    finite = [value for value in values if math.isfinite(value)]
    high = max(60.0, 10 * math.ceil((max(finite, default=0) + 5) / 10))
    low = min(0.0, 10 * math.floor(max(min(finite, default=0), -40.0) / 10))
    width, height = _CHART_WIDTH - _CHART_LEFT - _CHART_RIGHT, _TOP + _ROW * len(rows)

    def x(value: float) -> float:
        return _CHART_LEFT + width * (min(max(value, low), high) - low) / (high - low)

    yield "<section><h2>How near <small>SNR of every check in dB, mean removed, over the bands of its thresholds</small></h2>"
    yield '<div class="chart">'
    yield f'<svg viewBox="0 0 {_CHART_WIDTH} {height + 26}" role="img" aria-label="SNR of every check by stage">'
    for position, ((component, stage, kind), checks) in enumerate(rows.items()):
        top = _TOP + position * _ROW
        bands = _bands(stage, checks[0].precision)
        edges = [low, bands.get("broken", low), bands.get("good", low), high]
        for band, start, stop in zip(("broken", "degraded", "good"), edges[:-1], edges[1:], strict=True):
            if x(stop) > x(start):
                yield f'<rect class="band {band}" x="{x(start):.1f}" y="{top + 4}" width="{x(stop) - x(start):.1f}" height="{_ROW - 8}"/>'
        middle = top + _ROW / 2
        name = f'<tspan class="of">{escape(_shortened(component))}</tspan> {escape(stage)} {escape(kind)}'
        yield f'<text class="name" x="{_CHART_LEFT - 10}" y="{middle + 4}" text-anchor="end">{name}</text>'
        for check in checks:
            if check.comparison is not None:
                value = check.comparison.snr_db
                value = value if not math.isnan(value) else -math.inf
                text = escape(f"{check.case}, {check.output}: {figures(check.comparison)[0]} dB, {check.verdict.value}")
                yield f'<circle class="dot {check.verdict.value}" cx="{x(value):.1f}" cy="{middle}" r="5"><title>{text}</title></circle>'
    step = 20 if high - low > 80 else 10
    for tick in range(math.ceil(low / step) * step, int(high) + 1, step):
        yield f'<line class="tick" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{height + 4}"/>'
        yield f'<text class="tick" x="{x(tick):.1f}" y="{height + 20}" text-anchor="middle">{tick}</text>'
    yield "</svg></div></section>"


def _shortened(text: str, most: int = 20) -> str:
    text = text.replace("content encoder", "")
    return text if len(text) <= most else text[: most - 1] + "…"


def _listen(report: Report, featured: int | None) -> Iterator[str]:
    if featured is None:
        return
    check = report.checks[featured]
    where = f"{check.component}, {check.stage}, {check.case}"
    yield f'<section id="listen"><h2>Look and listen <small>{escape(where)}</small></h2>'
    yield '<div class="panel"><noscript>The curves and players need JavaScript.</noscript></div></section>'


def _table(report: Report, shown: set[int]) -> Iterator[str]:
    yield '<section id="checks"><h2>Checks</h2>'
    yield '<div class="filters" role="group" aria-label="Show"><button type="button" data-show="all" aria-pressed="true">All</button>'
    yield '<button type="button" data-show="bad" aria-pressed="false">Not good</button>'
    for stage in dict.fromkeys(check.stage for check in report.checks):
        yield f'<button type="button" data-show="stage" data-stage="{escape(stage)}" aria-pressed="false">{escape(stage)}</button>'
    yield "</div><table><thead><tr>"
    for heading in ("verdict", "case", "output", "ran on", "against", "SNR dB", "cosine", "level"):
        yield f'<th scope="col">{heading}</th>'
    yield "</tr></thead>"
    unfoldable, index = set(_unfoldable(report, shown)), {id(check): position for position, check in enumerate(report.checks)}
    explained = {id(check) for check in report.explained}
    for (component, stage), checks in groups(report.checks).items():
        verdict = worst(check.verdict for check in checks).value
        precisions = ", ".join(dict.fromkeys(check.precision for check in checks))
        yield f'<tbody data-stage="{escape(stage)}">'
        yield f'<tr class="group"><th colspan="8" scope="rowgroup"><span class="mark {verdict}"></span>{escape(stage)}'
        yield f"<small>{escape(component)}, {escape(precisions)}</small></th></tr>"
        for check in checks:
            yield from _row(check, index[id(check)], index[id(check)] in unfoldable, id(check) in explained)
        yield "</tbody>"
    yield "</table></section>"


def _row(check: Check, index: int, unfolds: bool, explained: bool) -> Iterator[str]:
    verdict = check.verdict
    badge = f'<span class="badge {verdict.value}"><span aria-hidden="true">{SIGNS[verdict]}</span>{verdict.value}</span>'
    if unfolds:
        badge = f'<button type="button" class="unfold" aria-expanded="false" aria-label="Details of {escape(check.name)}">{badge}</button>'
    yield f'<tr class="check {verdict.value}" data-index="{index}"><td>{badge}</td>'
    cells = zip(("case", "output", "ran", "against"), (check.case, check.output, check.ran, check.against), strict=True)
    yield "".join(f'<td data-name="{name}">{escape(value)}</td>' for name, value in cells)
    numbers = zip(("SNR dB", "cosine", "level"), figures(check.comparison), strict=True)
    yield "".join(f'<td class="number" data-name="{name}">{escape(value)}</td>' for name, value in numbers)
    yield "</tr>"
    if check.reason:
        extra = f'<span class="explained">{escape(check.explanation_text)}</span>' if explained else ""
        yield f'<tr class="why {verdict.value}" data-of="{index}"><td colspan="8">{escape(check.reason)}{extra}</td></tr>'


def _footer(report: Report) -> Iterator[str]:
    yield "<footer><p>SNR is mean-removed: the reference's mean over time is subtracted from both sides first.</p>"
    if report.backend == "reference":
        yield "<p>The reference executor computes every operation as the package declares it, without a device's own rounding.</p>"
    yield "<p>This page is complete in itself and loads nothing.</p></footer>"


def _embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
