"""All steps on one machine with one GPU: speech arrives while the encoder and the vocoder train side by side.

The defaults are the times with which the files in git were made, about 25 minutes on one H200 with 16 cores. On fewer
cores the head start has to be longer: the voice learns from the target's speech of the head start alone.
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

# Before training begins: what speaks fastest, in small shards, so that there are some when the time is over.
HEAD_START = ("--shares", "joe=0.5,heart=0.5", "--shard-seconds", "8", "--tag", "start_")
MEANWHILE = ("--shares", "kokoro=0.8,heart=0.2")  # beside training: many speakers, one of them quickly


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--head-start", type=float, default=0.5, help="minutes of synthesis before training begins (default: 0.5)")
    parser.add_argument("--encoder-minutes", type=float, default=7.3, help="of the encoder, and of the vocoder beside it (default: 7.3)")
    parser.add_argument("--voice-minutes", type=float, default=14.5, help="(default: 14.5)")
    parser.add_argument("--workers", type=int, help="processes that synthesise (default: one a core)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-export", action="store_true", help="stop before models/embedded/ is written, which needs more libraries")


def commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Step -> its words after `python -m train_embedded`."""
    common = ["--work", str(arguments.work)]
    seeded = ["--seed", str(arguments.seed)]
    training = ["--device", arguments.device, "--resume", *seeded]
    return {
        "prepare": ["prepare", *common],
        "generate": _speaking(arguments, arguments.encoder_minutes, MEANWHILE),
        "encoder": ["encoder", *common, "--minutes", str(arguments.encoder_minutes), *training],
        "vocoder": ["vocoder", *common, "--minutes", str(arguments.encoder_minutes), *training],
        "voice": ["voice", *common, "--minutes", str(arguments.voice_minutes), *training],
        "export": ["export", *common],
    }


def head_start(arguments: argparse.Namespace) -> list[str]:
    """The words of the synthesis before training."""
    return _speaking(arguments, arguments.head_start, HEAD_START)


def _speaking(arguments: argparse.Namespace, minutes: float, options: Sequence[str]) -> list[str]:
    workers = ["--workers", str(arguments.workers)] if arguments.workers else []
    return ["generate", "--work", str(arguments.work), "--minutes", str(minutes), *options, *workers, "--seed", str(arguments.seed)]


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    print("train_embedded", *words, flush=True)
    return subprocess.Popen([sys.executable, "-m", __package__ or "train_embedded", *words])


def _finish(process: subprocess.Popen[bytes], step: str) -> None:
    if process.wait():
        raise TrainingError(f"the step {step!r} ended with status {process.returncode}; what it said stands above")


def _check_speech(folder: Path) -> None:
    """Raises TrainingError where the head start was too short for both kinds of shards."""
    missing = [kind for kind in (TARGET, SPEECH) if not any(folder.glob(f"{kind}_*.npz"))]
    if missing:
        raise TrainingError(f"{folder} holds no {' and no '.join(missing)} shard after the head start: give it more with --head-start")


def run(arguments: argparse.Namespace) -> None:
    words = commands(arguments)
    work: Path = arguments.work
    if not ((work / KOKORO / STYLES).exists() and (work / REST).is_dir()):
        _finish(_start(words["prepare"]), "prepare")
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        running["generate"] = _start(head_start(arguments))
        _finish(running.pop("generate"), "generate")
        _check_speech(work / "shards")
        for step in ("generate", "encoder", "vocoder"):
            running[step] = _start(words[step])
        for step in ("encoder", "vocoder", "generate"):
            _finish(running.pop(step), step)
        for step in ("voice", *(() if arguments.no_export else ("export",))):
            running[step] = _start(words[step])
            _finish(running.pop(step), step)
    finally:
        for process in running.values():  # a step failed, or the user stopped all
            process.terminate()
            process.wait()
