"""The table on a terminal, as headings and rows."""

from __future__ import annotations

from ...errors import printable
from .model import Report, figures

HEADINGS = ["component", "stage", "precision", "case", "output", "ran on", "SNR dB", "cosine", "level", "verdict"]


def render_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; the verdict says what decided it."""
    rows = []
    for check in report.checks:
        verdict = check.verdict.value + (f": {check.reason}" if check.reason else "")
        named = [check.component, check.stage, check.precision, check.case, check.output, check.ran]
        rows.append([*(printable(cell) for cell in named), *figures(check.comparison), verdict])
    return HEADINGS, rows
