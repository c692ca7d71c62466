"""Kokoro-82M: 54 speakers, as many between them as wanted, and their pitch moved to where readers' voices are that it does not have."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kokoro_weights import expanded
from ..pack import KOKORO, STYLE_STEP, STYLES, WEIGHTS, unpacked
from ..shards import HELD_OUT_SPEAKERS
from .kokoro_network import STYLE, KokoroNetwork
from .speech import KOKORO_RATE, SPEEDS, Speech, kokoro_seconds

HELD_OUT_SHARE = 0.02  # of the speakers drawn, who are never trained on
PLAIN_SHARE = 0.3  # of the speakers drawn are one style at its own pitch; of the others half are mixtures
SENTENCES = 3  # that a speaker says before the next one is drawn
UNVOICED = 10.0  # Hz: Kokoro's own threshold
_MEDIANS, _FACTORS = (68.0, 290.0), (0.55, 1.7)  # Hz that a speaker's median pitch is moved to, and how far at most
_RANGES = (0.5, 1.4)  # of the melody, in octaves around the median
_JITTER = 0.04  # most, as a share of the pitch, from frame to frame
CREAK_SHARE = 0.35  # of the moved speakers let voiced stretches end in vocal fry
_CREAK_LENGTH, _CREAK_DEPTH, _CREAK_JITTER = (0.15, 0.6), (0.45, 0.7), 0.12
_LOWEST = 32.0  # Hz


@dataclass(frozen=True)
class Register:
    """How a speaker's pitch differs from what Kokoro predicts: a median in Hz, a range, a roughness, and whether words end in fry."""

    median: float  # between 0 and 1: where between the lowest and the highest that the voice reaches
    spread: float
    jitter: float
    creak: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Register:
        jitter = _JITTER * float(rng.random()) if rng.random() < 0.5 else 0.0
        return cls(float(rng.random()), float(rng.uniform(*_RANGES)), jitter, bool(rng.random() < CREAK_SHARE))

    def moved(self, contour: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """A contour (frames,) in Hz in this register; what is unvoiced stays as it is."""
        voiced = contour > UNVOICED
        if not voiced.any():
            return contour
        old = float(np.median(contour[voiced]))
        low, high = max(_MEDIANS[0], old * _FACTORS[0]), min(_MEDIANS[1], old * _FACTORS[1])
        new = low * (max(high, low) / low) ** self.median
        hertz = new * (np.maximum(contour, UNVOICED) / old) ** self.spread * (1 + self.jitter * rng.standard_normal(len(contour)))
        if self.creak:
            hertz *= _fry(voiced, rng)
        return np.where(voiced, np.maximum(hertz, _LOWEST), contour).astype(np.float32)


def _fry(voiced: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Factors of the pitch (frames,): about half of the voiced stretches end an octave lower and irregular."""
    factors = np.ones(len(voiced))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], voiced.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        if rng.random() < 0.5:
            begin = stop - round((stop - start) * rng.uniform(*_CREAK_LENGTH))
            factors[begin:stop] = rng.uniform(*_CREAK_DEPTH) * (1 + _CREAK_JITTER * rng.standard_normal(stop - begin))
    return factors


@dataclass(frozen=True)
class Speaker:
    """What the decoder hears and what the prosody is predicted from, (rows, 128) each, a row for every sixteenth number of symbols."""

    name: str
    timbre: NDArray[np.float32]
    manner: NDArray[np.float32]
    register: Register | None


class Kokoro:
    """`speak` draws a speaker for every few sentences: a style, one in another register, a mixture, or seldom one that is held out."""

    wide = False

    def __init__(
        self,
        network: KokoroNetwork,
        styles: dict[str, NDArray[np.float32]],
        vocabulary: dict[str, int],
        held_out_share: float = HELD_OUT_SHARE,
    ) -> None:
        self._network = network
        self._device = next(network.parameters()).device
        self._styles = styles
        self._vocabulary = vocabulary
        self._held_out_share = held_out_share
        held_out = {name.removeprefix("kokoro:") for name in HELD_OUT_SPEAKERS}
        self._held_out = sorted(held_out & styles.keys())
        self._open = sorted(styles.keys() - held_out)
        self._speaker: Speaker | None = None
        self._sentences = 0

    def draw(self, rng: np.random.Generator) -> Speaker:
        kind = rng.random()
        if kind < self._held_out_share and self._held_out:
            return self._plain(self._held_out[rng.integers(len(self._held_out))], None)
        if kind < self._held_out_share + PLAIN_SHARE:
            return self._plain(self._open[rng.integers(len(self._open))], None)
        register = Register.draw(rng)
        if rng.random() < 0.5:
            return self._plain(self._open[rng.integers(len(self._open))], register)
        chosen = [self._open[i] for i in rng.choice(len(self._open), 3, replace=False)]
        shares = np.round(rng.dirichlet((1.0, 1.0)), 2)
        mixed = sum(share * self._styles[name][:, :STYLE] for name, share in zip(chosen, shares, strict=False))
        manner = self._styles[chosen[rng.integers(3)]][:, STYLE:]
        name = f"mix:{chosen[0]}+{chosen[1]}:{shares[0]:.2f}:{register.median:.2f}:{chosen[2]}"
        return Speaker(name, np.asarray(mixed, np.float32), manner, register)

    def _plain(self, name: str, register: Register | None) -> Speaker:
        rows = self._styles[name]
        written = name if register is None else f"{name}:{register.median:.2f}"
        return Speaker(written, rows[:, :STYLE], rows[:, STYLE:], register)

    def speak(self, phonemes: str, rng: np.random.Generator) -> Speech:
        if self._speaker is None or self._sentences % SENTENCES == 0:
            self._speaker = self.draw(rng)
        self._sentences += 1
        speaker = self._speaker
        symbols = [symbol for symbol in phonemes if symbol in self._vocabulary]
        tokens = torch.tensor([[0, *(self._vocabulary[symbol] for symbol in symbols), 0]], device=self._device)
        row = min(round(len(symbols) / STYLE_STEP), len(speaker.timbre) - 1)
        timbre, manner = (
            torch.from_numpy(part[row : row + 1].astype(np.float32)).to(self._device) for part in (speaker.timbre, speaker.manner)
        )

        def pitch(contour: Tensor) -> Tensor:
            if speaker.register is None:
                return contour
            return torch.from_numpy(speaker.register.moved(contour[0].cpu().numpy(), rng))[None].to(contour.device)

        torch.manual_seed(int(rng.integers(2**63)))  # of the noise in its source
        spoken, units = self._network(tokens, timbre, manner, float(rng.uniform(*SPEEDS)), pitch)
        audio = spoken.cpu().numpy()
        seconds = kokoro_seconds(units.cpu().numpy().astype(np.float64), len(audio))
        return Speech(audio, KOKORO_RATE, ["^", *symbols, "$"], seconds, f"kokoro:{speaker.name}")


def load(bundles: Path, work: Path, held_out_share: float = HELD_OUT_SHARE) -> Kokoro:
    """From W/bundle_kokoro, on the GPU where there is one; the evaluation wants nothing but held-out speakers."""
    folder = bundles / KOKORO
    with np.load(folder / STYLES, allow_pickle=False) as stored:
        styles = {name: stored[name].astype(np.float32) for name in stored.files}
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))["vocab"]
    with np.load(io.BytesIO(unpacked(folder / WEIGHTS, work).read_bytes()), allow_pickle=False) as stored:
        numbers = expanded({name: stored[name] for name in stored.files})
    network = KokoroNetwork(folder, numbers).to("cuda" if torch.cuda.is_available() else "cpu")
    return Kokoro(network, styles, vocabulary, held_out_share)
