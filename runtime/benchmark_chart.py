"""The picture of a benchmark: a bar for each case, made of its stages. Needs matplotlib, which is an extra."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .benchmark import REST, Step, Timing
from .files import atomic_path

COLOURS = ("#2c6fbb", "#e08a2e", "#7fb77e", "#c0392b", "#8e6bb0", "#b8a13a", "#4fb3bf", "#d48fb0", "#6b7a8f", "#a5673f")
REST_COLOUR = "#cccccc"
BAR_INCHES, OTHER_INCHES, WIDTH_INCHES = 0.42, 1.7, 10


def draw(timings: Sequence[Timing], steps: Sequence[Step], path: Path, title: str) -> None:
    """Seconds of each conversion by stage; with an ablation below, its lines from the baseline on. Atomic."""
    from matplotlib.figure import Figure

    groups = [[(timing.case.name, timing) for timing in timings if timing.rounds]]
    groups.append([(step.name if step.kept else f"({step.name})", step.timing) for step in steps if step.timing.rounds])
    groups = [group for group in groups if group]
    heights = [BAR_INCHES * len(group) + OTHER_INCHES for group in groups] or [OTHER_INCHES]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    names = list(dict.fromkeys(name for group in groups for _label, timing in group for name in timing.by_stage() if name != REST))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)} | {REST: REST_COLOUR}
    panels = figure.subplots(max(1, len(groups)), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, group in zip(panels, groups, strict=False):
        _bars(axes, group, colours)
    if names:
        panels[0].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    panels[0].set_title(title, fontsize=10, parse_math=False)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font does not have
        figure.savefig(temporary, dpi=130)


def _bars(axes: Any, group: Sequence[tuple[str, Timing]], colours: dict[str, str]) -> None:
    labels = [label for label, _timing in group]
    starts = [0.0] * len(group)
    for name, colour in colours.items():
        widths = [timing.by_stage().get(name, 0.0) for _label, timing in group]
        if any(widths):
            axes.barh(range(len(group)), widths, left=starts, color=colour, label=name.replace("_", " "), height=0.7)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    longest = max(*starts, *(timing.seconds for _label, timing in group))
    for place, (_label, timing) in enumerate(group):
        axes.plot([timing.seconds] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1.5)
        axes.text(max(starts[place], timing.seconds) + 0.01 * longest, place, f"{timing.seconds:.3g} s", va="center", fontsize=8)
    axes.set_yticks(range(len(group)), labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * longest)
    axes.set_xlabel("seconds by stage; the black line is the whole conversion, in which stages may overlap", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(y=0.02)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
