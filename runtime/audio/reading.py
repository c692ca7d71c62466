"""Recordings as the pipeline takes them: mono float32 at 16 kHz, scaled and high-passed as RVC-WebUI does, in blocks.

Clips past ten minutes lie in a temporary file that is mapped, not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import AudioError
from .decoding import MAX_CHANNELS, Stream, decoded
from .filters import high_pass
from .resampling import INPUT_QUALITY, resampled
from .storage import BLOCK, SAMPLE_RATE, WHOLE_SECONDS, Samples, collected, release

LOUDEST = 1e30  # beyond this, float32 overflows on the way
PEAK = 0.95  # RVC-WebUI: louder input is scaled down to it
WHOLE = WHOLE_SECONDS * SAMPLE_RATE  # samples: up to here the filter sees the clip as a whole
FILTER_BLOCK, FILTER_OVERLAP = 60 * SAMPLE_RATE, 2 * SAMPLE_RATE  # the filter's memory fades within 0.3 s
SAMPLE_KINDS = ("u1", "i2", "i4", "f2", "f4", "f8")  # kind and size in bytes; 64-bit integers have no usual full scale
FilterDevice = torch.device | str | None


@dataclass(frozen=True)
class Recording:
    """A clip as the pipeline takes it: 16 kHz mono, scaled and high-passed, and its length in seconds."""

    samples: Samples
    seconds: float


@contextmanager
def read_recording(path: str | Path, filter_device: FilterDevice = None) -> Iterator[Recording]:
    """Open an audio file. Raises AudioError where it cannot be read, is empty, or holds NaN or infinity.

    `filter_device` has the high-pass run there instead of in scipy.
    """
    with decoded(Path(path)) as stream, _recording(stream, filter_device) as recording:
        yield recording


@contextmanager
def recording_of(audio: NDArray[Any], sample_rate: int, filter_device: FilterDevice = None) -> Iterator[Recording]:
    """The same from samples in memory: (N,) or (N, channels) of int16, int32, uint8 or float, integers at full scale."""
    values = np.asarray(audio)
    if values.ndim == 2 and values.shape[1] > MAX_CHANNELS >= values.shape[0] > 0:
        raise AudioError(f"audio of shape {values.shape} looks like (channels, N): transpose it to (N, channels)")
    fits = values.ndim in (1, 2) and values.size and (values.ndim == 1 or values.shape[1] <= MAX_CHANNELS)
    if not fits or f"{values.dtype.kind}{values.dtype.itemsize}" not in SAMPLE_KINDS:
        raise AudioError(
            f"audio must be int16, int32, uint8 or float samples of shape (N,) or (N, channels) with at most {MAX_CHANNELS} channels,"
            f" not {values.dtype} {values.shape}"
        )
    columns = values.reshape(len(values), -1)
    step = max(1, BLOCK // columns.shape[1])
    blocks = (columns[i : i + step] for i in range(0, len(columns), step))
    stream = Stream("the audio", sample_rate, columns.shape[1], blocks)
    stream.check()
    with _recording(stream, filter_device) as recording:
        yield recording


@contextmanager
def _recording(stream: Stream, filter_device: FilterDevice) -> Iterator[Recording]:
    with collected(resampled(stream.mono(), stream.rate, SAMPLE_RATE, INPUT_QUALITY)) as samples:
        if not len(samples):
            raise AudioError(f"{stream.what} {'is too short to be converted' if stream.frames else 'holds no audio samples'}")
        if not prepare(samples, filter_device):
            raise AudioError(f"{stream.what} holds samples too large to be audio")
        yield Recording(samples, stream.frames / stream.rate)


def prepare(samples: Samples, device: FilterDevice = None) -> bool:
    """In place: scale loud input down to PEAK, then high-pass; as a whole up to five minutes. False where it is too loud to be audio."""
    peak = 0.0
    for start in range(0, len(samples), BLOCK):
        block = samples[start : start + BLOCK]
        peak = float(np.maximum(peak, np.maximum(block.max(), -block.min())))  # NaN where one is in it
        release(samples)
    if not peak <= LOUDEST:
        return False
    scale = np.float32(max(1.0, peak / PEAK))
    if len(samples) <= WHOLE:
        samples[:] = high_pass(samples / scale, device)
        return True
    previous = np.zeros(0, np.float32)  # the block's left context, before it was overwritten
    for start in range(0, len(samples), FILTER_BLOCK):
        stop = min(len(samples), start + FILTER_BLOCK)
        right = samples[stop : stop + FILTER_OVERLAP].copy()
        current = samples[start:stop].copy()
        filtered = high_pass(np.concatenate([previous, current, right]) / scale, device)
        samples[start:stop] = filtered[len(previous) : len(previous) + stop - start]
        previous = current[-FILTER_OVERLAP:]
        release(samples)
    return True
