"""Speech with its phoneme labels on disk, in files that appear whole while other steps already read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .phonemes import LABEL_HOP

HELD_OUT_SPEAKERS = ("kokoro:bf_emma", "kokoro:am_michael")  # generated a little, never trained on
TARGET, SPEECH = "target", "speech"  # how the names of the two kinds of shards begin


@dataclass(frozen=True)
class Clip:
    """One sentence by one speaker."""

    audio: NDArray[np.int16]  # (samples,) at 16 kHz
    labels: NDArray[np.uint8]  # (ceil(samples / 160),) ids of `phonemes.PHONEMES`
    speaker: str  # "kokoro:bf_emma", "kokoro:mix:...", "piper:joe", "hibari:heart..."
    sentence: int  # place in texts.json
    wide: NDArray[np.int16] | None = None  # (2 x samples,) at 32 kHz: the target's clips alone

    def __post_init__(self) -> None:
        if len(self.labels) != -(-len(self.audio) // LABEL_HOP):
            raise ValueError(f"{len(self.audio)} samples need {-(-len(self.audio) // LABEL_HOP)} labels, not {len(self.labels)}")
        if self.wide is not None and len(self.wide) != 2 * len(self.audio):
            raise ValueError(f"{len(self.audio)} samples at 16 kHz need twice as many at 32 kHz, not {len(self.wide)}")


def write_shard(folder: Path, name: str, clips: Sequence[Clip]) -> Path:
    """`folder`/`name`.npz with all clips, complete from the moment it has that name."""
    wide = [clip.wide for clip in clips if clip.wide is not None]
    if not clips or len(wide) not in (0, len(clips)):
        raise ValueError("a shard needs clips, and the 32 kHz copies of all of them or of none")
    arrays: dict[str, NDArray[np.generic]] = {
        "audio": np.concatenate([clip.audio for clip in clips]),
        "audio_lengths": np.array([len(clip.audio) for clip in clips], np.int64),
        "labels": np.concatenate([clip.labels for clip in clips]),
        "label_lengths": np.array([len(clip.labels) for clip in clips], np.int64),
        "speakers": np.array([clip.speaker for clip in clips]),
        "sentences": np.array([clip.sentence for clip in clips], np.int64),
    }
    if wide:
        arrays["wide"] = np.concatenate(wide)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    partial = folder / f".{name}.{os.getpid()}.partial"
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_shard(path: Path) -> list[Clip]:
    """All clips of one shard."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    ends, label_ends = np.cumsum(arrays["audio_lengths"]), np.cumsum(arrays["label_lengths"])
    clips: list[Clip] = []
    start = label_start = 0
    for i, (end, label_end) in enumerate(zip(ends.tolist(), label_ends.tolist(), strict=True)):
        wide = arrays["wide"][2 * start : 2 * end] if "wide" in arrays else None
        clips.append(
            Clip(
                arrays["audio"][start:end],
                arrays["labels"][label_start:label_end],
                str(arrays["speakers"][i]),
                int(arrays["sentences"][i]),
                wide,
            )
        )
        start, label_start = end, label_end
    return clips
