"""The target's speech in the device's memory, on one timeline of 10 ms frames, and the stretches that a step takes from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rvc_coreml.errors import UsageError
from torch import Tensor

from . import pitch
from .shards import Clip, read_shard

FRAME_16K, FRAME = 160, 320  # samples of a frame at 16 and at 32 kHz
GAP = 8  # frames of silence between clips: more than a spectrum reaches beyond its frame
SHORTEST = 60  # frames; shorter clips hold no segment with something around it
FFT_SIZE = 1024  # spec_channels of a 32 kHz voice is 513
BEFORE = (FFT_SIZE - FRAME) // 2  # samples that a frame's spectrum reaches to its left


@dataclass(frozen=True)
class Speech:
    """Clips and, for each, its pitch in Hz (frames,)."""

    clips: list[Clip]
    contours: list[NDArray[np.float32]]

    def frames(self, index: int) -> int:
        """Whole frames of a clip."""
        return len(self.clips[index].audio) // FRAME_16K

    def facts(self) -> dict[str, Any]:
        """For the log: minutes and clips, Hz of the 1st, 50th and 99th percentile of voiced frames, the share that is voiced."""
        seconds = sum(len(clip.audio) for clip in self.clips) / pitch.SAMPLE_RATE
        joined = np.concatenate(self.contours)
        voiced = joined[joined > 0]
        found: dict[str, Any] = {"minutes_of_speech": seconds / 60, "clips": len(self.clips), "voiced": len(voiced) / len(joined)}
        if len(voiced):
            names = ("lowest_pitch", "median_pitch", "highest_pitch")
            found |= {name: round(float(value), 1) for name, value in zip(names, np.percentile(voiced, [1, 50, 99]), strict=True)}
        return found


def read_speech(work: Path, model: Path, workers: int | None = None) -> tuple[Speech, Speech]:
    """The target's clips to train on, and the held-out ones. Contours are kept beside the shards' folder for the next step.

    Raises UsageError with one sentence where there is nothing to train on.
    """
    shards = sorted((work / "shards").glob("target_*.npz"))
    if not shards:
        raise UsageError(f"{work / 'shards'} holds no target_*.npz, the target's speech: run the step generate first")
    splits = [sentence["split"] for sentence in json.loads((work / "texts.json").read_text(encoding="utf-8"))]
    found: dict[bool, tuple[list[Clip], list[NDArray[np.float32]]]] = {True: ([], []), False: ([], [])}
    read = [(path, read_shard(path)) for path in shards]
    for (_path, clips), hertz in zip(read, _contours(work / "pitch", read, model, workers), strict=True):
        for clip, contour in zip(clips, hertz, strict=True):
            if clip.wide is None:
                raise UsageError(f"{_path} holds no 32 kHz audio, which a voice is trained on: generate it again")
            if len(clip.audio) // FRAME_16K >= SHORTEST:
                kept = found[splits[clip.sentence] == "valid"]
                kept[0].append(clip)
                kept[1].append(contour)
    train, valid = Speech(*found[False]), Speech(*found[True])
    if not train.clips:
        raise UsageError(f"{work / 'shards'} holds no sentence of the target that may be trained on: generate more")
    return train, valid


def _contours(folder: Path, read: list[tuple[Path, list[Clip]]], model: Path, workers: int | None) -> list[list[NDArray[np.float32]]]:
    """Contours of every shard's clips, from files where an earlier step has left them; all others at once, on all cores."""
    kept = [folder / path.name for path, _clips in read]
    missing = [index for index, path in enumerate(kept) if not path.is_file()]
    computed = iter(pitch.contours(model, [clip.audio for index in missing for clip in read[index][1]], workers))
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for index, (path, (_shard, clips)) in enumerate(zip(kept, read, strict=True)):
        if index in missing:
            hertz = [next(computed) for _clip in clips]
            temporary = path.with_suffix(".partial")
            with temporary.open("wb") as file:
                np.savez(file, hertz=np.concatenate(hertz), lengths=np.array([len(values) for values in hertz]))
            temporary.replace(path)
        else:
            with np.load(path) as stored:
                hertz = np.split(stored["hertz"], np.cumsum(stored["lengths"])[:-1])
        results.append(hertz)
    return results


@dataclass
class Batch:
    """Windows of the timeline, T frames each, and one segment of S frames in each, for B items."""

    spectra_audio: Tensor  # (B, T * 320 + 704): what the windows' spectra are taken from
    phone_frames: Tensor  # (B, T) places on the timeline
    pitch: Tensor  # (B, T) 1..255
    pitchf: Tensor  # (B, S) Hz, of the segments
    mask: Tensor  # (B, 1, T): 1 within the clip
    places: Tensor  # (B, S): the segment's frames within its window
    audio: Tensor  # (B, 1, S * 320): the segments


class Timeline:
    """Clips one after another with silence between, every clip starting at an even frame (content features have 50 Hz)."""

    def __init__(self, speech: Speech, device: torch.device, tail: int) -> None:
        """`tail` frames of silence follow the last clip, so that no window ends beyond."""
        self.first: list[int] = []
        place = GAP
        for index in range(len(speech.clips)):
            self.first.append(place)
            place += speech.frames(index) + GAP
            place += place % 2
        self.frames = place + tail + tail % 2
        audio = np.zeros(self.frames * FRAME, np.int16)
        hertz = np.zeros(self.frames, np.float32)
        owner = np.full(self.frames, -1, np.int64)
        for index, start in enumerate(self.first):
            count = speech.frames(index)
            wide = speech.clips[index].wide
            assert wide is not None  # noqa: S101 - read_speech has checked
            audio[start * FRAME : (start + count) * FRAME] = wide[: count * FRAME]
            hertz[start : start + count] = speech.contours[index][:count]
            owner[start : start + count] = index
        self.audio = torch.from_numpy(audio).to(device)
        self.hertz = torch.from_numpy(hertz).to(device)
        self.coarse = torch.from_numpy(pitch.coarse_pitch(hertz)).to(device)
        self.owner = torch.from_numpy(owner).to(device)
        self.starts = torch.tensor(self.first, device=device)
        self.stops = torch.tensor([start + speech.frames(index) for index, start in enumerate(self.first)], device=device)

    def segment_starts(self, frames: int) -> Tensor:
        """All places where a segment of so many frames lies within a clip. Raises UsageError where no clip is as long."""
        places = torch.arange(self.frames - frames, device=self.owner.device)
        found = places[(self.owner[:-frames] >= 0) & (self.owner[:-frames] == self.owner[frames - 1 : -1])]
        if not len(found):
            raise UsageError(f"no clip of the target has {frames} frames: choose a shorter --segment")
        return found

    def batch(self, choices: Tensor, count: int, window: int, segment: int) -> Batch:
        """Random windows, each with a random segment out of `choices` (from `segment_starts`); a window stays within its clip."""
        device = choices.device
        start = choices[torch.randint(len(choices), (count,), device=device)]
        owner = self.owner[start]
        first, stop = self.starts[owner], self.stops[owner]
        back = (torch.rand(count, device=device) * (window - segment + 1)).long()
        begin = torch.maximum(torch.minimum(start - back, stop - window), first)
        frames = begin[:, None] + torch.arange(window, device=device)
        places = (start - begin)[:, None] + torch.arange(segment, device=device)
        here = start[:, None] + torch.arange(segment, device=device)
        return Batch(
            self._cut(begin * FRAME - BEFORE, window * FRAME + FFT_SIZE - FRAME),
            frames,
            self.coarse[frames].long(),
            self.hertz[here],
            (frames < stop[:, None]).float().unsqueeze(1),
            places,
            self._cut(start * FRAME, segment * FRAME).unsqueeze(1),
        )

    def _cut(self, starts: Tensor, samples: int) -> Tensor:
        """(B, samples) float32."""
        return self.audio[starts[:, None] + torch.arange(samples, device=starts.device)].float() / 32768
