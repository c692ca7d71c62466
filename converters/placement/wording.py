"""What every form of the report says alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import printable
from .compute_plan import KINDS
from .report import counted, percent, shown_seconds

if TYPE_CHECKING:
    from .assess import Assessment, Placed
    from .compute_plan import Disagreement
    from .report import Report, StageReport
    from .song import SongPrediction

MODEL = "a model's prediction, not a measurement"
NOT_ASKED = "By published rules alone: Core ML was not asked."
UNIT_TITLES = {"ane": "Neural Engine", "gpu": "GPU", "cpu": "CPU", "none": "no place of its own"}
DISAGREEMENTS = {
    "unsupported": "the linter lets them through, and Core ML says that the Neural Engine does not support them",
    "taken": "the linter blocks them, and Core ML says that the Neural Engine supports them",
    "elsewhere": "both say that the Neural Engine could run them, and Core ML prefers another unit",
}
HEADINGS = ("stage", "ops", "FLOPs", "blocked", "hazards", "unproven", "predicted")


def overview(report: Report) -> tuple[tuple[str, ...], list[list[str]]]:
    """A row for every stage."""
    rows = []
    for stage in report.stages:
        assessment = stage.assessment
        shares = [percent(assessment.share_of_operations), percent(assessment.share_of_flops)]
        counts = [str(stage.count(section)) for section in ("blocked", "hazard", "unproven")]
        rows.append([printable(stage.subject.title), *shares, *counts, shown_seconds(assessment.times.total)])
    return HEADINGS, rows


def time_parts(assessment: Assessment) -> Iterator[tuple[str, str]]:
    """The predicted time and what it is made of."""
    times = assessment.times
    yield "total", shown_seconds(times.total)
    for unit, seconds in times.by_unit.items():
        if times.counts[unit]:
            yield UNIT_TITLES[unit], shown_seconds(seconds)
    yield "dispatch", shown_seconds(times.dispatch_seconds)
    if times.switches:
        yield counted(times.switches, "change") + " of unit", shown_seconds(times.transfer_seconds)


def shapes_of(placed: Placed) -> str:
    """What it computes with, constants aside, and what it gives."""
    given = ", ".join(str(tensor) for tensor in placed.inputs if not tensor.is_fixed) or "nothing"
    return f"{given} -> {', '.join(map(str, placed.outputs)) or 'nothing'}"


def disagreements(stage: StageReport) -> Iterator[tuple[str, list[str]]]:
    """Kind -> a line for every operation, the most costly first."""
    if stage.comparison is None:
        return
    placed = {item.name: item for item in stage.assessment.operations}
    for kind in KINDS:
        items = sorted(stage.comparison.of_kind(kind), key=lambda item: -item.cost)
        if items:
            yield kind, [_disagreement(stage, item, placed[item.name]) for item in items]


def _disagreement(stage: StageReport, item: Disagreement, placed: Placed) -> str:
    rules = f"; blocked by {', '.join(item.rules)}" if item.rules else ""
    cost = f", {percent(item.cost)} of the cost" if item.cost else ""
    return f"{printable(item.type)} {stage.place(placed)}: {UNIT_TITLES.get(item.unit, item.unit)}{cost}{rules}; {shapes_of(placed)}"


def song_lines(song: SongPrediction) -> Iterator[str]:
    """The whole, then each stage; further windows of a stage apart."""
    yield (
        f"{shown_seconds(song.total)} for {song.audio_seconds:g} s of audio in {counted(song.segments, 'segment')}:"
        f" {song.audio_seconds / song.total:.0f} times as fast as it plays"
    )
    for name, stage in song.stages.items():
        yield f"{name}: {shown_seconds(stage.seconds)}, {counted(stage.windows, 'window')} of {stage.window} frames"
    for name, stage in song.others.items():
        yield f"instead, {name}: {shown_seconds(stage.seconds)}, {counted(stage.windows, 'window')}"
    yield "without the host's share (reading, retrieval, the source, joining) and without loading"
