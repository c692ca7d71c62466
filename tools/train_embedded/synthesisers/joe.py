"""The target: Piper's voice joe, its liveliness and pace varied a little from sentence to sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..pack import REST, unpacked
from ..phonemes import espeak_symbols
from .speech import Speech, checked, session

FRAME = 256  # samples that one unit of duration lasts
SPEAKER = "piper:joe"
_NOISE = (0.5, 0.8)  # Piper's own: 0.667
_LENGTH = (0.88, 1.2)  # Piper's own: 1
_TIMING_NOISE = (0.6, 0.9)  # Piper's own: 0.8


class Joe:
    """VITS with a blank after every symbol, as Piper trains it."""

    wide = True

    def __init__(self, model: Path, ids: dict[str, list[int]], rate: int) -> None:
        self._session = session(model)
        self._ids = ids
        self._rate = rate

    def speak(self, phonemes: str, rng: np.random.Generator) -> Speech:
        spoken = ["^", *(s for s in espeak_symbols(phonemes) if s in self._ids)]
        symbols = [part for symbol in spoken for part in (symbol, "_")] + ["$"]
        ids = [self._ids[symbol][0] for symbol in symbols]
        scales = [rng.uniform(*span) for span in (_NOISE, _LENGTH, _TIMING_NOISE)]
        given = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array(scales, np.float32),
        }
        audio, units = self._session.run(None, given)
        seconds = np.asarray(units, np.float64).reshape(-1) * FRAME / self._rate
        audio = np.asarray(audio, np.float32).reshape(-1)
        return Speech(audio, self._rate, symbols, checked(seconds, len(audio), self._rate), SPEAKER)


def load(bundles: Path, work: Path) -> Joe:
    """From W/bundle_rest."""
    settings = json.loads((bundles / REST / "joe.json").read_text("utf-8"))
    return Joe(unpacked(bundles / REST / "joe.onnx.xz", work), settings["phoneme_id_map"], settings["audio"]["sample_rate"])
