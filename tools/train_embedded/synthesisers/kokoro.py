"""Kokoro-82M: 54 speakers, and as many between two of them as wanted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..pack import KOKORO, STYLE_STEP, STYLES, unpacked
from ..shards import HELD_OUT_SPEAKERS
from .speech import KOKORO_RATE, SPEEDS, Speech, kokoro_seconds, session

HELD_OUT_SHARE = 0.02  # of the clips, by speakers that are never trained on
PLAIN_SHARE = 0.4  # of the clips, by one speaker; the others by mixtures
_MIXED = (0.2, 0.8)  # share of the first speaker of a mixture


class Kokoro:
    """`speak` draws the speaker: one of the styles, a mixture of two, or seldom one that is held out."""

    wide = False

    def __init__(
        self, model: Path, styles: dict[str, NDArray[np.float32]], vocabulary: dict[str, int], held_out_share: float = HELD_OUT_SHARE
    ) -> None:
        self._session = session(model)
        self._styles = styles
        self._vocabulary = vocabulary
        self._held_out_share = held_out_share
        held_out = {name.removeprefix("kokoro:") for name in HELD_OUT_SPEAKERS}
        self._held_out = sorted(held_out & styles.keys())
        self._open = sorted(styles.keys() - held_out)

    def _style(self, rng: np.random.Generator) -> tuple[str, NDArray[np.float32]]:
        """(name, (rows, 256))."""
        draw = rng.random()
        if draw < self._held_out_share and self._held_out:
            name = self._held_out[rng.integers(len(self._held_out))]
            return name, self._styles[name]
        if draw < self._held_out_share + PLAIN_SHARE:
            name = self._open[rng.integers(len(self._open))]
            return name, self._styles[name]
        first, second = (self._open[i] for i in rng.choice(len(self._open), 2, replace=False))
        share = round(float(rng.uniform(*_MIXED)), 2)
        mixed = share * self._styles[first] + (1 - share) * self._styles[second]
        return f"mix:{first}+{second}:{share:.2f}", mixed.astype(np.float32)

    def speak(self, phonemes: str, rng: np.random.Generator) -> Speech:
        name, rows = self._style(rng)
        symbols = [symbol for symbol in phonemes if symbol in self._vocabulary]
        tokens = [0, *(self._vocabulary[symbol] for symbol in symbols), 0]
        row = min(round(len(symbols) / STYLE_STEP), len(rows) - 1)
        given = {
            "tokens": np.array([tokens], np.int64),
            "style": rows[row][None].astype(np.float32),
            "speed": np.array([rng.uniform(*SPEEDS)], np.float32),
        }
        audio, units = self._session.run(None, given)
        audio = np.asarray(audio, np.float32).reshape(-1)
        seconds = kokoro_seconds(np.asarray(units, np.float64), len(audio))
        return Speech(audio, KOKORO_RATE, ["^", *symbols, "$"], seconds, f"kokoro:{name}")


def load(bundles: Path, work: Path, held_out_share: float = HELD_OUT_SHARE) -> Kokoro:
    """From W/bundle_kokoro; the evaluation wants nothing but held-out speakers."""
    folder = bundles / KOKORO
    with np.load(folder / STYLES, allow_pickle=False) as stored:
        styles = {name: stored[name].astype(np.float32) for name in stored.files}
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))["vocab"]
    return Kokoro(unpacked(folder / "kokoro.onnx.xz", work), styles, vocabulary, held_out_share)
