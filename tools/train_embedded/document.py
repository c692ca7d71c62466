"""Markdown that tools write: tables, and blocks between marks in a page that people write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .sources import TrainingError

BEGIN, END = "<!-- {}: written by tools/train_embedded -->", "<!-- end of {} -->"


def fill(text: str, block: str, content: str) -> str:
    """`text` with what lies between the marks of a block exchanged. Raises TrainingError where they are missing."""
    before, found, rest = text.partition(BEGIN.format(block))
    _old, ended, after = rest.partition(END.format(block))
    if not found or not ended:
        raise TrainingError(f"the document has no block {block!r}: put back {BEGIN.format(block)} and {END.format(block)}")
    return f"{before}{found}\n\n{content}\n\n{ended}{after}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows))
