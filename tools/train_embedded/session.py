"""A training step's clock, log and checkpoints, and its options."""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.errors import UsageError
from rvc_coreml.models.embedded import FOLDER, PITCH

from .networks import CONFIGS

MINUTES = 9.5
CHECKPOINT = "last.pt"
LOG = "log.jsonl"
RESERVED_SECONDS = 8.0  # of the minutes given, for the last samples and files
RESERVED_SHARE = 0.1  # at most, of a short run
CHECKPOINT_SECONDS, REPORT_SECONDS = 60.0, 10.0


def add_training_arguments(parser: argparse.ArgumentParser, batch: int, window: int) -> None:
    """Options that vocoder and voice share."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    parser.add_argument("--minutes", type=float, help=f"wall clock for the whole command (default: {MINUTES}, or as long as --steps takes)")
    parser.add_argument("--total-minutes", type=float, help="training the schedule is planned over (default: until this command ends)")
    parser.add_argument("--steps", type=int, help="updates, where the minutes do not end it before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from last.pt where there is one")
    parser.add_argument("--size", choices=sorted(CONFIGS), default="full", help="of the voice; the others are for tries on a CPU")
    parser.add_argument("--batch", type=int, default=batch, help=f"segments in a step (default: {batch})")
    parser.add_argument("--segment", type=int, default=40, help="frames of 10 ms that are decoded of each (default: 40)")
    parser.add_argument("--window", type=int, default=window, help=f"frames around a segment that the encoders see (default: {window})")
    parser.add_argument("--rate", type=float, default=4e-4, help="highest learning rate")
    parser.add_argument("--precision", choices=("bf16", "tf32", "float32"), default="bf16", help="on CUDA; a CPU has float32")
    parser.add_argument("--no-graph", action="store_true", help="launch every kernel by itself, where a CUDA graph makes trouble")
    parser.add_argument("--workers", type=int, help="processes that estimate pitch (default: one a core)")
    parser.add_argument("--pitch-model", type=Path, default=FOLDER / PITCH, help="SwiftF0's ONNX file")
    parser.add_argument("--sample-minutes", type=float, default=2.0, help="between listening examples")


class Session:
    """One run of a training step. Its minutes count from here."""

    def __init__(self, arguments: argparse.Namespace, name: str) -> None:
        """Raises UsageError for options that cannot be used."""
        self.started = time.monotonic()
        if (arguments.minutes is not None and arguments.minutes <= 0) or (arguments.steps is not None and arguments.steps < 1):
            raise UsageError("--minutes has to be more than 0 and --steps at least 1")
        if arguments.device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError("there is no CUDA device here; use --device cpu")
        if not 1 <= arguments.segment <= arguments.window or arguments.batch < 1:
            raise UsageError("--batch has to be at least 1, and --segment no longer than --window")
        if not arguments.pitch_model.is_file():
            raise UsageError(f"{arguments.pitch_model} is not there: give SwiftF0's ONNX file with --pitch-model")
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.folder: Path = arguments.work / name
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        minutes = MINUTES if arguments.minutes is None and arguments.steps is None else arguments.minutes
        self.budget = None if minutes is None else minutes * 60.0
        self.step = 0
        self.earlier = 0.0  # seconds of runs that this one resumes
        self.begun = self.started  # of the updates
        self._last: dict[str, float] = {}
        seed_everything(arguments.seed)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
        if not arguments.resume:
            (self.folder / LOG).unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """Since training began, earlier runs included."""
        return self.earlier + time.monotonic() - self.started

    def begin(self) -> None:
        """Called when all data are there: the schedule runs from here to the end of the minutes."""
        self.begun = time.monotonic()

    def share(self) -> float:
        """How much of the schedule is over, from 0 to 1."""
        shares = [0.0]
        if self.arguments.steps is not None:
            shares.append(self.step / self.arguments.steps)
        if self.budget is not None:
            gone = self.earlier + time.monotonic() - self.begun
            total = (self.arguments.total_minutes or 0.0) * 60.0 or self.earlier + self._end - self.begun
            shares.append(gone / max(total, 1e-3))
        return min(1.0, max(shares))

    def over(self) -> bool:
        """Whether the schedule or this command's time is."""
        return self.share() >= 1.0 or (self.budget is not None and time.monotonic() >= self._end)

    @property
    def _end(self) -> float:
        """When updates have to stop, so that files are written within the minutes."""
        budget = self.budget or 0.0
        return self.started + budget - min(RESERVED_SECONDS, RESERVED_SHARE * budget)

    def choose_kernels(self, training: bool) -> None:
        """Training repeats its shapes, so kernels are tried out, and may round to tf32; elsewhere every clip has a shape of its own."""
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = training
            faster = training and self.arguments.precision != "float32"
            torch.backends.cuda.matmul.allow_tf32 = faster
            torch.backends.cudnn.allow_tf32 = faster

    def due(self, what: str, every: float) -> bool:
        """Whether so many seconds have passed since this was last due; the count starts with the first question."""
        now = time.monotonic()
        if now - self._last.setdefault(what, now) < every:
            return False
        self._last[what] = now
        return True

    def log(self, **values: Any) -> None:
        """A line of log.jsonl, and of standard output."""
        plain = {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}
        line = json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **plain})
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def save(self, state: dict[str, Any]) -> None:
        """last.pt, whole or not at all, with what continues this run exactly."""
        randomness = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            randomness["cuda"] = torch.cuda.get_rng_state(self.device)
        temporary = self.folder / f"{CHECKPOINT}.partial"
        torch.save({**state, "step": self.step, "seconds": self.seconds, "randomness": randomness}, temporary)
        temporary.replace(self.folder / CHECKPOINT)

    def restore(self) -> dict[str, Any] | None:
        """The state of an earlier run where --resume asks for it and there is one."""
        path = self.folder / CHECKPOINT
        if not self.arguments.resume or not path.is_file():
            return None
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.earlier = int(state["step"]), float(state["seconds"])
        return state

    def restore_randomness(self, state: dict[str, Any]) -> None:
        """Last of all before the first update, since building networks draws numbers too."""
        torch.set_rng_state(state["randomness"]["cpu"].cpu())
        if self.device.type == "cuda" and "cuda" in state["randomness"]:
            torch.cuda.set_rng_state(state["randomness"]["cuda"].cpu(), self.device)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
