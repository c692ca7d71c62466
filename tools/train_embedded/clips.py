"""Clips in the device's memory: shards appended while training runs, rows of speech drawn from them.

A row is a stretch of time in which clips of one speaker follow each other with silence between them. Its labels are looked up
by position, so that a view that reads the row faster or slower still has each frame's own phoneme.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .phonemes import LABEL_HOP, SAMPLE_RATE

TRAIN, VALID, UNSEEN = "train", "valid", "unseen"  # unseen: speakers that are never trained on
GAP_SECONDS = (0.03, 0.6)  # silence between two clips of a row
LEAD_SECONDS = 0.6  # most silence before a row's first clip
CUT_SHARE = 0.6  # rows that begin inside a clip
KEPT_SECONDS = 0.6  # least that is left of a clip cut so
PIECE_SECONDS = 2.5  # a row is given one clip for each such stretch, and two more


def voice_of(speaker: str) -> str:
    """What speakers share a synthesiser's voice: "hibari:heart" of "hibari:heart:+3.6:0.92"; a mixture is a voice of its own."""
    return speaker if ":mix:" in speaker else ":".join(speaker.split(":")[:2])


@dataclass(frozen=True)
class Rows:
    """`waves` (B, T) in -1..1 and what lies where: each row's clips begin at `starts` (B, P), silence is label 0."""

    waves: Tensor
    starts: Tensor
    clips: Tensor
    speakers: Tensor
    _store: ClipStore

    def labels_at(self, positions: Tensor) -> Tensor:
        """Phonemes (B, F) of sample positions (B, F), which need not be whole; 0 outside the clips."""
        _, local, labels, inside = self._store.locate(self.starts, self.clips, positions.floor().long())
        found = self._store.labels[torch.where(inside, labels + local // LABEL_HOP, 0)]
        return torch.where(inside, found.long(), 0)


class ClipStore:
    """All clips that have arrived. `is_valid` says of a sentence's number whether it is held out, `held_out` names speakers."""

    def __init__(self, device: torch.device, is_valid: Callable[[int], bool], held_out: Collection[str]) -> None:
        self.device, self.is_valid, self.held_out = device, is_valid, frozenset(held_out)
        self.audio = torch.zeros(0, dtype=torch.int16, device=device)
        self.labels = torch.zeros(0, dtype=torch.uint8, device=device)
        self.names: dict[str, int] = {}
        self._lengths: list[int] = []
        self._label_lengths: list[int] = []
        self._speakers: list[int] = []
        self._parts: list[str] = []

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def training_clips(self) -> int:
        return self._parts.count(TRAIN)

    @property
    def hours(self) -> float:
        """Of all parts."""
        return sum(self._lengths) / SAMPLE_RATE / 3600

    def append(self, clips: Iterable[Any]) -> None:
        """Take clips (`shards.Clip`) in. Raises ValueError where a clip's labels do not cover it."""
        clips = [clip for clip in clips if len(clip.audio)]
        for clip in clips:
            if len(clip.labels) != -(-len(clip.audio) // LABEL_HOP):
                raise ValueError(f"a clip of {len(clip.audio)} samples has {len(clip.labels)} labels")
        if not clips:
            return
        for clip in clips:
            self._lengths.append(len(clip.audio))
            self._label_lengths.append(len(clip.labels))
            self._speakers.append(self.names.setdefault(str(clip.speaker), len(self.names)))
            self._parts.append(UNSEEN if clip.speaker in self.held_out else VALID if self.is_valid(int(clip.sentence)) else TRAIN)
        self.audio = torch.cat([self.audio, self._moved(np.concatenate([clip.audio for clip in clips]), np.int16)])
        self.labels = torch.cat([self.labels, self._moved(np.concatenate([clip.labels for clip in clips]), np.uint8)])
        self._index()

    def _moved(self, values: np.ndarray, kind: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=kind)).to(self.device)

    def _index(self) -> None:
        """Tables on the device; training clips lie speaker by speaker, drawn so that a voice's share grows as the root of its length."""
        lengths, speakers = np.array(self._lengths), np.array(self._speakers)
        self.lengths = self._moved(lengths, np.int64)
        self.firsts = self._moved(np.cumsum(lengths) - lengths, np.int64)
        self.label_firsts = self._moved(np.cumsum(self._label_lengths) - self._label_lengths, np.int64)
        self.speakers = self._moved(speakers, np.int64)
        train = np.flatnonzero(np.array(self._parts) == TRAIN)
        order = train[np.argsort(speakers[train], kind="stable")]
        self._order = self._moved(order, np.int64)
        counts = np.bincount(speakers[order], minlength=len(self.names))
        self._counts, self._begins = self._moved(counts, np.int64), self._moved(np.cumsum(counts) - counts, np.int64)
        voices: dict[str, int] = {}
        voice = np.array([voices.setdefault(voice_of(name), len(voices)) for name in self.names], np.int64)[speakers[order]]
        totals = np.bincount(voice, weights=lengths[order], minlength=len(voices))
        weights = lengths[order] / np.sqrt(totals[voice])
        self._cumulative = self._moved(np.cumsum(weights) / max(weights.sum(), 1e-9), np.float64)

    def locate(self, starts: Tensor, clips: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For positions (B, K) of rows: the clip's first sample, the place within it, its first label, and whether it is inside."""
        piece = (torch.searchsorted(starts, positions, right=True) - 1).clamp_min(0)
        clip = clips.gather(1, piece)
        local = positions - starts.gather(1, piece)
        inside = (local >= 0) & (local < self.lengths[clip])
        return self.firsts[clip], local, self.label_firsts[clip], inside

    def rows(self, starts: Tensor, clips: Tensor, samples: int) -> Rows:
        """Rows of that many samples from clips (B, P) that begin at starts (B, P), in rising order."""
        positions = torch.arange(samples, device=self.device).expand(len(starts), -1).contiguous()
        first, local, _, inside = self.locate(starts, clips, positions)
        waves = self.audio[torch.where(inside, first + local, 0)].float() / 32768.0
        return Rows(torch.where(inside, waves, 0.0), starts, clips, self.speakers[clips[:, 0]], self)

    def draw(self, rows: int, samples: int) -> Rows:
        """Random rows from the training clips, from torch's own generator of the device."""
        pieces = 2 + int(samples / (PIECE_SECONDS * SAMPLE_RATE))
        uniform = torch.rand(rows, device=self.device, dtype=torch.float64)
        leader = self._order[torch.searchsorted(self._cumulative, uniform).clamp_max(len(self._order) - 1)]
        speaker = self.speakers[leader].unsqueeze(1)
        others = self._begins[speaker] + (torch.rand(rows, pieces - 1, device=self.device) * self._counts[speaker]).long()
        clips = torch.cat([leader.unsqueeze(1), self._order[others.clamp_max(len(self._order) - 1)]], dim=1)
        lengths = self.lengths[clips]
        chance = torch.rand(3, rows, device=self.device)
        cut = -chance[0] * (lengths[:, 0] - KEPT_SECONDS * SAMPLE_RATE).clamp_min(0)
        begin = torch.where(chance[1] < CUT_SHARE, cut, chance[2] * LEAD_SECONDS * SAMPLE_RATE).long().unsqueeze(1)
        low, high = GAP_SECONDS
        gaps = ((low + (high - low) * torch.rand(rows, pieces, device=self.device)) * SAMPLE_RATE).long()
        starts = begin + torch.cumsum(lengths + gaps, dim=1) - lengths - gaps
        return self.rows(starts.contiguous(), clips.contiguous(), samples)

    def chosen(self, part: str, most: int, per_speaker: int | None = None) -> Tensor:
        """Clips of a part, the first of every speaker, then the second, and so on: as many speakers as there is room for."""
        seen: dict[int, int] = {}
        ranked = []
        for clip, (speaker, its) in enumerate(zip(self._speakers, self._parts, strict=True)):
            if its == part:
                seen[speaker] = seen.get(speaker, 0) + 1
                ranked.append((seen[speaker], clip))
        if per_speaker is not None:  # whole groups: speakers that have that many
            full = [speaker for speaker, count in seen.items() if count >= per_speaker][: most // per_speaker]
            ranked = [(rank, clip) for rank, clip in ranked if rank <= per_speaker and self._speakers[clip] in full]
        return torch.tensor([clip for _, clip in sorted(ranked)[:most]], dtype=torch.int64, device=self.device)

    def whole(self, clips: Tensor, samples: int, lead: int = 0) -> Rows:
        """Rows that each hold one of the clips (B,), silence around it, cut at the row's end."""
        starts = torch.full((len(clips), 1), lead, dtype=torch.int64, device=self.device)
        return self.rows(starts, clips.unsqueeze(1).contiguous(), samples)


class ShardFolder:
    """W/shards: `poll` hands over what has come since the last time."""

    def __init__(self, folder: Path, read: Callable[[Path], Iterable[Any]]) -> None:
        self.folder, self.read, self.taken = folder, read, set[str]()

    def poll(self, store: ClipStore) -> list[str]:
        """Names of the shards that were appended. One that cannot be read yet is tried again at the next poll."""
        new = []
        for path in sorted(self.folder.glob("*.npz")):
            if path.name in self.taken:
                continue
            try:
                store.append(self.read(path))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                print(f"{path.name} is left out for now: {error}", flush=True)
                continue
            self.taken.add(path.name)
            new.append(path.name)
        return new


def sentence_splits(texts: Path) -> Callable[[int], bool]:
    """Whether a sentence is held out, as texts.json says; none where there is no such file, and a number outside it is not."""
    if not texts.is_file():
        return lambda sentence: False
    valid = {index for index, text in enumerate(json.loads(texts.read_text(encoding="utf-8"))) if text.get("split") == "valid"}
    return valid.__contains__
