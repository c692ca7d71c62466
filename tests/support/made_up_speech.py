"""Shards of made-up speech: five vowels by their formants, spoken by buzzing voices of different pitch and tract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from train_embedded.shards import HELD_OUT_SPEAKERS, Clip, write_shard

FORMANTS = {1: (700, 1200), 2: (300, 2300), 3: (300, 800), 4: (500, 1800), 5: (450, 3000)}
VOICES = {"low": (90, 1.0), "middle": (160, 1.05), "high": (230, 1.15), HELD_OUT_SPEAKERS[0]: (200, 1.1)}  # pitch in Hz, formants' scale
VALID_SENTENCES = (0,)


def vowel(phoneme: int, samples: int, pitch: float, scale: float) -> np.ndarray:
    time = np.arange(samples) / 16000
    out = np.zeros(samples)
    for harmonic in range(1, int(5000 / pitch)):
        gain = sum(1 / (1 + ((pitch * harmonic - formant * scale) / 120) ** 2) for formant in FORMANTS[phoneme])
        out += gain * np.cos(2 * np.pi * pitch * harmonic * time)
    return out * 0.1


def made_up_clip(speaker: str, sentence: int, seed: int, phonemes: int = 12) -> Clip:
    random = np.random.default_rng(seed)
    audio, labels = [], []
    for phoneme in [0, *random.integers(1, 6, phonemes).tolist(), 0]:
        hops = int(random.integers(8, 20))
        audio.append(vowel(phoneme, hops * 160, *VOICES[speaker]) if phoneme else random.normal(size=hops * 160) * 1e-3)
        labels += [phoneme] * hops
    joined = np.concatenate(audio)
    return Clip((joined / np.abs(joined).max() * 0.7 * 32767).astype(np.int16), np.array(labels, np.uint8), speaker, sentence)


def write_made_up_shards(work: Path, clips: int = 8) -> Path:
    """W with one shard: so many clips of every voice, the first sentence of them held out."""
    made = [made_up_clip(speaker, number, 100 * place + number) for place, speaker in enumerate(VOICES) for number in range(clips)]
    write_shard(work / "shards", "speech_0", made)
    splits = [{"split": "valid" if number in VALID_SENTENCES else "train"} for number in range(clips)]
    (work / "texts.json").write_text(json.dumps(splits), encoding="utf-8")
    return work
