"""Speech from many processes, a shard of each about every minute, while other steps read what is there already."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .pack import KOKORO, REST, STYLES, unpacked
from .phonemes import SAMPLE_RATE, frame_labels
from .resampling import resample
from .shards import SPEECH, TARGET, Clip, write_shard
from .sources import TrainingError
from .synthesisers import LOADERS, Speech, Synthesiser
from .texts import read_texts

WIDE_RATE = 32000  # Hz, of the embedded voice
_FULL = 0.98  # the largest sample that is stored
_AFTERWARDS = "kokoro"  # what a worker turns to once its own synthesiser has spoken enough
TARGET_SENTENCES = 900  # the first of all: what the target says
SHARED_SHARE = 0.25  # of what others say are the target's sentences too: see counterparts


@dataclass(frozen=True)
class Plan:
    """What one worker does."""

    worker: int
    synthesiser: str
    seconds: float | None  # of speech, after which the worker turns to Kokoro; None: never
    deadline: float  # time.time() at which it stops
    shard_seconds: float  # of wall time for each shard
    seed: int
    tag: str


def parse_shares(text: str) -> dict[str, float]:
    """ "kokoro=0.8,joe=0.15" as numbers that sum to 1."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            shares[name] = float(value)
        except ValueError:
            raise TrainingError(f"--shares {text!r}: write name=number, with commas between") from None
        if name not in LOADERS or not 0 <= shares[name] < float("inf"):
            raise TrainingError(f"--shares: {part!r} does not name one of {', '.join(LOADERS)} with a share of 0 or more")
    total = sum(shares.values())
    if not total:
        raise TrainingError("--shares: at least one synthesiser needs a share above 0")
    return {name: share / total for name, share in shares.items() if share}


def assign(shares: Mapping[str, float], workers: int) -> list[str]:
    """A synthesiser for each worker: everyone with a share gets one where there are enough, then the most underserved."""
    given = dict.fromkeys(sorted(shares, key=shares.__getitem__, reverse=True), 0)
    names: list[str] = []
    for _ in range(workers):
        unserved = [name for name, count in given.items() if not count]
        name = unserved[0] if unserved else max(given, key=lambda n: shares[n] * workers - given[n])
        given[name] += 1
        names.append(name)
    return names


def to_int16(audio: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.rint(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def make_clip(speech: Speech, sentence: int, wide: bool) -> Clip:
    """Resampled, labelled and stored; speech that would clip is made quieter as a whole."""
    if wide:
        broad = resample(speech.audio, speech.rate, WIDE_RATE)
        broad = broad[: len(broad) // 2 * 2]
        narrow = resample(broad, WIDE_RATE, SAMPLE_RATE)
    else:
        broad, narrow = None, resample(speech.audio, speech.rate, SAMPLE_RATE)
    peak = max(np.abs(part).max() for part in (broad, narrow) if part is not None)
    gain = np.float32(min(1.0, _FULL / max(peak, 1e-9)))
    labels = frame_labels(speech.symbols, speech.durations, narrow)
    return Clip(to_int16(narrow * gain), labels, speech.speaker, sentence, None if broad is None else to_int16(broad * gain))


def clips(synthesiser: Synthesiser, texts: list[dict[str, str]], rng: np.random.Generator) -> Iterator[Clip]:
    """Without end: all sentences, or the target's, in an order of their own, again and again."""
    shared = min(TARGET_SENTENCES, len(texts))
    while True:
        for sentence in rng.permutation(shared if synthesiser.wide else len(texts)).tolist():
            said = sentence if synthesiser.wide or rng.random() >= SHARED_SHARE else int(rng.integers(shared))
            yield make_clip(synthesiser.speak(texts[said]["phonemes"], rng), said, synthesiser.wide)


def work(plan: Plan, bundles: Path, folder: Path) -> dict[str, float]:
    """One worker until its deadline: seconds of speech by synthesiser."""
    texts = read_texts(folder / "texts.json")
    spoken: dict[str, float] = {}
    for name in dict.fromkeys((plan.synthesiser, _AFTERWARDS)):
        if name != plan.synthesiser and (not (bundles / KOKORO / STYLES).exists() or time.time() >= plan.deadline):
            break
        synthesiser = LOADERS[name](bundles, folder)
        limit = plan.seconds if name == plan.synthesiser else None
        spoken[name] = 0.0
        kind = TARGET if synthesiser.wide else SPEECH
        prefix = f"{kind}_{plan.tag}{name}_{plan.worker:02d}_"
        number = sum(1 for _ in (folder / "shards").glob(f"{prefix}*.npz"))  # a second run adds to the first
        rng = np.random.default_rng([plan.seed, plan.worker, number, sum(map(ord, plan.tag + name))])
        stream = clips(synthesiser, texts, rng)
        while time.time() < plan.deadline and (limit is None or spoken[name] < limit):
            held: list[Clip] = []
            due = min(time.time() + plan.shard_seconds, plan.deadline)
            while not held or (time.time() < due and (limit is None or spoken[name] < limit)):
                held.append(next(stream))
                spoken[name] += len(held[-1].audio) / SAMPLE_RATE
            write_shard(folder / "shards", f"{prefix}{number:04d}", held)
            number += 1
        if limit is None:
            break
    return spoken


def _work(plan: Plan, bundles: Path, folder: Path) -> None:
    started = time.time()
    for name, seconds in work(plan, bundles, folder).items():
        print(f"worker {plan.worker}: {name} spoke {seconds / 60:.1f} minutes", flush=True)
    print(f"worker {plan.worker}: done after {(time.time() - started) / 60:.1f} minutes", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, required=True, help="of wall time")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, of one thread each (default: one a core)")
    parser.add_argument("--shares", default="kokoro=0.8,joe=0.1,heart=0.1", help="of the workers (default: %(default)s)")
    parser.add_argument("--target-minutes", type=float, default=75, help="of the target's speech, after which its workers turn to Kokoro")
    parser.add_argument("--heart-minutes", type=float, default=180, help="of hibari's speech, likewise")
    parser.add_argument("--shard-seconds", type=float, default=60, help="of wall time for each shard")
    parser.add_argument("--bundles", type=Path, help="where bundle_kokoro and bundle_rest lie (default: W)")
    parser.add_argument("--tag", default="", help="a word in the shards' names, for runs that overlap")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    if arguments.workers < 1 or not arguments.minutes > 0 or not arguments.shard_seconds > 0:
        raise TrainingError("--workers, --minutes and --shard-seconds must be positive")
    folder: Path = arguments.work
    bundles: Path = arguments.bundles or folder
    names = assign(parse_shares(arguments.shares), arguments.workers)
    limits = {"joe": arguments.target_minutes * 60, "heart": arguments.heart_minutes * 60}
    needed = {KOKORO if name == "kokoro" else REST for name in names} | {REST}
    for bundle in sorted(needed):
        if not (bundles / bundle).is_dir():
            raise TrainingError(f"{bundles / bundle} does not exist: run 'prepare', or name the bundles' folder with --bundles")
    # Everything is unpacked before the workers race for it, also what some only turn to later.
    for packed in [p for b in (KOKORO, REST) if (bundles / b).is_dir() for p in sorted((bundles / b).glob("*.xz"))]:
        path = unpacked(packed, folder)
        if packed.name == "texts.json.xz":
            path.replace(folder / "texts.json")
    # One thread a process, in numpy too; read when its libraries load, so before the workers start.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    deadline = time.time() + arguments.minutes * 60
    context = multiprocessing.get_context("spawn")
    workers = []
    for number, name in enumerate(names):
        seconds = limits[name] / names.count(name) if name in limits else None
        plan = Plan(number, name, seconds, deadline, arguments.shard_seconds, arguments.seed, arguments.tag)
        workers.append(context.Process(target=_work, args=(plan, bundles, folder)))
        workers[-1].start()
    for worker in workers:
        worker.join()
    failed = sum(worker.exitcode != 0 for worker in workers)
    if failed:
        raise TrainingError(f"{failed} of {len(workers)} workers failed; what they said stands above, and the shards they wrote are whole")
