"""Cutting a clip into windows that overlap, and joining what a stage makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

FADE_SHARE = 0.8  # of an overlap's half: the frames nearest to a window's edge, which see the least around them, are left out


@dataclass(frozen=True)
class Window:
    """A window over the frames from `start` on, `valid` of which are real; `keep_from` to `keep_to` are its result."""

    start: int
    valid: int
    keep_from: int
    keep_to: int

    @property
    def stop(self) -> int:
        return self.start + self.valid


def plan_windows(first: int, last: int, window: int, context: int) -> list[Window]:
    """Windows of a fixed size over the frames from `first` to `last`, overlapping by `context` on either side of every seam.

    A clip that fits gets one window, padded. A longer one gets full windows only: the last is moved back to end with
    the clip, so that its right edge is the clip's own. Raises ValueError where the window is all context.
    """
    if window <= 2 * context:
        raise ValueError(f"a window of {window} frames has none to keep beside a context of {context} on either side")
    total = last - first
    if total <= window:
        return [Window(first, total, first, last)]
    windows = []
    keep_from, start = first, first
    while True:
        start = min(start, last - window)
        ends = start + window == last
        keep_to = last if ends else start + window - context
        windows.append(Window(start, window, keep_from, keep_to))
        if ends:
            return windows
        keep_from = keep_to
        start = keep_to - context


def plan_pieces(first: int, last: int, keep_from: int, keep_to: int, context: int, piece: int | None = None) -> list[Window]:
    """Windows of any size for the frames from `keep_from` to `keep_to` of a clip that runs from `first` to `last`.

    Each sees `context` frames beyond what it keeps, where the clip has them; all but the last keep as much, `piece` at most.
    """
    count = 1 if piece is None else max(1, -(-(keep_to - keep_from) // piece))
    size = -(-(keep_to - keep_from) // count)
    bounds = [*range(keep_from, keep_to, size), keep_to]
    windows = []
    for start, stop in pairwise(bounds):
        begin, end = max(first, start - context), min(last, stop + context)
        windows.append(Window(begin, end - begin, start, stop))
    return windows


def join_windows(
    windows: Sequence[Window], compute: Callable[[Window], Tensor], samples: int = 1, done: Callable[[int], None] | None = None
) -> Tensor:
    """(1, channels, frames * samples) of all windows' results; `compute` gives (1, channels, at least valid * samples).

    `done` is told the frames kept so far.
    """
    return join_batches([[window] for window in windows], lambda batch: compute(batch[0]), samples, done)


def join_batches(
    batches: Iterable[Sequence[Window]],
    compute: Callable[[Sequence[Window]], Tensor],
    samples: int = 1,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """The same for windows computed together: `compute` gives (windows, channels, at least valid * samples)."""
    parts = []
    kept = 0
    for batch in batches:
        results = compute(batch)
        for window, result in zip(batch, results.split(1), strict=True):
            parts.append(result[..., (window.keep_from - window.start) * samples : (window.keep_to - window.start) * samples])
            kept += window.keep_to - window.keep_from
        if done:
            done(kept)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def blend_windows(windows: Sequence[Window], compute: Callable[[Window], Tensor], done: Callable[[int], None] | None = None) -> Tensor:
    """(1, channels, frames) as `join_windows`, but one window fades into the next around every seam.

    For stages whose windows only approximate the clip: two approximations are nearer to it together than each alone, and
    a seam is no step. Windows have to keep everything from the first's start to the last's stop.
    """
    first, last = windows[0].start, windows[-1].stop
    halves = [_fade(left, right) for left, right in pairwise(windows)]
    frames = torch.arange(first, last) + 0.5
    blended: Tensor | None = None
    for index, window in enumerate(windows):
        result = compute(window)[..., : window.valid]
        place = slice(window.start - first, window.stop - first)
        weight = torch.ones(window.valid)
        if index > 0:
            weight *= _ramp(frames[place], window.keep_from, halves[index - 1])
        if index < len(halves):
            weight *= 1 - _ramp(frames[place], window.keep_to, halves[index])
        if blended is None:
            blended = result.new_zeros(*result.shape[:-1], last - first)
        blended[..., place] += weight.to(result) * result
        if done:
            done(window.keep_to - first)
    assert blended is not None  # noqa: S101 - there is always a window
    return blended


def _fade(left: Window, right: Window) -> int:
    """Frames on either side of a seam over which one fades into the other: most of what both see, short of the next seam."""
    seen = int(FADE_SHARE * min(left.stop - left.keep_to, right.keep_from - right.start))
    return min(seen, (left.keep_to - left.keep_from) // 2, (right.keep_to - right.keep_from) // 2)


def _ramp(frames: Tensor, seam: int, half: int) -> Tensor:
    """0 before the seam, 1 behind it, linear within `half` frames of it."""
    return ((frames - seam) / (2 * half) + 0.5).clamp(0, 1) if half else (frames > seam).float()


def equal_batches(windows: Iterable[Window], most: int) -> list[list[Window]]:
    """Windows in their order, neighbours of one length together, `most` at a time."""
    batches: list[list[Window]] = []
    for window in windows:
        if batches and len(batches[-1]) < most and batches[-1][-1].valid == window.valid:
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches
