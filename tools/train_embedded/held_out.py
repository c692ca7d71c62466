"""Speech that nothing was trained on: recordings, and sentences and speakers that were held back from training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from . import shards
from .measuring import RATE, Samples, package_folder
from .texts import read_texts

AUDIO = Path(__file__).resolve().parents[2] / "golden_outputs" / "audio"
LIBRIVOX, PACKAGED, SYNTHETIC, TARGET = "LibriVox", "other recordings", "held-out synthetic speakers", "target"
TEXTS = "texts.json"
# Sense and Sensibility, chapter 1.
LIBRIVOX_TEXTS = {
    "librivox_austen_0870": (
        "and mr john dashwood had then leisure to consider how much there might be prudently in his power to do for them"
    ),
    "librivox_austen_0880": "he was not an ill disposed young man",
    "librivox_austen_0890": "unless to be rather cold hearted and rather selfish is to be ill disposed",
}
# A Tale of Two Cities, chapter 1, as moonshine-voice's two_cities.wav reads it: seconds at which it pauses, and what is read between.
TWO_CITIES = (
    (0.6, 4.71, "it was the best of times it was the worst of times"),
    (4.71, 8.48, "it was the age of wisdom it was the age of foolishness"),
    (8.48, 13.37, "it was the epoch of belief it was the epoch of incredulity"),
    (13.37, 16.82, "it was the season of light it was the season of darkness"),
    (16.82, 20.65, "it was the spring of hope it was the winter of despair"),
    (20.65, 24.46, "we had everything before us we had nothing before us"),
    (24.46, 28.52, "we were all going direct to heaven we were all going direct the other way"),
    (
        *(28.52, 42.9),
        "in short the period was so far like the present period that some of its noisiest authorities insisted on its being received"
        " for good or for evil in the superlative degree of comparison only",
    ),
)


@dataclass(frozen=True)
class HeldOut:
    """A clip and what is known of it."""

    name: str
    group: str
    speaker: str
    samples: Samples  # (N,) at 16 kHz
    text: str | None = None
    wide: NDArray[np.float32] | None = None  # the same at 32 kHz


def read(path: Path) -> Samples:
    """Mono at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(samples.mean(axis=1), rate, RATE), np.float32)


def librivox() -> list[HeldOut]:
    return [HeldOut(name, LIBRIVOX, "librivox", read(AUDIO / f"{name}.wav"), text) for name, text in LIBRIVOX_TEXTS.items()]


def packaged_recordings() -> list[HeldOut]:
    """Recordings that moonshine-voice brings, cut into sentences. Raises UsageError without that package."""
    folder = package_folder("moonshine_voice") / "assets"
    cities = read(folder / "two_cities.wav")
    found = [HeldOut("beckett", PACKAGED, "beckett", read(folder / "beckett.wav"))]
    for number, (start, stop, text) in enumerate(TWO_CITIES, 1):
        found.append(HeldOut(f"two_cities_{number}", PACKAGED, "two_cities", cities[round(start * RATE) : round(stop * RATE)], text))
    return found


def synthetic(folder: Path) -> list[HeldOut]:
    """Sentences by the speakers that were held out, from what `held_out_speech` has left."""
    return [held_out for held_out in _read(folder) if held_out.group == SYNTHETIC]


def target_speech(folder: Path, count: int) -> list[HeldOut]:
    """The first `count` sentences in the target's own voice."""
    return [held_out for held_out in _read(folder) if held_out.group == TARGET][:count]


def _read(folder: Path) -> list[HeldOut]:
    texts = read_texts(folder / TEXTS)
    clips = [clip for path in sorted(folder.glob("*.npz")) for clip in shards.read_shard(path)]
    return [_held_out(clip, texts[clip.sentence]["text"]) for clip in clips]


def _held_out(clip: shards.Clip, text: str) -> HeldOut:
    group, wide = (SYNTHETIC, None) if clip.wide is None else (TARGET, np.asarray(clip.wide / 32768, np.float32))
    name = f"{clip.speaker.replace(':', '_')}_{clip.sentence}"
    return HeldOut(name, group, clip.speaker, np.asarray(clip.audio / 32768, np.float32), text, wide)
