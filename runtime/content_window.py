"""Which of the content encoder's windows a conversion runs: one that the Neural Engine takes, or the one that upstream attends over.

The encoder's attention is global, so a clip in several windows has other features than in one; upstream gives it up to 43 s at
a time. PyTorch takes a segment of any length whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError
from ..models.layouts import ANE, PARITY_WINDOW
from .library import CONTENT_ENCODER, Component

AUTO, ANE_WINDOW, PARITY = CHOICES = ("auto", "ane", "parity")
FRAME_SECONDS = 0.02
WHOLE = "whole segments"


@dataclass(frozen=True)
class ContentWindow:
    """What was chosen: `used` is one of CHOICES but auto, "window" for one that is neither, or WHOLE. `entry` is the manifest's."""

    used: str
    entry: str
    layout: str | None
    frames: int | None

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else round(self.frames * FRAME_SECONDS, 2)

    @property
    def text(self) -> str:
        """For people: `5.1 s windows for the Neural Engine`."""
        if self.frames is None:
            return WHOLE
        of = {ANE_WINDOW: " for the Neural Engine", PARITY: ", as much as upstream attends over"}.get(self.used, "")
        return f"{self.seconds:g} s windows{of}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "seconds": self.seconds}

    def ran_whole(self) -> ContentWindow:
        """The same where PyTorch ran the encoder."""
        return ContentWindow(WHOLE, self.entry, None, None)


def choose_window(component: Component, choice: str = AUTO) -> ContentWindow:
    """Auto is the Neural Engine's where there is one, else the smallest. Raises UsageError for one that the library has not."""
    if choice not in CHOICES:
        raise UsageError(f"there is no content window {choice!r}; choose one of {', '.join(CHOICES)}")
    entries = component.manifest.stages
    made = [_described(component, name) for name in component.windows(CONTENT_ENCODER).values()]
    found = next((window for window in made if window.used == (ANE_WINDOW if choice == AUTO else choice)), None)
    if found is None and choice == AUTO:
        found = made[0]
    if found is None:
        there = " and ".join(f"{entries[window.entry].window} frames ({window.layout})" for window in made)
        wanted = "in the Neural Engine's layout" if choice == ANE_WINDOW else f"of {PARITY_WINDOW} frames"
        raise UsageError(
            f"the library's content encoder has no window {wanted}, only {there}: convert it again, or leave --content-window out"
        )
    return found


def _described(component: Component, name: str) -> ContentWindow:
    entry = component.manifest.stages[name]
    used = PARITY if entry.window >= PARITY_WINDOW else ANE_WINDOW if entry.layout == ANE else "window"
    return ContentWindow(used, name, entry.layout, entry.window)
