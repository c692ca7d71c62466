"""Markdown for a pull request: the verdict first, what is not good, and the rest folded away."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from ..thresholds import Verdict
from .model import Check, Report, decibels, figures, groups, worst

MARKS = {Verdict.GOOD: "✅", Verdict.DEGRADED: "⚠️", Verdict.BROKEN: "❌"}
MAX_CHARACTERS = 60_000  # GitHub refuses a comment of more than 65,536
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~])")
_COLUMNS = ["", "component", "stage", "case", "output", "against", "SNR dB", "cosine", "level", "why"]


def render_markdown(report: Report) -> str:
    """The whole text; whatever would make it longer than a comment may be is left out, and said."""
    lines = [f"## {MARKS[report.verdict]} {_title(report)}", "", f"{_text(report.summary)}. {_where(report)}", ""]
    lines += [f"- ❌ {_text(sentence)}" for sentence in report.widened]
    lines += [f"- {_text(note)}" for note in report.notes]
    not_good = [check for check in report.checks if check.verdict is not Verdict.GOOD]
    if not_good:
        lines += ["", *_table(_COLUMNS, (_row(check) for check in not_good))]
        lines += ["", *(f"- {_text(f'{check.component}, {check.stage}')}: {_explained(check)}" for check in report.explained)]
    head = "\n".join(lines).rstrip("\n") + "\n"
    rest = "\n".join(["", "<details>", f"<summary>All {len(report.checks)} checks</summary>", "", *_by_stage(report), "", "</details>", ""])
    if len(head) > MAX_CHARACTERS:
        return _cut(head)
    return head + rest if len(head) + len(rest) <= MAX_CHARACTERS else head + "\nThe table of all checks is too long to be shown here.\n"


def _title(report: Report) -> str:
    outcome = {Verdict.GOOD: "every output is good", Verdict.DEGRADED: "degraded", Verdict.BROKEN: "broken"}[report.verdict]
    failing = "" if report.passed or report.verdict is Verdict.BROKEN else " (fails: strict)"
    return f"{_text(report.title)}: {outcome}{failing}"


def _where(report: Report) -> str:
    tools = ", ".join(f"{name} {version}" for name, version in report.tools.items())
    return _text(f"Ran on {report.detail or report.backend} in {report.seconds:.0f} s" + (f" with {tools}" if tools else "")) + "."


def _row(check: Check) -> list[str]:
    named = [check.component, f"{check.stage} ({check.precision})", check.case, check.output, check.against]
    return [MARKS[check.verdict], *named, *figures(check.comparison), check.reason]


def _explained(check: Check) -> str:
    explanation = check.explanation or {}
    module = f", module `{_code(explanation['module'])}`" if explanation.get("module") else ""
    operation = f"`{_code(explanation.get('operation', ''))}` ({_text(str(explanation.get('operation_type', '')))})"
    return f"first departs at {operation}{module}: {_text(str(explanation.get('text', '')))}"


def _by_stage(report: Report) -> list[str]:
    rows = []
    for (component, stage), checks in groups(report.checks).items():
        compared = [check.comparison for check in checks if check.comparison is not None]
        least = decibels(min((found.snr_db for found in compared), default=float("-inf")))
        cosine = f"{min(found.worst_cosine for found in compared):.6f}" if compared else ""
        mark = MARKS[worst(check.verdict for check in checks)]
        rows.append([mark, component, stage, checks[0].precision, str(len(checks)), least, cosine])
    lines = _table(["", "component", "stage", "precision", "checks", "least SNR dB", "least cosine"], rows)
    return [*lines, "", *_table(_COLUMNS[:-1], (_row(check)[:-1] for check in report.checks))]


def _table(headings: list[str], rows: Iterable[list[str]]) -> list[str]:
    marks = set(MARKS.values())
    body = ["| " + " | ".join(cell if cell in marks else _text(cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(headings) + " |", "| " + " | ".join("---" for _ in headings) + " |", *body]


def _cut(text: str) -> str:
    kept = text[:MAX_CHARACTERS]
    return kept[: kept.rfind("\n") + 1] + "\nThe rest is too long to be shown here.\n"


def _text(value: str) -> str:
    """Names may hold anything: no Markdown, no HTML, one line, and no one is mentioned."""
    escaped = _SPECIAL.sub(r"\\\1", html.escape(" ".join(value.split()), quote=False))
    return escaped.replace("@", "&#64;")


def _code(value: object) -> str:
    return " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
