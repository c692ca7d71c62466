"""Sample rates changed in blocks with libsoxr."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import soxr

from .storage import BLOCK, Samples

INPUT_QUALITY = "VHQ"  # Applio's choice on the way in (librosa's soxr_vhq)
OUTPUT_QUALITY = "HQ"  # RVC-WebUI's on the way out (librosa's default, soxr_hq)


def resampled(blocks: Iterator[Samples], source: int, target: int, quality: str) -> Iterator[Samples]:
    """Blocks at `target` Hz of blocks at `source` Hz."""
    if source == target:
        yield from blocks
        return
    stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality=quality)
    for block in blocks:
        for start in range(0, len(block), BLOCK):
            yield stream.resample_chunk(np.ascontiguousarray(block[start : start + BLOCK], np.float32))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def resampled_output(blocks: Iterator[Samples], samples: int, source: int, target: int) -> Iterator[Samples]:
    """Converted audio at another rate, exactly as long as librosa makes it: ceil(samples * target / source)."""
    left = math.ceil(samples * (target / source))
    for block in resampled(blocks, source, target, OUTPUT_QUALITY):
        yield block[:left]
        left -= min(left, len(block))
    if left:
        yield np.zeros(left, np.float32)
