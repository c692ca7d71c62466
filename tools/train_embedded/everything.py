"""All steps one after another on one machine with one GPU.

The defaults are the times with which the files in git were made on one H200 with 16 cores. On a slower machine the synthesis has to
be given longer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .pack import KOKORO, REST, STYLES
from .shards import SPEECH, TARGET
from .sources import TrainingError

SHARES = "kokoro=0.6,joe=0.25,heart=0.15"  # of the workers; Kokoro speaks on the GPU, the others on a core each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--synthesis-minutes", type=float, default=3.0, help="(default: %(default)s)")
    parser.add_argument("--encoder-minutes", type=float, default=9.0, help="(default: %(default)s)")
    parser.add_argument("--vocoder-minutes", type=float, default=6.0, help="(default: %(default)s)")
    parser.add_argument("--voice-minutes", type=float, default=16.0, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes that synthesise (default: one a core)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-export", action="store_true", help="stop before models/embedded/ is written, which needs more libraries")


def commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Step -> its words after `python -m train_embedded`."""
    common = ["--work", str(arguments.work)]
    seeded = ["--seed", str(arguments.seed)]
    training = ["--device", arguments.device, "--resume", *seeded]
    workers = ["--workers", str(arguments.workers)] if arguments.workers else []
    minutes = {
        step: ["--minutes", str(getattr(arguments, f"{name}_minutes"))]
        for step, name in (("generate", "synthesis"), ("encoder", "encoder"), ("vocoder", "vocoder"), ("voice", "voice"))
    }
    return {
        "prepare": ["prepare", *common],
        "generate": ["generate", *common, *minutes["generate"], "--shares", SHARES, *workers, *seeded],
        **{step: [step, *common, *minutes[step], *training] for step in ("encoder", "vocoder", "voice")},
        "export": ["export", *common],
    }


def _run(words: Sequence[str]) -> None:
    print("train_embedded", *words, flush=True)
    status = subprocess.run([sys.executable, "-m", __package__ or "train_embedded", *words], check=False).returncode
    if status:
        raise TrainingError(f"the step {words[0]!r} ended with status {status}; what it said stands above")


def _check_speech(folder: Path) -> None:
    """Raises TrainingError where synthesis was too short for both kinds of shards."""
    missing = [kind for kind in (TARGET, SPEECH) if not any(folder.glob(f"{kind}_*.npz"))]
    if missing:
        raise TrainingError(f"{folder} holds no {' and no '.join(missing)} shard: give synthesis longer with --synthesis-minutes")


def run(arguments: argparse.Namespace) -> None:
    words = commands(arguments)
    work: Path = arguments.work
    if not ((work / KOKORO / STYLES).exists() and (work / REST).is_dir()):
        _run(words["prepare"])
    _run(words["generate"])
    _check_speech(work / "shards")
    for step in ("encoder", "vocoder", "voice", *(() if arguments.no_export else ("export",))):
        _run(words[step])
