"""Sounds to read and what came of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rvc_coreml.runtime.audio import read_recording, recording_of

RATE = 16000


def tone(rate: int, seconds: float = 0.8, hertz: float = 1000.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def read(path: Path) -> tuple[np.ndarray, float]:
    with read_recording(path) as recording:
        return recording.samples.copy(), recording.seconds


def read_array(samples: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    with recording_of(samples, rate) as recording:
        return recording.samples.copy(), recording.seconds


def frequency_and_level(samples: np.ndarray) -> tuple[float, float]:
    """Of a tone, from the clip's middle: the spectrum's peak in Hz, and the amplitude that its RMS means."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 17))
    return float(spectrum.argmax() * RATE / (1 << 17)), float(np.sqrt(2 * np.mean(middle**2)))
