"""How the embedded voice is used, and what is asked of it: what the demo, the evaluation and export have to do alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Whose medians count. WORLD's harvest reads much of a low, creaky voice an octave too high (the target's own: 112 Hz against
# SwiftF0's 88), and the voice was trained with SwiftF0.
MEDIAN_METHOD = "swiftf0"
# Semitones of the smallest shift that is applied: a reader within a tone of the target needs none, and every needless shift moves
# the melody.
LEAST_SHIFT = 2
# Share of the retrieved features: none keeps the most words, of speech by readers and of synthetic speech (docs/embedded_voice.md).
INDEX_RATE = 0.0

WRITER = "tools/train_embedded"  # as the pages that these tools fill name it
LEAST_SURVIVAL, MOST_SEMITONES = 0.7, 0.5  # words kept and median pitch error: what has to hold for each LibriVox clip
LEAST_MARGIN = 0.1  # similarity to the target above that to the source, which is what "well above" is taken to be


def median_pitch(contour: NDArray[np.floating]) -> float | None:
    """Hz over the voiced frames of a contour (T,), 0 where unvoiced; None where there are none."""
    voiced = contour[contour > 0]
    return float(np.median(voiced)) if len(voiced) else None


def transposition(contour: NDArray[np.floating], target: float) -> int:
    """Whole semitones, as a user gives them, that bring a speaker's median to the target's in Hz; 0 below LEAST_SHIFT or unvoiced."""
    median = median_pitch(contour)
    if median is None:
        return 0
    distance = 12 * float(np.log2(target / median))
    return round(distance) if abs(distance) >= LEAST_SHIFT else 0
