"""Cutting a clip into fixed windows, and reading a stage's output as if it had seen the whole clip."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A window over the frames from `start` on, `valid` of which are real; `keep_from` to `keep_to` are its result."""

    start: int
    valid: int
    keep_from: int
    keep_to: int


def plan_windows(first: int, last: int, window: int, context: int) -> list[Window]:
    """Windows that cover the frames from `first` to `last`, overlapping by `context` on either side of every seam.

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


class WindowedOutput:
    """A stage's output over a clip, computed window by window as it is read.

    `compute` gets a window and returns (valid, width) values for its frames. The last three windows are kept, which
    is what a reader that moves forward in overlapping steps needs.
    """

    KEPT_WINDOWS = 3

    def __init__(self, windows: list[Window], compute: Callable[[Window], Frames]) -> None:
        self.windows = windows
        self.compute = compute
        self._starts = np.array([window.keep_from for window in windows])
        self._cache: OrderedDict[int, Frames] = OrderedDict()

    def read(self, start: int, stop: int) -> Frames:
        """(stop - start, width). Raises IndexError outside the clip."""
        if not self.windows[0].keep_from <= start <= stop <= self.windows[-1].keep_to:
            raise IndexError(f"frames {start} to {stop} lie outside {self.windows[0].keep_from} to {self.windows[-1].keep_to}")
        parts = []
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while not parts or start < stop:
            window = self.windows[index]
            until = min(stop, window.keep_to)
            parts.append(self._window(index)[start - window.start : until - window.start])
            start, index = until, index + 1
        return np.concatenate(parts)

    def _window(self, index: int) -> Frames:
        if index in self._cache:
            self._cache.move_to_end(index)
        else:
            self._cache[index] = self.compute(self.windows[index])
            while len(self._cache) > self.KEPT_WINDOWS:
                self._cache.popitem(last=False)
        return self._cache[index]
