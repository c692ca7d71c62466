"""How near pitch estimators come to pitch that is known: speech that WORLD has resynthesised along a contour of our own.

    python tools/measure_pitch.py CLIP.wav ... [--models FILE ...] [--noise DB ...] [--recorded CLIP.wav CONTOUR.npy]

Each clip's spectral envelope is kept and its pitch is replaced: voiced is where harvest and dio agree, and the contour there is
moved by two semitones, with slow bends of a semitone. What WORLD was asked for is what is true, whatever was analysed; its own
estimators, harvest and dio, are rather favoured by that voicing. White noise is added at each level. `--recorded` compares with a
contour that somebody else recorded instead.

For each method: voicing errors (share of all frames called wrongly), gross errors (of the frames that both call voiced, those
more than 50 cents off), the median error of the others in cents, and seconds for a second of audio. Frames are 10 ms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyworld
import soundfile
import torch
from numpy.typing import NDArray
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.embedded import PITCH, embedded_path
from rvc_coreml.models.pitch_network import PitchNetwork
from rvc_coreml.models.stages import PitchStage, pitch_stage
from rvc_coreml.runtime.pitch import HOP, SAMPLE_RATE, estimate_pitch
from torch import Tensor

CLASSICAL = ("harvest", "dio")
FRAME_MS = 1000.0 * HOP / SAMPLE_RATE
SHIFT, BEND, BEND_SECONDS = 2.0, 1.0, 1.7  # semitones, semitones, seconds
GROSS_CENTS = 50.0
AGREED = 0.03  # half a semitone
LEVELS = (None, 20.0, 10.0)  # dB of speech over noise; None is none
Contour = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """Of one contour against another of the same frames."""

    voicing: float
    gross: float
    cents: float

    @classmethod
    def between(cls, found: Contour, true: Contour) -> Errors:
        frames = min(len(found), len(true))
        found, true = found[:frames], true[:frames]
        both = (found > 0) & (true > 0)
        cents = np.abs(1200 * np.log2(found[both] / true[both]))
        near = cents[cents <= GROSS_CENTS]
        voicing = float(np.mean((found > 0) != (true > 0)))
        return cls(voicing, float(np.mean(cents > GROSS_CENTS)), float(np.median(near)) if len(near) else float("nan"))


class Runner:
    """A stage as PyTorch runs it on the CPU, at any length."""

    window = None
    device = torch.device("cpu")

    def __init__(self, stage: PitchStage) -> None:
        self._stage = stage

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> dict[str, Tensor]:
        return self._stage.compute(inputs, wanted)


class Models:
    """Pitch models from files, as a library would have them."""

    def __init__(self, files: Sequence[Path]) -> None:
        networks = [load_pitch(file).network for file in files]
        self._networks = {network.kind: network for network in networks}

    def available(self) -> list[str]:
        return list(self._networks)

    def stage(self, kind: str) -> Runner:
        return Runner(pitch_stage(self._networks[kind]))

    def network(self, kind: str) -> PitchNetwork:
        return self._networks[kind]

    def say(self, line: str) -> None:
        print(line)


def resynthesised(audio: NDArray[np.float64]) -> tuple[NDArray[np.float64], Contour]:
    """Speech (N,) at 16 kHz -> the same words along another contour, and that contour."""
    pitch, times = pyworld.harvest(audio, SAMPLE_RATE, frame_period=FRAME_MS)
    other, _times = pyworld.dio(audio, SAMPLE_RATE, frame_period=FRAME_MS)
    pitch, other = (pyworld.stonemask(audio, one, times, SAMPLE_RATE) for one in (pitch, other))
    agreed = (pitch > 0) & (other > 0) & (np.abs(pitch - other) < AGREED * pitch)
    pitch = np.where(agreed, pitch, 0.0)
    envelope = pyworld.cheaptrick(audio, pitch, times, SAMPLE_RATE)
    noise = pyworld.d4c(audio, pitch, times, SAMPLE_RATE)
    wanted = pitch * 2.0 ** ((SHIFT + BEND * np.sin(2 * np.pi * times / BEND_SECONDS)) / 12)
    return pyworld.synthesize(wanted, envelope, noise, SAMPLE_RATE, FRAME_MS)[: len(audio)], wanted


def with_noise(audio: NDArray[np.float64], level: float | None, seed: int = 0) -> NDArray[np.float32]:
    """White noise so many dB below the clip's RMS."""
    if level is None:
        return audio.astype(np.float32)
    noise = np.random.default_rng(seed).standard_normal(len(audio))
    return (audio + noise * np.sqrt(np.mean(audio**2)) / 10 ** (level / 20)).astype(np.float32)


def measure(cases: Sequence[tuple[NDArray[np.float32], Contour]], methods: Sequence[str], models: Models) -> None:
    """One row for each method, over all frames of all cases."""
    print("| method | voicing errors | gross errors | median error | s per s |\n| --- | --- | --- | --- | --- |")
    for method in methods:
        begun = time.perf_counter()
        found = [estimate_pitch(audio, method, models=models) for audio, _true in cases]
        spent = (time.perf_counter() - begun) / sum(len(audio) / SAMPLE_RATE for audio, _true in cases)
        frames = [min(len(one), len(true)) for one, (_audio, true) in zip(found, cases, strict=True)]
        joined = np.concatenate([one[:count] for one, count in zip(found, frames, strict=True)])
        truth = np.concatenate([true[:count] for (_audio, true), count in zip(cases, frames, strict=True)])
        errors = Errors.between(joined, truth)
        print(f"| {method} | {errors.voicing:.1%} | {errors.gross:.2%} | {errors.cents:.1f} cents | {spent:.3f} |", flush=True)


def read(path: Path) -> NDArray[np.float64]:
    samples, rate = soundfile.read(path, dtype="float64")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise SystemExit(f"{path} is not mono at {SAMPLE_RATE} Hz")
    return np.asarray(samples, np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="files of pitch models, besides the embedded SwiftF0")
    parser.add_argument("--noise", type=float, nargs="*", help="levels in dB; also without noise (default: 20 and 10)")
    parser.add_argument("--recorded", type=Path, nargs=2, metavar=("CLIP", "CONTOUR"))
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    models = Models([*arguments.models, embedded_path(PITCH)])
    methods = [*models.available(), *CLASSICAL]
    levels = LEVELS if arguments.noise is None else (None, *arguments.noise)
    spoken = [resynthesised(read(clip)) for clip in arguments.clips]
    for level in levels if spoken else ():
        print(f"\nresynthesised, {'no noise' if level is None else f'noise {level:g} dB below'}\n")
        measure([(with_noise(audio, level), true) for audio, true in spoken], methods, models)
    if arguments.recorded:
        print("\nrecorded contour\n")
        measure([(read(arguments.recorded[0]).astype(np.float32), np.load(arguments.recorded[1]))], methods, models)


if __name__ == "__main__":
    main()
