"""The grid that every estimator works on and the range that upstream searches."""

from __future__ import annotations

SAMPLE_RATE = 16000
HOP = 160  # samples between frames: 10 ms
FRAME_RATE = SAMPLE_RATE // HOP  # frames a second
F0_MIN, F0_MAX = 50.0, 1100.0  # Hz, RVC-WebUI's search range


def frames_of(samples: int) -> int:
    """Frames of a clip: one for each 10 ms and one more."""
    return samples // HOP + 1
