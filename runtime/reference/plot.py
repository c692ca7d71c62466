"""A picture of a comparison: SNR along the program. Needs matplotlib, which is an extra."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ...errors import UsageError, printable
from ..files import atomic_path, require_writable
from .compare import Divergence

FORMATS = (".png", ".svg", ".pdf")
HEADROOM_DB = 12.0
FLOOR_DB = -20.0
_NAMED = 3  # values labelled in the picture
_LONGEST = 90  # characters of a text in the picture


def check_plot(path: Path) -> None:
    """Raises UsageError or OutputError where a picture could not be drawn to a path, before any work is done."""
    if path.suffix not in FORMATS:
        raise UsageError(f"{path} has to end in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("pictures need matplotlib: pip install 'rvc-coreml[plot]'") from error
    require_writable(path)


def draw_snr(found: Divergence, path: Path, title: str) -> None:
    """SNR of every compared value in program order, the threshold, and the values that lose most. Atomic."""
    from matplotlib.figure import Figure

    snr = np.array([item.snr_db for item in found.differences])
    places = np.arange(1, len(snr) + 1)
    measured = np.isfinite(snr)
    top = max([*snr[measured], found.threshold_db]) + HEADROOM_DB
    heights = np.clip(snr, FLOOR_DB, top)  # equal values stand at the top, and what is not finite at the bottom
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(places[measured], heights[measured], linewidth=0.8, color="#999999", zorder=1)
    below = ~(snr >= found.threshold_db)
    for chosen, colour, label in (
        (below, "#c0392b", f"below {found.threshold_db:g} dB"),
        (~below & measured, "#2c6fbb", "above"),
        (snr == np.inf, "#7fb77e", "equal"),
    ):
        if chosen.any():
            axes.scatter(places[chosen], heights[chosen], s=9, color=colour, label=f"{label}: {chosen.sum()}", zorder=2)
    axes.axhline(found.threshold_db, color="#c0392b", linewidth=0.8, linestyle="--")
    losing = sorted((item for item in found.differences if item.lost_db is not None), key=lambda item: -(item.lost_db or 0))[:_NAMED]
    marked = {item.index: item for item in [*losing, *([found.first] if found.first else [])]}
    for item in marked.values():
        axes.annotate(
            _shown(f"{item.name} ({item.operation})"),
            (item.index + 1, heights[item.index]),
            xytext=(4, -14),
            textcoords="offset points",
            fontsize=7,
            parse_math=False,
            ha="left" if item.index < len(snr) * 0.75 else "right",
        )
    axes.set_xlabel("value, in program order")
    axes.set_ylabel("SNR in dB")
    axes.set_title(_shown(title), fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    if len(snr):
        axes.legend(loc="upper right", fontsize=8)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font does not have
        figure.savefig(temporary, dpi=130)


def _shown(text: str) -> str:
    """Short enough for a picture, without what cannot be printed: names in a package can be anything."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
