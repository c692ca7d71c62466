"""What a conversion may be asked for: upstream's options with upstream's ranges, checked in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UsageError

AUTO = "auto"
MAX_SEED = 2**63 - 1
# Name -> least and largest value, and the unit that a message shows.
RANGES: dict[str, tuple[float, float, str]] = {
    "pitch": (-48.0, 48.0, "semitones"),  # beyond four octaves nothing of a voice is left
    "index_rate": (0.0, 1.0, ""),
    "protect": (0.0, 0.5, ""),
    "rms_mix_rate": (0.0, 1.0, ""),
    "autotune": (0.0, 1.0, ""),
    "filter_radius": (0, 7, "frames"),  # RVC-WebUI's slider
}
CHOICES: dict[str, tuple[str, ...]] = {
    "unvoiced": ("keep", "interpolate"),
    "split": ("abs", "sum"),
    "retrieval": ("faithful", "exact"),
    "v1_features": ("webui", "applio"),
    "rmvpe_padding": ("constant", "reflect"),
    "length": ("upstream", "input"),
}
RESAMPLE_RANGE = (16000, 192000)  # Hz; RVC-WebUI leaves lower rates alone


@dataclass(frozen=True)
class ConversionOptions:
    """Defaults are the sliders of RVC-WebUI's window (index 0.75, protect 0.33, mix 0.25), which people compare with.

    - `pitch`: semitones, fractions allowed
    - `index_rate`: share of the retrieved features, 0 to 1; nothing happens without an index
    - `protect`: share of them in unvoiced frames, 0 to 0.5; 0.5 turns protection off
    - `rms_mix_rate`: 1 keeps the output's own loudness, 0 imposes the input's
    - `f0_method`: a registered pitch estimator, or `auto` for the best one that the library has weights for
    - `filter_radius`: harvest's contour is median-filtered above 2
    - `autotune`: how far the contour is moved to the nearest note, 0 to 1
    - `unvoiced`: `interpolate` draws the contour through unvoiced frames, as upstream does since 2026
    - `resample_sr`: Hz of the output, 0 for the voice's own
    - `split`: long clips are cut where the sum of |x| is least (`abs`) or |sum of x| is (`sum`: upstream before 2024)
    - `retrieval`: `faithful` probes the cells that the index file asks for, `exact` all vectors
    - `v1_features`: `applio` projects layer 12 instead of layer 9 for v1 voices
    - `rmvpe_padding`: how RMVPE's last frames are padded; `reflect` is Applio's
    - `length`: `upstream` loses up to two frames at the end of a clip, `input` keeps its length
    - `seed`: of the noise; the same seed gives the same output
    """

    pitch: float = 0.0
    index_rate: float = 0.75
    protect: float = 0.33
    rms_mix_rate: float = 0.25
    f0_method: str = AUTO
    filter_radius: int = 3
    autotune: float = 0.0
    unvoiced: str = "keep"
    resample_sr: int = 0
    speaker: int = 0
    seed: int = 0
    split: str = "abs"
    retrieval: str = "faithful"
    v1_features: str = "webui"
    rmvpe_padding: str = "constant"
    length: str = "upstream"

    def check(self, speakers: int | None = None) -> None:
        """Raises UsageError naming the first option out of its range. `speakers` is the size of the voice's table."""
        for name, (low, high, unit) in RANGES.items():
            value = getattr(self, name)
            if not (_is_number(value) and low <= value <= high):
                raise UsageError(f"{name} {value} is out of range: give {low:g} to {high:g}{' ' + unit if unit else ''}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown; choose {' or '.join(choices)}")
        low, high = RESAMPLE_RANGE
        if self.resample_sr != 0 and not (_is_number(self.resample_sr) and low <= self.resample_sr <= high):
            raise UsageError(f"resample_sr {self.resample_sr} is out of range: give 0 for the voice's own rate, or {low} to {high} Hz")
        if not (isinstance(self.seed, int) and 0 <= self.seed <= MAX_SEED):
            raise UsageError(f"seed {self.seed} is out of range: give 0 to {MAX_SEED}")
        if speakers is not None and not (isinstance(self.speaker, int) and 0 <= self.speaker < speakers):
            raise UsageError(f"speaker {self.speaker} does not exist: this voice has {speakers}, numbered from 0")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
