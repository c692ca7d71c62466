"""The step `record`: what is kept of a training run: its logs, a picture of the losses, and a held-out sentence as it got better."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import soundfile
from rvc_coreml.runtime.files import atomic_path

mpl.use("Agg")
from matplotlib import pyplot as plt

from .sources import TrainingError

ROOT = Path(__file__).resolve().parents[2]
LOGS = ("encoder", "vocoder", "voice")
EXAMPLE = 2  # of the held-out sentences that training listens to: the shortest
# Panel -> step and the values of its log that are drawn, with what they are called. Dots are of held-out speech.
PANELS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "content encoder: losses": ("encoder", {"phonemes": "phonemes (cross-entropy)", "agreement": "agreement of two views (InfoNCE)"}),
    "content encoder: share of speech frames with the right phoneme": (
        "encoder",
        {
            "accuracy": "training, disguised",
            "valid_clean": "held-out sentences",
            "valid_noisy": "held-out sentences, disguised",
            "unseen_clean": "held-out speakers",
            "unseen_noisy": "held-out speakers, disguised",
        },
    ),
    "vocoder: spectral losses": (
        "vocoder",
        {"mel": "mel", "stft": "STFT", "held_out_mel": "mel, held-out sentences", "held_out_stft": "STFT, held-out sentences"},
    ),
    "voice: spectral losses and divergence": (
        "voice",
        {"mel": "mel", "stft": "STFT", "kl": "KL", "held_out_mel": "mel, held-out sentences", "held_out_stft": "STFT, held-out sentences"},
    ),
}
HIGHEST = 4.0  # the top of the loss panels: the first seconds lie above


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", type=Path, default=ROOT / "docs" / "embedded" / "training", help="folder to fill (default: docs/embedded/training)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises TrainingError where a log or the listening examples are missing."""
    work, folder = arguments.work, arguments.to
    logs = {step: read_lines(work / step / "log.jsonl") for step in LOGS}
    examples = listening_examples(work / "voice" / "samples")
    folder.mkdir(parents=True, exist_ok=True)
    for step in LOGS:
        with atomic_path(folder / f"{step}.jsonl") as temporary:
            shutil.copyfile(work / step / "log.jsonl", temporary)
    for old in folder.glob("*.flac"):
        old.unlink()
    for name, path in examples.items():
        samples, rate = soundfile.read(path, dtype="int16")
        with atomic_path(folder / f"{name}.flac") as temporary:
            soundfile.write(temporary, samples, rate, format="FLAC", subtype="PCM_16")
    with atomic_path(folder / "losses.png") as temporary:
        draw(temporary, logs)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log. Raises TrainingError where there is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last line of a run that was killed
    if not found:
        raise TrainingError(f"{path} holds no log: run the training steps first")
    return found


def listening_examples(samples: Path) -> dict[str, Path]:
    """Name -> wav of one held-out sentence: the first, the middle and the last time that training listened, and the original."""
    heard = sorted(path for path in samples.glob(f"*_{EXAMPLE}.wav") if path.name[0].isdigit())
    original = samples / f"original_{EXAMPLE}.wav"
    if len(heard) < 3 or not original.is_file():
        raise TrainingError(f"{samples} holds too few listening examples: run the step voice to its end")
    chosen = {"early": heard[0], "middle": heard[len(heard) // 2], "final": heard[-1]}
    named = {f"{when}_step_{int(path.name.partition('_')[0])}": path for when, path in chosen.items()}
    return {**named, "original": original}


def draw(path: Path, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A panel for each of PANELS over minutes of training."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained")
    for axis, (title, (step, curves)) in zip(axes.flat, PANELS.items(), strict=True):
        for key, label in curves.items():
            points = [(line["seconds"] / 60, line[key]) for line in logs[step] if key in line]
            held_out = "held-out" in label
            axis.plot(*zip(*points, strict=True), "o--" if held_out else "-", label=label, markersize=4, linewidth=1)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylim(0, 1 if "share" in title else HIGHEST)
        axis.set_xlabel("minutes")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=90)
    plt.close(figure)
