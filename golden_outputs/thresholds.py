"""What agreement is enough, and why. No tolerance is widened to pass: a change here needs a reason in the changelog."""

from __future__ import annotations

from dataclasses import dataclass

from .metrics import Comparison


@dataclass(frozen=True)
class Threshold:
    """Least SNR and worst-frame cosine, and the range of levels that pass."""

    snr_db: float
    cosine: float
    level: tuple[float, float]

    def passes(self, comparison: Comparison) -> bool:
        low, high = self.level
        return (
            comparison.finite
            and comparison.snr_db >= self.snr_db
            and comparison.worst_cosine >= self.cosine
            and low <= comparison.level <= high
        )


# A stage that misses this on the device at hand is run by PyTorch instead. 30 dB is far below what half precision
# gives (45 to 60 dB) and far above any wrong result; the known failure of fp16 vocoders is a level of 4.25.
USABLE = Threshold(30.0, -1.0, (0.9, 1.1))

# `validate`: what a package has to reach against float32 PyTorch. Half precision keeps 11 bits, about 66 dB for one
# rounding; 45 dB leaves room for the few hundred roundings in a row that a stage makes.
VALID = {
    "fp16": Threshold(45.0, 0.999, (0.99, 1.01)),
    "fp32": Threshold(90.0, 0.99999, (0.999, 1.001)),
}
