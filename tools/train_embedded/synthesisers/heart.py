"""hibari's voice heart: a hundred times faster than Kokoro, and other speakers by moving its pitch and its formants.

The network gives magnitudes and phases for each frame, and hibari's own signal processing makes a waveform of them: between the two,
pitch and the frequency axis are free to change while the timing stays.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ..pack import REST, unpacked
from .speech import KOKORO_RATE, SPEEDS, Speech, kokoro_seconds, session

_PITCH = (-16.0, 4.0)  # semitones: heart is a woman, most others speak lower
_WARP = (0.82, 1.12)  # of the formants' frequencies


class Heart:
    """`signal` is hibari's module of signal processing."""

    wide = False

    def __init__(self, model: Path, vocabulary: dict[str, int], signal: ModuleType) -> None:
        self._session = session(model)
        self._vocabulary = vocabulary
        self._signal = signal

    def speak(self, phonemes: str, rng: np.random.Generator) -> Speech:
        symbols = [symbol for symbol in phonemes if symbol in self._vocabulary]
        tokens = [0, *(self._vocabulary[symbol] for symbol in symbols), 0]
        given = {"ids": np.array([tokens], np.int64), "speed": np.array([rng.uniform(*SPEEDS)], np.float32)}
        *parts, units = (np.asarray(part) for part in self._session.run(None, given))
        spectra, pitch = [part[0] for part in parts[:5]], parts[5][0]
        semitones, warp = round(float(rng.uniform(*_PITCH)), 1), round(float(rng.uniform(*_WARP)), 2)
        spectra = [warped(part, warp) for part in spectra]
        audio = self._signal.synth(*spectra, pitch * 2 ** (semitones / 12), rng)
        seconds = kokoro_seconds(units.astype(np.float64), len(audio))
        return Speech(audio, KOKORO_RATE, ["^", *symbols, "$"], seconds, f"hibari:heart:{semitones:+.1f}:{warp:.2f}")


def warped(spectrum: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """(bins, frames) with what stood at bin b now at b x factor; above the last bin its value is held."""
    places = np.minimum(np.arange(len(spectrum)) / factor, len(spectrum) - 1)
    return spectrum[np.rint(places).astype(np.int64)]  # the nearest bin: phases cannot be interpolated


def load(bundles: Path, work: Path) -> Heart:
    """From W/bundle_rest."""
    folder = bundles / REST
    found = importlib.util.spec_from_file_location("hibari_dsp", folder / "hibari_dsp.py")
    if found is None or found.loader is None:
        raise FileNotFoundError(folder / "hibari_dsp.py")
    signal = importlib.util.module_from_spec(found)
    found.loader.exec_module(signal)
    return Heart(unpacked(folder / "heart.onnx.xz", work), json.loads((folder / "vocab.json").read_text("utf-8")), signal)
