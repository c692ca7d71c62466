"""Pictures of what windows cost. Need matplotlib, which is an extra."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_path
from .window_report import StageWindows

COLOURS = ("#2c6fbb", "#e08a2e", "#7fb77e", "#c0392b", "#8e6bb0", "#6b7a8f")
WIDTH_INCHES, PANEL_INCHES = 10, 3.2


def draw_windows(stages: Sequence[StageWindows], path: Path, title: str) -> None:
    """SNR and worst frame against the window, a line for every overlap, a row of panels for every stage. Atomic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, PANEL_INCHES * max(1, len(stages))), layout="constrained")
    panels = figure.subplots(max(1, len(stages)), 2, squeeze=False)
    for row, stage in zip(panels, stages, strict=False):
        _panel(row[0], stage, [item.snr_db for item in stage.rows], "SNR in dB")
        _panel(row[1], stage, [item.worst_frame_db for item in stage.rows], "signal over error at the worst frame, dB")
    figure.suptitle(title, fontsize=10, parse_math=False)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font does not have
        figure.savefig(temporary, dpi=110)


def _panel(axes: Any, stage: StageWindows, values: Sequence[float], label: str) -> None:
    measured = [(row, value) for row, value in zip(stage.rows, values, strict=True) if np.isfinite(value)]
    for place, context in enumerate(sorted({row.context for row, _value in measured})):
        points = [(row, value) for row, value in measured if row.context == context]
        seconds = [row.window * stage.frame_seconds for row, _value in points]
        shown = f"{context * stage.frame_seconds:.2g} s on either side"
        axes.plot(
            seconds, [value for _row, value in points], "o-", color=COLOURS[place % len(COLOURS)], markersize=3, linewidth=1, label=shown
        )
    own = [(row, value) for row, value in measured if stage.is_own(row)]
    if own:
        places = [row.window * stage.frame_seconds for row, _value in own]
        axes.scatter(
            places, [value for _row, value in own], s=70, facecolors="none", edgecolors="#222222", label="in the library", zorder=3
        )
    axes.set_title(f"{stage.component}, {stage.stage}", fontsize=9, parse_math=False)
    axes.set_xlabel("window in seconds")
    axes.set_ylabel(label, fontsize=8)
    axes.grid(alpha=0.3)
    if measured:
        axes.legend(fontsize=7)
