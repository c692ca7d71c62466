"""A made-up target: hummed sentences with their shards, for the steps that train the embedded voice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from train_embedded.shards import Clip, write_shard

WIDE = 32000


def hummed(seconds: float, low: float, high: float, seed: int = 0) -> NDArray[np.int16]:
    """Harmonics gliding from `low` to `high` Hz under a changing timbre, silence at both ends: int16 at 32 kHz."""
    count = round(seconds * 100) * 320
    time = np.arange(count) / WIDE
    phase = np.cumsum(np.geomspace(low, high, count)) / WIDE
    generator = np.random.default_rng(seed)
    tones = [np.sin(2 * np.pi * k * phase) / k * (1 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 4) * time + k)) for k in range(1, 16)]
    fade = np.clip(np.minimum(time, time[::-1]) * 10 - 1, 0, 1)
    signal = 0.12 * np.sum(tones, axis=0) * fade + 0.002 * generator.standard_normal(count)
    return np.round(np.clip(signal, -1, 1) * 32767).astype(np.int16)


def clip(seconds: float, low: float, high: float, sentence: int) -> Clip:
    wide = hummed(seconds, low, high, sentence)
    audio = wide.reshape(-1, 2).mean(axis=1).astype(np.int16)
    return Clip(audio, np.zeros(-(-len(audio) // 160), np.uint8), "made:up", sentence, wide)


def write_target(work: Path, clips: int = 5) -> None:
    """Shards and texts of a work folder; the last sentence is held out."""
    made = [clip(1.2 + 0.15 * index, 90 + 10 * index, 150 - 5 * index, index) for index in range(clips)]
    write_shard(work / "shards", "target_made_0", made)
    texts = [{"text": "hum", "split": "train"} for _ in range(clips - 1)] + [{"text": "hum", "split": "valid"}]
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
