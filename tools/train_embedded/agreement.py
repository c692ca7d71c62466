"""Do the labels stand where the sounds are? Each kind of phoneme against what it must look like in the signal.

Silence is quiet, sibilants have their energy high, vowels repeat themselves at the pitch's period. How well a measurement tells the
frames of a label from all others (d', the difference of the means in standard deviations) is largest when labels are in place.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .phonemes import IDS, LABEL_HOP, SAMPLE_RATE, SILENCE, VOWELS
from .shards import Clip, read_shard
from .sources import TrainingError

_WINDOW, _FFT = 400, 1024  # samples: 25 ms
_HIGH = 3000  # Hz, above which sibilants have most of their energy
_PERIODS = slice(SAMPLE_RATE // 500, SAMPLE_RATE // 70)  # samples: 70 to 500 Hz
_EDGE = 8  # frames at each end that are left out, so that moved labels are compared over the same frames
KINDS = {
    "silence": [SILENCE],
    "sibilants": [IDS[name] for name in ("S", "SH", "Z", "ZH", "CH", "JH")],
    "vowels": [IDS[name] for name in VOWELS],
}
MOVES = range(-6, 7)  # frames of 10 ms


def measurements(audio: NDArray[np.int16]) -> dict[str, NDArray[np.float64]]:
    """For every kind a value (frames,) that should be large for it: quietness and high share in dB, periodicity from 0 to 1."""
    frames = -(-len(audio) // LABEL_HOP)
    start = (_WINDOW - LABEL_HOP) // 2  # a window stands around its label's 10 ms
    padded = np.zeros(frames * LABEL_HOP + _WINDOW, np.float64)
    padded[start : start + len(audio)] = audio / 32768
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::LABEL_HOP][:frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), _FFT)) ** 2 + 1e-9
    split = _HIGH * _FFT // SAMPLE_RATE
    correlation = np.fft.irfft(np.abs(np.fft.rfft(windows, _FFT)) ** 2)
    return {
        "silence": -10 * np.log10(power.sum(axis=1)),
        "sibilants": 10 * np.log10(power[:, split:].sum(axis=1) / power[:, :split].sum(axis=1)),
        "vowels": correlation[:, _PERIODS].max(axis=1) / (correlation[:, 0] + 1e-9),
    }


def agreement(clips: Sequence[Clip], moves: Sequence[int] = MOVES) -> dict[str, dict[int, float]]:
    """kind -> frames by which the labels are moved (later: positive) -> d'."""
    measured = [measurements(clip.audio) for clip in clips]
    found: dict[str, dict[int, float]] = {kind: {} for kind in KINDS}
    for kind, ids in KINDS.items():
        for move in moves:
            inside, outside = [], []
            for clip, values in zip(clips, measured, strict=True):
                mask = np.isin(np.roll(clip.labels, move), ids)[_EDGE:-_EDGE]
                inside.append(values[kind][_EDGE:-_EDGE][mask])
                outside.append(values[kind][_EDGE:-_EDGE][~mask])
            yes, no = np.concatenate(inside), np.concatenate(outside)
            if not len(yes) or not len(no):
                raise TrainingError(f"the clips have no frames to compare {kind} with")
            found[kind][move] = float((yes.mean() - no.mean()) / np.sqrt((yes.var() + no.var()) / 2 + 1e-12))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=int, default=60, help="of each synthesiser (default: 60)")


def run(arguments: argparse.Namespace) -> None:
    families: dict[str, list[Clip]] = defaultdict(list)
    folder: Path = arguments.work / "shards"
    for path in sorted(folder.glob("*.npz")):
        for clip in read_shard(path):
            family = families[clip.speaker.split(":")[0]]
            if len(family) < arguments.clips:
                family.append(clip)
    if not families:
        raise TrainingError(f"{folder} holds no shards: run 'generate' first")
    for family, clips in families.items():
        minutes = sum(len(clip.audio) for clip in clips) / SAMPLE_RATE / 60
        print(f"{family}: {len(clips)} clips, {minutes:.1f} minutes, {len({clip.speaker for clip in clips})} speakers")
        for kind, values in agreement(clips).items():
            best = max(values, key=values.__getitem__)
            print(f"  {kind}: d' {values[0]:.2f} in place, {values[best]:.2f} at best, moved by {10 * best} ms")
