"""What a synthesiser gives, and how all of them open their networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime

SPEEDS = (0.75, 1.3)  # slowest and fastest speech, relative to the voice's own
KOKORO_RATE = 24000  # Hz
KOKORO_UNIT = 600  # samples that one unit of predicted duration lasts
# Seconds by which sounds come before their predicted places. Measured on both voices: fricatives' share of high frequencies and vowels'
# periodicity fit the labels best when these are moved by 40 to 50 ms; unmoved, they fit less than half as well.
KOKORO_LEAD = 0.045
_TOLERANCE = 0.05  # seconds


@dataclass(frozen=True)
class Speech:
    """One sentence as it was spoken."""

    audio: NDArray[np.float32]  # (samples,)
    rate: int  # Hz
    symbols: Sequence[str]  # what was spoken, marks and blanks included
    durations: NDArray[np.float64]  # (symbols,) seconds
    speaker: str


class Synthesiser(Protocol):
    """A voice or a family of voices."""

    wide: bool  # whether its speech is the target's, kept at 32 kHz too

    def speak(self, phonemes: str, rng: np.random.Generator) -> Speech:
        """Speak misaki's `phonemes`, the speaker and the manner drawn from `rng`."""
        ...


def session(model: Path) -> onnxruntime.InferenceSession:
    """The network on one thread: the workers are many."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def kokoro_seconds(units: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    """(symbols,) predicted durations as seconds of (samples,) speech, for Kokoro and for hibari, which learned from it."""
    seconds = checked(units.reshape(-1) * KOKORO_UNIT / KOKORO_RATE, samples, KOKORO_RATE).copy()
    lead = min(KOKORO_LEAD, seconds[0])
    seconds[0] -= lead
    seconds[-1] += lead
    return seconds


def checked(seconds: NDArray[np.float64], samples: int, rate: int) -> NDArray[np.float64]:
    """`seconds` when they sum to the speech's length; a network whose durations are no timings is refused."""
    if abs(samples / rate - seconds.sum()) > _TOLERANCE:
        raise ValueError(f"{samples / rate:.2f} s of speech have timings for {seconds.sum():.2f} s")
    return seconds
