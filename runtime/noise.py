"""Noise that is the same for a seed however a clip is cut: every block of frames has a generator of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 100  # frames: one second
_PRIOR, _SOURCE = 0, 1


class Noise:
    """Standard normal noise for a whole clip, read at any frame."""

    def __init__(self, seed: int, channels: int, samples_per_frame: int) -> None:
        self.seed = seed
        self.channels = channels
        self.samples_per_frame = samples_per_frame

    def prior(self, start: int, stop: int) -> NDArray[np.float32]:
        """(channels, stop - start) for the frames from start to stop."""
        return np.ascontiguousarray(self._frames(_PRIOR, self.channels, start, stop).T)

    def source(self, start: int, stop: int) -> NDArray[np.float32]:
        """((stop - start) * samples_per_frame,) for the frames from start to stop."""
        return self._frames(_SOURCE, self.samples_per_frame, start, stop).reshape(-1)

    def _frames(self, kind: int, width: int, start: int, stop: int) -> NDArray[np.float32]:
        blocks = range(start // BLOCK, max(start, stop - 1) // BLOCK + 1)
        seeds = [np.random.SeedSequence(self.seed, spawn_key=(kind, block)) for block in blocks]
        drawn = [np.random.default_rng(seed).standard_normal((BLOCK, width), dtype=np.float32) for seed in seeds]
        offset = blocks[0] * BLOCK
        return np.concatenate(drawn)[start - offset : stop - offset]
