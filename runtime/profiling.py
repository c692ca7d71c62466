"""Time and memory by stage, for people who ask with `--profile`; nothing is measured, and nothing waits, otherwise."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import devices
from .memory import peak_memory

HEADINGS = ["stage", "seconds", "share", "calls", "median ms", "peak raised by"]


class Measures(Protocol):
    """What those who are measured ask for: `with profile.measure("flow"): ...`."""

    def measure(self, name: str) -> AbstractContextManager[None]: ...


@dataclass
class StageTimes:
    """One stage: the seconds of each call, and bytes by which its calls raised the process's peak and the device's."""

    seconds: list[float] = field(default_factory=list)
    raised: int = 0
    raised_on_device: int = 0

    @property
    def total(self) -> float:
        return sum(self.seconds)


class Profile:
    """Adds up what `measure` surrounds. A stage inside another is counted in both, and its name says so: `voice/flow`.

    `device` is what to wait for before and after, so that work handed to a GPU is counted where it was asked for.
    Threads may measure at once; a stage begun on one is never inside one of another. While `active` is off, nothing is
    measured and nothing waits, so that what overlaps can be timed as a whole.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        devices.kind_of(device)
        self.device = device
        self.active = True
        self.stages: dict[str, StageTimes] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the block under a stage's name, also where it raises."""
        if not self.active:
            yield
            return
        outer: str = getattr(self._local, "place", "")
        place = f"{outer}/{name}" if outer else name
        with self._lock:
            stage = self.stages.setdefault(place, StageTimes())  # in the order in which they began
        devices.synchronize(self.device)
        host, device = peak_memory(), devices.peak_device_memory(self.device)
        self._local.place = place
        start = self._clock()
        try:
            yield
        finally:
            devices.synchronize(self.device)
            seconds = self._clock() - start
            self._local.place = outer
            with self._lock:
                stage.seconds.append(seconds)
                stage.raised += max(0, peak_memory() - host)
                stage.raised_on_device += max(0, devices.peak_device_memory(self.device) - device)

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last time this was asked, and begin anew: one run of a benchmark."""
        with self._lock:
            totals = {name: stage.total for name, stage in self.stages.items()}
            self.stages.clear()
        return totals

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = {
            name: {
                "seconds": stage.total,
                "calls": len(stage.seconds),
                "median_seconds": statistics.median(stage.seconds) if stage.seconds else 0.0,
                "peak_memory_raised_bytes": stage.raised,
                "peak_device_memory_raised_bytes": stage.raised_on_device,
            }
            for name, stage in self.stages.items()
        }
        return {"device": self.device, "peak_memory_bytes": peak_memory(), "stages": stages}

    def rows(self) -> list[list[str]]:
        """A table's rows for HEADINGS, inner stages indented; shares are of all outer stages together."""
        whole = sum(stage.total for name, stage in self.stages.items() if "/" not in name)
        rows = []
        for name in self._ordered():
            stage = self.stages[name]
            on_device = f" and {stage.raised_on_device / 1e6:.0f} MB on {self.device}" if stage.raised_on_device else ""
            rows.append(
                [
                    "  " * name.count("/") + name.rpartition("/")[2],
                    f"{stage.total:.3f}",
                    f"{stage.total / whole:.0%}" if whole else "-",
                    str(len(stage.seconds)),
                    f"{1e3 * statistics.median(stage.seconds):.1f}" if stage.seconds else "-",
                    f"{stage.raised / 1e6:.0f} MB{on_device}",
                ]
            )
        return rows

    def _ordered(self, outer: str = "") -> Iterator[str]:
        """Stages in the order in which they first began, each followed by those inside it."""
        for name in self.stages:
            if name.rpartition("/")[0] == outer:
                yield name
                yield from self._ordered(name)


class NullProfile:
    """Measures nothing, at the price of a call."""

    _nothing = nullcontext()

    def measure(self, name: str) -> AbstractContextManager[None]:
        del name
        return self._nothing


NULL_PROFILE = NullProfile()
