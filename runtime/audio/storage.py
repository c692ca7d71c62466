"""Room for clips of any length: short ones in memory, long ones in temporary files that vanish with them.

Mapped samples can be given back to the system between blocks (`release`), so that hours need no more memory than minutes.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import output_errors

SAMPLE_RATE = 16000  # Hz, of everything before synthesis
BLOCK = 1 << 19  # samples handled at a time
IN_MEMORY = 600 * SAMPLE_RATE  # samples: longer clips are mapped from a temporary file
WHOLE_SECONDS = 300  # up to here a clip is filtered, mixed and scaled as a whole, as RVC-WebUI does
PREFIX = "rvc-coreml-"
Samples = NDArray[np.float32]


def _place() -> Path:
    return Path(tempfile.gettempdir()) / "rvc-coreml's temporary file"


class Spool:
    """Float32 samples in a temporary file: written once, then read as often as wanted. Raises OutputError on a full disk."""

    def __init__(self) -> None:
        with output_errors(_place()):
            self._file = tempfile.TemporaryFile(prefix=PREFIX)  # noqa: SIM115 - closed by close
        self.samples = 0

    def write(self, block: Samples) -> None:
        with output_errors(_place()):
            self._file.write(np.ascontiguousarray(block, np.float32).tobytes())
            self._file.flush()
        self.samples += len(block)

    def blocks(self) -> Iterator[Samples]:
        """What was written, from the start; each block is the caller's own."""
        self._file.seek(0)
        while data := self._file.read(4 * BLOCK):
            yield np.frombuffer(data, np.float32).copy()

    def mapped(self) -> Samples:
        return np.memmap(self._file, np.float32, "r+", shape=(self.samples,))

    def close(self) -> None:
        with suppress(OSError):  # what a full disk keeps from being flushed was reported when it was written
            self._file.close()


@contextmanager
def collected(blocks: Iterator[Samples]) -> Iterator[Samples]:
    """All blocks as one array: in memory, or mapped from a temporary file once they outgrow it."""
    parts: list[Samples] = []
    count = 0
    spool: Spool | None = None
    try:
        for block in blocks:
            count += len(block)
            parts.append(np.ascontiguousarray(block, np.float32))
            if count > IN_MEMORY:
                spool = spool or Spool()
                for part in parts:
                    spool.write(part)
                parts.clear()
        if spool:
            yield spool.mapped()
        else:
            yield np.concatenate(parts) if parts else np.zeros(0, np.float32)
    finally:
        if spool:
            spool.close()


def release(samples: Samples) -> None:
    """Let the system have the memory of mapped samples back; they stay in their file and are read again when needed."""
    base = getattr(samples, "_mmap", None)
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


@contextmanager
def _storage(samples: int) -> Iterator[Samples]:
    if samples <= IN_MEMORY:
        yield np.zeros(samples, np.float32)
        return
    with tempfile.TemporaryFile(prefix=PREFIX) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would kill the process later
            with output_errors(_place()):
                os.posix_fallocate(file.fileno(), 0, 4 * samples)
        yield np.memmap(file, np.float32, "w+", shape=(samples,))


@contextmanager
def reflect_padded(samples: Samples, amount: int) -> Iterator[Samples]:
    """A copy with `amount` samples reflected on either side; a clip shorter than that is reflected repeatedly."""
    with _storage(len(samples) + 2 * amount) as padded:
        if len(samples) <= 2 * amount:
            padded[:] = np.pad(samples, amount, mode="reflect")
        else:
            padded[:amount] = samples[amount:0:-1]
            for start in range(0, len(samples), BLOCK):
                stop = min(len(samples), start + BLOCK)
                padded[amount + start : amount + stop] = samples[start:stop]
                release(samples)
                release(padded)
            padded[amount + len(samples) :] = samples[-2 : -2 - amount : -1]
        yield padded
