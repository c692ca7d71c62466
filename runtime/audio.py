"""Audio files in and out, in blocks, so that hours need no more memory than minutes.

Reading gives mono float32 at 16 kHz, high-passed as RVC-WebUI does; clips past ten minutes lie in a temporary file
that is mapped, not loaded. Writing goes to a temporary sibling that replaces the output when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy import signal

from ..errors import AudioError
from .files import atomic_path, output_errors

SAMPLE_RATE = 16000
HIGH_PASS_HZ, HIGH_PASS_ORDER = 48, 5  # RVC-WebUI: Butterworth, run forwards and backwards
PEAK = 0.95  # RVC-WebUI: louder input is scaled down to it
OUTPUT_PEAK = 0.99  # RVC-WebUI: louder output is scaled down to it
BLOCK = 1 << 19  # input samples read at a time
FILTER_BLOCK, FILTER_OVERLAP = 60 * SAMPLE_RATE, 2 * SAMPLE_RATE  # the filter's memory fades within 0.3 s
IN_MEMORY = 600 * SAMPLE_RATE  # samples: longer clips are mapped from a temporary file
MAX_CHANNELS = 2  # which channel of a surround recording holds the voice is not ours to guess
UNKNOWN_LENGTH = 1 << 62  # frames that libsndfile reports for a FLAC header without a length, which it cannot read on from
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
MIN_RATE, MAX_RATE = 1000, 768000  # Hz
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A clip as the pipeline takes it: 16 kHz mono, scaled and high-passed, and its length in seconds."""

    samples: Samples
    seconds: float


@contextmanager
def read_recording(path: str | Path) -> Iterator[Recording]:
    """Open an audio file. Raises AudioError where it cannot be read, is empty, or holds NaN or infinity."""
    path = Path(path)
    try:
        if not path.exists():
            raise AudioError(f"{path} does not exist")
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise AudioError(f"{path} cannot be read as audio (wav, flac, ogg or mp3): {error}") from error
    with file:
        if file.channels > MAX_CHANNELS:
            raise AudioError(f"{path} has {file.channels} channels; mix it down to mono or stereo first")
        check_rate(file.samplerate, str(path))
        if file.frames >= UNKNOWN_LENGTH:
            raise AudioError(f"{path} does not state its length, as a file written into a pipe: save it again with any audio program")
        with _collected(_at_16k(_blocks(file, path), file.samplerate)) as samples:
            if not len(samples):
                raise AudioError(f"{path} {'is too short to be converted' if file.tell() else 'holds no audio samples'}")
            prepare(samples)
            yield Recording(samples, file.tell() / file.samplerate)


@contextmanager
def recording_of(audio: NDArray[np.floating], sample_rate: int) -> Iterator[Recording]:
    """The same from samples in memory: (N,) or (N, channels), float. Raises AudioError as `read_recording` does."""
    values = np.asarray(audio)
    channels = values.shape[1] if values.ndim == 2 else 1
    if values.ndim not in (1, 2) or values.shape[0] == 0 or values.dtype.kind != "f" or not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"audio must be float samples of shape (N,), (N, 1) or (N, 2), not {values.dtype} {values.shape}")
    check_rate(sample_rate, "the audio")
    mono = values if values.ndim == 1 else values.mean(axis=1)
    blocks = (_finite(mono[i : i + BLOCK].astype(np.float32), "the audio") for i in range(0, len(mono), BLOCK))
    with _collected(_at_16k(blocks, sample_rate)) as samples:
        if not len(samples):
            raise AudioError("the audio is too short to be converted")
        prepare(samples)
        yield Recording(samples, len(mono) / sample_rate)


def check_rate(rate: int, what: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{what} has a sample rate of {rate} Hz; {MIN_RATE} to {MAX_RATE} Hz can be converted")


@contextmanager
def _storage(samples: int) -> Iterator[Samples]:
    """Room for a clip: in memory, or mapped from a temporary file that vanishes with it."""
    if samples <= IN_MEMORY:
        yield np.zeros(samples, np.float32)
        return
    with tempfile.TemporaryFile(prefix="rvc-coreml-") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would kill the process later
            with output_errors(Path(tempfile.gettempdir())):
                os.posix_fallocate(file.fileno(), 0, 4 * samples)
        yield np.memmap(file, np.float32, "w+", shape=(samples,))


def _blocks(file: soundfile.SoundFile, path: Path) -> Iterator[Samples]:
    """Mono blocks at the file's rate."""
    while True:
        try:
            block = file.read(BLOCK // file.channels, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{path} is damaged: decoding failed after {file.tell() / file.samplerate:.1f} s ({error})") from error
        if not len(block):
            return
        yield _finite(block.mean(axis=1), str(path))


def _finite(block: Samples, what: str) -> Samples:
    if not np.isfinite(block).all():
        raise AudioError(f"{what} holds NaN or infinite samples")
    return block


def _at_16k(blocks: Iterator[Samples], rate: int) -> Iterator[Samples]:
    """Blocks resampled to 16 kHz."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="VHQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


@contextmanager
def _collected(blocks: Iterator[Samples]) -> Iterator[Samples]:
    """All blocks as one array: in memory, or mapped from a temporary file once they outgrow it."""
    parts: list[Samples] = []
    count = 0
    with tempfile.TemporaryFile(prefix="rvc-coreml-") as file:
        for block in blocks:
            count += len(block)
            parts.append(np.ascontiguousarray(block, np.float32))
            if count > IN_MEMORY:
                with output_errors(Path(tempfile.gettempdir())):
                    file.write(b"".join(part.tobytes() for part in parts))
                    file.flush()
                parts.clear()
        if count > IN_MEMORY:
            yield np.memmap(file, np.float32, "r+", shape=(count,))
        else:
            yield np.concatenate(parts) if parts else np.zeros(0, np.float32)


def prepare(samples: Samples) -> None:
    """In place: scale loud input down to PEAK, then high-pass."""
    peak = max((float(np.abs(samples[i : i + BLOCK]).max()) for i in range(0, len(samples), BLOCK)), default=0.0)
    scale = PEAK / peak if peak > PEAK else 1.0
    previous = np.zeros(0, np.float32)  # the block's left context, before it was overwritten
    for start in range(0, len(samples), FILTER_BLOCK):
        stop = min(len(samples), start + FILTER_BLOCK)
        right = samples[stop : stop + FILTER_OVERLAP].copy()
        current = samples[start:stop].copy()
        filtered = high_pass(np.concatenate([previous, current, right]).astype(np.float64) * scale)
        samples[start:stop] = filtered[len(previous) : len(previous) + stop - start]
        previous = current[-FILTER_OVERLAP:]


def high_pass(audio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero-phase 48 Hz high-pass at 16 kHz (RVC-WebUI's filter and padding). Very short clips get less padding."""
    coefficients: Any = signal.butter(HIGH_PASS_ORDER, HIGH_PASS_HZ, btype="high", fs=SAMPLE_RATE)
    b, a = coefficients
    padding = min(3 * max(len(a), len(b)), len(audio) - 1)
    return signal.filtfilt(b, a, audio, padlen=padding)


@contextmanager
def reflect_padded(samples: Samples, amount: int) -> Iterator[Samples]:
    """A copy with `amount` samples reflected on either side; a clip shorter than that is reflected repeatedly."""
    with _storage(len(samples) + 2 * amount) as padded:
        if len(samples) <= 2 * amount:
            padded[:] = np.pad(samples, amount, mode="reflect")
        else:
            padded[:amount] = samples[amount:0:-1]
            padded[amount : amount + len(samples)] = samples
            padded[amount + len(samples) :] = samples[-2 : -2 - amount : -1]
        yield padded


def output_format(path: Path) -> tuple[str, str]:
    """Container and encoding by the file's ending. Raises AudioError for one that is not written."""
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{path} has the ending {path.suffix or 'of no format'}; write one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


class OutputBuffer:
    """Collects converted audio in a temporary file, then writes it with its peak limited."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="rvc-coreml-")  # noqa: SIM115 - closed by __exit__
        self._place = Path(tempfile.gettempdir()) / "rvc-coreml's temporary file"
        self.samples = 0
        self.peak = 0.0

    def __enter__(self) -> OutputBuffer:
        return self

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError):  # what a full disk keeps from being flushed was reported when it was written
            self._file.close()

    def append(self, block: Samples) -> None:
        with output_errors(self._place):
            self._file.write(np.ascontiguousarray(block, np.float32).tobytes())
            self._file.flush()
        self.samples += len(block)
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))

    def blocks(self) -> Iterator[Samples]:
        """What was collected, scaled down where its peak exceeds OUTPUT_PEAK."""
        scale = np.float32(OUTPUT_PEAK / self.peak if self.peak > OUTPUT_PEAK else 1.0)
        self._file.seek(0)
        while data := self._file.read(4 * BLOCK):
            yield np.frombuffer(data, np.float32) * scale

    def array(self) -> Samples:
        return np.concatenate(list(self.blocks())) if self.samples else np.zeros(0, np.float32)

    def write(self, path: Path, rate: int) -> None:
        """Atomically, in the format of the ending. Raises AudioError or OutputError."""
        container, encoding = output_format(path)
        with atomic_path(path) as temporary:
            try:
                with soundfile.SoundFile(temporary, "w", rate, 1, encoding, format=container) as file:
                    for block in self.blocks():
                        file.write(block)
            except soundfile.LibsndfileError as error:
                raise OSError(f"{error}") from error
