"""The step `encoder`: train the content encoder on shards that may still be arriving, for so many minutes; W/encoder/.

Written there: last.pt (everything needed to go on), log.jsonl, hf/, the averaged encoder as `load_hubert` reads it, and
head.pt, the phoneme head that `spell` reads it with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rvc_coreml.errors import UsageError
from rvc_coreml.models.hubert import HubertConfig
from torch import Tensor

from .augment import draw_voice, frame_positions, recorded, resample, timeline_samples
from .clips import ClipStore, ShardFolder, sentence_splits
from .content_network import (
    CONFIG,
    HEAD_FILE,
    LOSS_NAMES,
    TINY,
    ContentNetwork,
    average,
    averaged_copy,
    content_losses,
    hidden_frames,
)
from .content_validation import validate
from .hugging_face import write_hugging_face
from .phonemes import PHONEMES, SAMPLE_RATE
from .shards import HELD_OUT_SPEAKERS, read_shard

RATE, FLOOR = 8e-4, 0.02  # peak learning rate, and what share of it is left at the end
BETAS, DECAY, MOST_GRADIENT = (0.9, 0.98), 0.01, 1.0  # HuBERT-base's
WARM_UP = 0.04  # of the training
AGREE_FROM, AGREE_RISE = 0.05, 0.2  # of the training: from when the contrastive term counts, and how long until fully
AVERAGING = 0.999
LONG_EVERY, LONG = 4, 3  # every fourth step has rows three times as long: inference reads up to 43 s at once
POLL_SECONDS, REPORT_STEPS, SYNC_STEPS = 10.0, 50, 10
FEWEST_CLIPS = 8  # to begin with
TIMED_STEP = 20  # whose parts are timed for the log, when the kernels have been chosen
SAFETY_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--minutes", type=float, default=9.5, help="wall clock for this call, final save included (default: 9.5)")
    parser.add_argument("--total-minutes", type=float, help="training the learning rate is planned over (default: until this call ends)")
    parser.add_argument("--steps", type=int, help="end after so many steps, over which the rate is then planned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from last.pt where there is one")
    parser.add_argument("--batch", type=int, default=96, help="rows a step, each in two views (default: 96)")
    parser.add_argument("--seconds", type=float, default=3.2, help="length of a row (default: 3.2)")
    parser.add_argument("--rate", type=float, default=RATE, help=f"peak learning rate (default: {RATE:g})")
    parser.add_argument("--tiny", action="store_true", help="a network of some thousand weights, to try the chain")
    parser.add_argument("--save-seconds", type=float, default=60.0, help="between checkpoints and validations (default: 60)")


def run(arguments: argparse.Namespace) -> None:
    """Train until the minutes or the steps are over. Raises UsageError for settings that fit nothing, and where no speech comes."""
    started = time.monotonic()
    if arguments.batch < 1 or arguments.seconds < 0.5 or arguments.minutes <= 0 or (arguments.steps is not None and arguments.steps < 1):
        raise UsageError("the batch and the steps have to be at least 1, a row at least 0.5 s long, and the minutes more than 0")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here; use --device cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    trainer = EncoderTrainer(arguments, TINY if arguments.tiny else CONFIG, started)
    if arguments.resume:
        trainer.resume()
    trainer.train()


class EncoderTrainer:
    """One call's training. `started` is the monotonic time from which its minutes count."""

    def __init__(self, arguments: argparse.Namespace, config: HubertConfig, started: float) -> None:
        self.arguments, self.started = arguments, started
        self.folder: Path = arguments.work / "encoder"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(arguments.device)
        torch.manual_seed(arguments.seed)
        self.network = ContentNetwork(config, len(PHONEMES)).to(self.device).train()
        self.kept = averaged_copy(self.network)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=arguments.rate, betas=BETAS, fused=self.device.type == "cuda")
        self.step, self.earlier, self.began, self.batch = 0, 0.0, 0.0, int(arguments.batch)
        self.skipped = torch.zeros((), device=self.device)
        self.store = ClipStore(self.device, sentence_splits(arguments.work / "texts.json"), HELD_OUT_SPEAKERS)
        self.shards = ShardFolder(arguments.work / "shards", read_shard)
        self.pace = 0.0  # seconds that a step took lately
        self.ending = 0.0  # seconds that the last save and validation took; the next has more clips to read

    @property
    def elapsed(self) -> float:
        """Seconds of this call."""
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """0 to 1: how far the planned training has come."""
        if self.arguments.steps is not None:
            return min(1.0, self.step / self.arguments.steps)
        total = self.arguments.total_minutes * 60 if self.arguments.total_minutes else self.earlier + self.arguments.minutes * 60
        return min(1.0, (self.earlier + self.elapsed) / total)

    @property
    def trained(self) -> float:
        """`progress`, counted from the first step: waiting for speech is no part of the schedule."""
        return max(0.0, (self.progress - self.began) / max(1 - self.began, 1e-9))

    @property
    def over(self) -> bool:
        if self.arguments.steps is not None and self.step >= self.arguments.steps:
            return True
        return self.elapsed + 1.5 * self.ending + 2 * self.pace + SAFETY_SECONDS > self.arguments.minutes * 60

    def train(self) -> None:
        self._await_speech()
        self._finish()  # a fault in saving or validating shows now, not after the last step, and its time is known
        if self.step == 0:
            self.began = self.progress
        polled = saved = time.monotonic()
        reported, since, sums = self.step, time.monotonic(), torch.zeros(len(LOSS_NAMES), device=self.device)
        heard, synchronised = 0.0, time.monotonic()
        while not self.over:
            if time.monotonic() - polled > POLL_SECONDS:
                self._poll()
                polled = time.monotonic()
            losses, seconds = self._guarded_step()
            sums, heard = sums + losses, heard + seconds
            if self.step % SYNC_STEPS == 0:
                self._synchronise()  # else the queue of steps grows beyond the deadline
                self.pace, synchronised = (time.monotonic() - synchronised) / SYNC_STEPS, time.monotonic()
            if self.step - reported >= REPORT_STEPS:
                means = (sums / (self.step - reported)).tolist()
                figures = {name: round(value, 4) for name, value in zip(LOSS_NAMES, means, strict=True)}
                now = time.monotonic()
                self._log(**figures, rate=self._rate(), audio_per_second=round(heard / (now - since)), skipped=int(self.skipped))
                reported, since, sums, heard = self.step, now, torch.zeros_like(sums), 0.0
            if time.monotonic() - saved > self.arguments.save_seconds:
                self._finish()
                saved = synchronised = time.monotonic()
                since += self.ending  # the rate is that of training alone
        self._finish()

    def _guarded_step(self) -> tuple[Tensor, float]:
        """A step; where memory runs out the batch is halved for good. Returns losses and seconds of audio, both views counted."""
        while True:
            try:
                return self._train_step()
            except torch.OutOfMemoryError:
                if self.batch < 2:
                    raise
            self.optimiser.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.batch //= 2
            self._log(batch=self.batch, note="memory ran out, so the batch was halved")

    def views(self) -> tuple[Tensor, Tensor, Tensor]:
        """Waves (2B, N), labels and places in the row (2B, F): the batch's first views, then its second ones."""
        long = self.step % LONG_EVERY == LONG_EVERY - 1
        rows = max(1, self.batch // LONG) if long else self.batch
        samples = int(self.arguments.seconds * SAMPLE_RATE) * (LONG if long else 1)
        total, frames = timeline_samples(samples), self.network.hubert.config.frames(samples)
        drawn = self.store.draw(rows, total)
        speed, warp = draw_voice(torch.empty(2 * rows, 1, device=self.device))
        waves = recorded(resample(drawn.waves.repeat(2, 1), speed, samples), warp)
        positions = frame_positions(speed, total, samples, frames)
        return waves, torch.cat([drawn.labels_at(places.contiguous()) for places in positions.chunk(2)]), positions

    def _train_step(self) -> tuple[Tensor, float]:
        torch.manual_seed((self.arguments.seed << 32) + self.step)  # a resumed run draws what an uninterrupted one would
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        marks = [self._mark()]
        with torch.no_grad():
            waves, labels, positions = self.views()
            hidden = hidden_frames(labels.shape[0], labels.shape[1], self.device)
        marks.append(self._mark())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            outputs = self.network(waves, hidden)
        agree = min(1.0, max(0.0, (self.trained - AGREE_FROM) / AGREE_RISE))
        losses = content_losses(outputs, labels, positions, agree)
        losses.total.backward()
        marks.append(self._mark())
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), MOST_GRADIENT)
        finite = torch.isfinite(norm)
        for parameter in self.network.parameters():  # asking the device whether to step would make it wait
            if parameter.grad is not None:
                parameter.grad = torch.where(finite, parameter.grad, 0.0)
        self.skipped += ~finite
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        average(self.kept, self.network, self.step, AVERAGING)
        marks.append(self._mark())
        if self.step == TIMED_STEP:
            parts = [round(1000 * (later - before), 1) for before, later in itertools.pairwise(marks)]
            self._log(**dict(zip(("augment_ms", "gradient_ms", "update_ms"), parts, strict=True)))
        self.step += 1
        return torch.nan_to_num(losses.as_tensor()), waves.numel() / SAMPLE_RATE

    def _mark(self) -> float:
        if self.step == TIMED_STEP:
            self._synchronise()
        return time.monotonic()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _rate(self) -> float:
        progress = self.trained
        if progress < WARM_UP:
            return self.arguments.rate * max(progress / WARM_UP, 1e-3)
        cosine = 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))
        return self.arguments.rate * (FLOOR + (1 - FLOOR) * cosine)

    def _poll(self) -> None:
        new = self.shards.poll(self.store)
        if new:
            self._log(
                shards=len(self.shards.taken), clips=len(self.store), speakers=len(self.store.names), hours=round(self.store.hours, 3)
            )

    def _await_speech(self) -> None:
        """Raises UsageError where the minutes pass without speech to train on."""
        self._poll()
        while self.store.training_clips < FEWEST_CLIPS:
            if self.over:
                raise UsageError(f"{self.shards.folder} holds {self.store.training_clips} clips to train on, fewer than {FEWEST_CLIPS}")
            time.sleep(min(1.0, POLL_SECONDS))
            self._poll()

    def _finish(self) -> None:
        """Validate, save and export; also what is done every `save_seconds`."""
        begun = time.monotonic()
        self.save()
        self._log(**validate(self.kept, self.store), validated=True)
        write_hugging_face(self.kept.hubert, self.folder / "hf")
        self.ending = time.monotonic() - begun

    def _log(self, **figures: Any) -> None:
        line = json.dumps({"step": self.step, "seconds": round(self.earlier + self.elapsed, 1), **figures})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """last.pt, complete from the moment it has that name."""
        content = {
            "config": {
                name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.network.hubert.config).items()
            },
            "network": self.network.state_dict(),
            "kept": self.kept.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.earlier + self.elapsed,
            "began": self.began,
            "batch": self.batch,
        }
        self._write("last.pt", content)
        self._write(HEAD_FILE, self.kept.head.state_dict())

    def _write(self, name: str, content: Any) -> None:
        partial = self.folder / f".{name}.partial"
        torch.save(content, partial)
        os.replace(partial, self.folder / name)

    def resume(self) -> None:
        """Take up last.pt where there is one. Raises UsageError for one of another shape."""
        path = self.folder / "last.pt"
        if not path.is_file():
            return
        content = torch.load(path, map_location=self.device, weights_only=True)
        if HubertConfig.from_json(content["config"]) != self.network.hubert.config:
            raise UsageError(f"{path} was trained with another size of network; leave --resume out, or give the same options")
        self.network.load_state_dict(content["network"])
        self.kept.load_state_dict(content["kept"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.step, self.earlier, self.began = int(content["step"]), float(content["seconds"]), float(content["began"])
        self.batch = min(self.batch, int(content["batch"]))
