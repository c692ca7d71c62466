"""The target's sentences in other voices, frame by frame: what a conversion gives the voice, with the target's own answer to it.

`generate` lets other speakers say the target's sentences too. Their timing differs, but both have labels: phonemes that follow each
other alike are laid over each other, and between their edges time runs evenly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .phonemes import LABEL_HOP, SILENCE
from .shards import HELD_OUT_SPEAKERS, SPEECH, Clip, read_shard

LEAST_ALIKE = 0.9  # of the phonemes, in order; below that the two did not say the same
MOST = 6  # of each sentence


@dataclass(frozen=True)
class Counterpart:
    """Another speaker's clip, and where in it (samples) the edges (samples) of the target's phonemes lie."""

    clip: Clip
    edges: NDArray[np.float64]
    places: NDArray[np.float64]

    def at(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """Samples of the target's clip -> samples of this one."""
        return np.interp(samples, self.edges, self.places)


def runs(labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Phonemes in order, pauses left out, and where they begin and end (runs, 2), in labels."""
    edges = np.flatnonzero(np.diff(labels.astype(np.int64))) + 1
    starts, stops = np.concatenate([[0], edges]), np.concatenate([edges, [len(labels)]])
    spoken = labels[starts] != SILENCE
    return labels[starts][spoken], np.stack([starts, stops], axis=1)[spoken]


def counterpart(target: Clip, other: Clip) -> Counterpart | None:
    """The other clip laid over the target's; None where it says something else."""
    (ours, our_runs), (theirs, their_runs) = runs(target.labels), runs(other.labels)
    if not len(ours):
        return None
    matcher = SequenceMatcher(None, ours.tolist(), theirs.tolist(), autojunk=False)
    if matcher.ratio() < LEAST_ALIKE:
        return None
    pairs = [(block.a + i, block.b + i) for block in matcher.get_matching_blocks() for i in range(block.size)]
    edges = [0.0]
    places = [0.0]
    for here, there in pairs:
        for side in (0, 1):
            if our_runs[here, side] * LABEL_HOP > edges[-1]:  # the end of one phoneme is mostly the next one's beginning
                edges.append(float(our_runs[here, side] * LABEL_HOP))
                places.append(max(places[-1], float(their_runs[there, side] * LABEL_HOP)))
    edges.append(max(float(len(target.audio)), edges[-1] + 1))
    places.append(max(float(len(other.audio)), places[-1]))
    return Counterpart(other, np.array(edges), np.array(places))


def find_counterparts(folder: Path, targets: Iterable[Clip]) -> list[list[Counterpart]]:
    """For each of the target's clips up to MOST of the same sentence in the shards of `folder`, speakers that are held out excepted."""
    targets = list(targets)
    wanted: dict[int, list[Clip]] = {clip.sentence: [] for clip in targets}
    for path in sorted(folder.glob(f"{SPEECH}_*.npz")):
        for clip in read_shard(path):
            found = wanted.get(clip.sentence)
            if found is not None and len(found) < MOST and clip.speaker not in HELD_OUT_SPEAKERS:
                found.append(clip)
    laid = ([counterpart(target, other) for other in wanted[target.sentence]] for target in targets)
    return [[one for one in some if one is not None] for some in laid]
