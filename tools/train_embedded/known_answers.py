"""What the evaluation's measures say where the answer is known: a measure that fails here says nothing about a voice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from .held_out import HeldOut
from .measuring import ESTIMATORS, RATE, Recogniser, Samples, Speakers, quality
from .pitch_error import pitch_error
from .words import align, words_of

SHIFT = 3  # semitones
MOST_IN_NOISE = 0.1  # of the words, which recognisers may read into noise by chance
LEAST_LIKENESS = 0.02  # by which two halves of a clip have to be more alike than two speakers
NEAR_SHIFT = 0.1  # semitones by which an estimator may miss the shift


class Listening(Protocol):
    """The measures that have to be loaded."""

    @property
    def recognisers(self) -> Mapping[str, Recogniser]: ...

    @property
    def speakers(self) -> Speakers: ...


def noise_like(samples: Samples, seed: int = 0) -> Samples:
    """White noise of a clip's length and loudness."""
    noise = np.random.default_rng(seed).standard_normal(len(samples))
    return (noise * np.sqrt(np.mean(samples**2))).astype(np.float32)


def shifted(samples: Samples, semitones: float) -> Samples:
    """Speech at 16 kHz with another pitch and the same timing and formants, by WORLD."""
    import pyworld

    audio = np.asarray(samples, np.float64)
    pitch, times = pyworld.harvest(audio, RATE)
    spectrum, aperiodicity = pyworld.cheaptrick(audio, pitch, times, RATE), pyworld.d4c(audio, pitch, times, RATE)
    return pyworld.synthesize(pitch * 2 ** (semitones / 12), spectrum, aperiodicity, RATE)[: len(samples)].astype(np.float32)


def known_answers(measures: Listening, speech: HeldOut, other: HeldOut) -> list[dict[str, Any]]:
    """A row for each measure with what it has to say of `speech`, and of noise and of `other` by another speaker in its place."""
    rows: list[dict[str, Any]] = []

    def add(measure: str, expected: str, found: float | None, holds: bool) -> None:
        rows.append({"measure": measure, "expected": expected, "found": found, "holds": bool(holds)})

    noise = noise_like(speech.samples)
    for name, recogniser in measures.recognisers.items():
        words = words_of(recogniser(speech.samples))
        for title, sound, expected in (("the clip itself", speech.samples, "1"), ("noise", noise, f"at most {MOST_IN_NOISE}")):
            share = align(words, words_of(recogniser(sound))).survival
            holds = share is not None and (share == 1 if sound is speech.samples else share <= MOST_IN_NOISE)
            add(f"words kept by {title} ({name})", expected, share, holds)
    half = len(speech.samples) // 2
    whole, first, second, stranger = (
        measures.speakers.embedding(samples) for samples in (speech.samples, speech.samples[:half], speech.samples[half:], other.samples)
    )
    same, halves, strangers = float(whole @ measures.speakers.embedding(speech.samples)), float(first @ second), float(whole @ stranger)
    add("similarity of the clip to itself", "1", same, abs(same - 1) < 1e-4)
    add("similarity of its halves", f"above the next by {LEAST_LIKENESS}", halves, halves > strangers + LEAST_LIKENESS)
    add(f"similarity to another speaker ({other.speaker})", "below the last", strangers, strangers < halves)
    moved = shifted(speech.samples, SHIFT)
    for name, find in ESTIMATORS.items():
        source, higher = find(speech.samples), find(moved)
        still = pitch_error(source, source, 0).median
        add(f"pitch error of the clip itself ({name})", "0", still, still == 0)
        bias = pitch_error(source, higher, 0).bias
        add(f"pitch of the clip moved by {SHIFT} semitones ({name})", f"{SHIFT}", bias, bias is not None and abs(bias - SHIFT) < NEAR_SHIFT)
    clean, noisy = quality(speech.samples)["OVRL"], quality(noise)["OVRL"]
    add("DNSMOS OVRL of the clip", "above the next", clean, clean > noisy)
    add("DNSMOS OVRL of noise", "below the last", noisy, noisy < clean)
    return rows
