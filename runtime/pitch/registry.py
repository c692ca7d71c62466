"""The pitch estimators behind one registry, and the choice among them.

Adding one is adding a function: 16 kHz audio (N,) -> Hz (N // 160 + 1,), 0 where unvoiced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import LibraryError, UsageError
from .constants import frames_of

Signal = NDArray[np.floating]
Contour = NDArray[np.float64]
Progress = Callable[[float], None]

AUTO = "auto"
EMBEDDED = "swiftf0"  # its model comes with rvc-coreml and runs without a library
BEST_MODELS = ("rmvpe", "fcpe", "crepe", EMBEDDED, "crepe-tiny")  # in the order in which `auto` takes them
SAID = f"the library holds no model for pitch method {EMBEDDED!r}: the one that comes with rvc-coreml runs in PyTorch (cpu)"
FALLBACK = EMBEDDED  # nearer to known pitch than harvest, dio (docs/pitch_models.md), and faster
PITCH_MODEL, PARSELMOUTH = "pitch model", "parselmouth"  # what an estimator may need


class PitchModels(Protocol):
    """The pitch models of a library, ready to run."""

    def available(self) -> list[str]:
        """The kinds that the library has."""
        ...

    def stage(self, kind: str) -> Any:
        """The runner of one's body."""
        ...

    def network(self, kind: str) -> Any:
        """Front end, end and decoder of one."""
        ...

    def say(self, line: str) -> None:
        """Tell the user, once, what runs in place of something else."""
        ...


Run = Callable[[Signal, "PitchModels | None", "Progress | None"], Contour]


@dataclass(frozen=True)
class Estimator:
    """A way to find pitch. `median`: upstream median-filters its contour where `filter_radius` asks for it."""

    name: str
    summary: str
    run: Run
    needs: str | None = None
    median: bool = False

    def __call__(self, audio: Signal, models: PitchModels | None = None, progress: Progress | None = None) -> Contour:
        """The contour as the estimator gives it."""
        return self.run(audio, models, progress)


ESTIMATORS: dict[str, Estimator] = {}  # in the order in which users see them


def estimator(name: str, *, summary: str, needs: str | None = None, median: bool = False) -> Callable[[Run], Run]:
    """Register an estimator. Raises ValueError for a name taken already."""

    def register(run: Run) -> Run:
        if name in ESTIMATORS or name == AUTO:
            raise ValueError(f"pitch estimator {name!r} is registered twice")
        ESTIMATORS[name] = Estimator(name, summary, run, needs, median)
        return run

    return register


def choose_method(models: PitchModels | None) -> str:
    """The best estimator for a library's pitch models: rmvpe, fcpe, crepe, swiftf0, crepe-tiny, else the embedded swiftf0."""
    return best_method(models.available() if models is not None else [])


def best_method(kinds: Collection[str]) -> str:
    """The same for the kinds that are there."""
    return next((name for name in BEST_MODELS if name in kinds), FALLBACK)


def resolve_method(method: str, models: PitchModels | None) -> Estimator:
    """The estimator of that name, `auto` included.

    Raises UsageError for an unknown name and LibraryError where the library lacks the pitch model that it needs.
    """
    name = choose_method(models) if method == AUTO else method
    if name not in ESTIMATORS:
        raise UsageError(f"pitch method {method!r} is unknown; choose one of {', '.join([AUTO, *ESTIMATORS])}")
    found = ESTIMATORS[name]
    if found.needs == PITCH_MODEL and name != EMBEDDED and (models is None or name not in models.available()):
        raise LibraryError(
            f"pitch method {name!r} needs a model that the library lacks: add it with 'rvc-coreml convert pitch FILE -o LIB'"
        )
    return found


def estimate_pitch(audio: Signal, method: str = AUTO, *, models: PitchModels | None = None, progress: Progress | None = None) -> Contour:
    """Hz for each 10 ms of 16 kHz audio (N,): N // 160 + 1 frames, 0 where unvoiced, searched from 50 to 1100 Hz.

    Raises UsageError for an unknown method or a missing extra, LibraryError for a missing pitch model.
    """
    if method == EMBEDDED and models is not None and method not in models.available():
        models.say(SAID)  # who leaves the choice to us is told nothing: nothing was asked for that is not there
    found = resolve_method(method, models)(audio, models, progress)
    pitch = np.zeros(frames_of(len(audio)))
    kept = min(len(pitch), len(found))
    pitch[:kept] = found[:kept]
    if progress:
        progress(1.0)
    return np.nan_to_num(pitch, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
