"""Markdown that tools write: tables, and blocks between marks in a page that people write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rvc_coreml.errors import UsageError

BEGIN, END = "<!-- {}: written by {} -->", "<!-- end of {} -->"


def fill(text: str, block: str, content: str, writer: str) -> str:
    """`text` with what lies between the marks of a block exchanged; `writer` is a tool's path. Raises UsageError where there are none."""
    begin, end = BEGIN.format(block, writer), END.format(block)
    before, found, rest = text.partition(begin)
    _old, ended, after = rest.partition(end)
    if not found or not ended:
        raise UsageError(f"the document has no block {block!r}: put back {begin} and {end}")
    return f"{before}{found}\n\n{content}\n\n{ended}{after}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows))
