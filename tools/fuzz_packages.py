"""Damaged packages against the reference executor: each has to run or be refused in one sentence.

    python tools/fuzz_packages.py [--count 10000] [--seed 0]
    python tools/fuzz_packages.py --only 1234        # one case again, in this process

Small packages that together use most families of operations are damaged in their protobuf (fields set to extremes,
names exchanged, elements dropped, repeated and swapped, types changed), in their bytes, in the weight file and in the
manifest, then loaded and run in worker processes. A violation is an exception other than PackageError, a dead worker,
a case that takes longer than 10 s or a worker that holds more than 2 GB. Prints counts; exits with 1 on any violation
or where less than half of the damaged packages still parse.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_seeds import write_seeds
from google.protobuf.message import DecodeError
from rvc_coreml.coremltools_import import Model_pb2
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.memory import peak_memory
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.registry import HANDLERS
from rvc_coreml.runtime.reference.summary import summarize

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
SECONDS = 10
START_SECONDS = 300
PEAK_BYTES = 2e9
TIME_LIMIT = 4.0  # given to each prediction, so that a loop without end is refused
LARGEST_INPUT = 1 << 20  # values; the harness makes no larger inputs than that
WORKERS = 2
EXTREMES = (0, 1, 2, 3, 7, 16, 255, 65536, 20000, 2**31 - 1, 2**62, 2**63 - 1, -1, -2, -(2**31))
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-38, 1e38, float("inf"), float("-inf"), float("nan"))


# ---- damage ----


def damage(package: Path, case: int) -> str:
    """Damage a package in place, determined by `case` alone; what was done to which part."""
    chance = random.Random(case)  # noqa: S311 - not for secrets
    where = chance.choices(["fields", "bytes", "weights", "manifest"], [80, 8, 8, 4])[0]
    if where == "weights" and not (package / WEIGHTS).exists():
        where = "fields"
    if where == "fields":
        model: Any = Model_pb2.Model()  # pyright: ignore[reportAttributeAccessIssue]
        model.ParseFromString((package / MODEL).read_bytes())
        for _ in range(chance.choice([1, 1, 2, 3])):
            damage_field(model, chance)
        (package / MODEL).write_bytes(model.SerializeToString())
        return where
    file = package / {"bytes": MODEL, "weights": WEIGHTS, "manifest": Path("Manifest.json")}[where]
    file.write_bytes(damage_bytes(file.read_bytes(), chance))
    return where


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.randrange(len(changed))]) if chance.random() < 0.2 else bytes(changed)


@dataclass(frozen=True)
class Place:
    """A field that is set somewhere in a message."""

    message: Any
    field: Any


def places(message: Any, found: list[Place]) -> list[Place]:
    """All set fields at and below a message; a map's entries count as its values."""
    for field, value in message.ListFields():
        found.append(Place(message, field))
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = value.values() if field.message_type.fields_by_name["value"].message_type is not None else []
        else:
            inner = value if field.is_repeated else [value]
        for item in inner:
            places(item, found)
    return found


def damage_field(model: Any, chance: random.Random) -> None:
    """Change one field, in the program four times out of five and in the description otherwise."""
    root = model.mlProgram if chance.random() < 0.8 else model
    found = places(root, [])
    if not found:
        return
    place = chance.choice(found)
    message, field = place.message, place.field
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        damage_map(getattr(message, field.name), chance)
    elif field.is_repeated:
        damage_repeated(message, field, model, chance)
    elif field.message_type is not None:
        message.ClearField(field.name)
    else:
        try:
            setattr(message, field.name, other_value(field, getattr(message, field.name), model, chance))
        except (ValueError, TypeError):
            message.ClearField(field.name)


def damage_map(values: Any, chance: random.Random) -> None:
    """Drop an entry, or give it another key."""
    key = chance.choice(list(values))
    if hasattr(values[key], "CopyFrom"):
        entry = type(values[key])()
        entry.CopyFrom(values[key])
        del values[key]
        if chance.random() < 0.5:
            values[chance.choice(["x", "y", "shape", "axis", "weight", "val", "name", f"{key}2"])].CopyFrom(entry)
    else:
        del values[key]


def damage_repeated(message: Any, field: Any, model: Any, chance: random.Random) -> None:
    """Drop, repeat, swap or change elements."""
    values = getattr(message, field.name)
    index = chance.randrange(len(values))
    how = chance.choice(["drop", "repeat", "swap", "change"])
    if how == "drop":
        del values[index]
    elif how == "repeat":
        copies = chance.choice([1, 1, 5, 200])
        for _ in range(copies):
            if field.message_type is not None:
                values.add().CopyFrom(values[index])
            else:
                values.append(values[index])
    elif how == "swap":
        other = chance.randrange(len(values))
        if field.message_type is not None:
            kept = type(values[index])()
            kept.CopyFrom(values[index])
            values[index].CopyFrom(values[other])
            values[other].CopyFrom(kept)
        else:
            values[index], values[other] = values[other], values[index]
    elif field.message_type is None:
        try:
            values[index] = other_value(field, values[index], model, chance)
        except (ValueError, TypeError):
            del values[index]


def other_value(field: Any, value: Any, model: Any, chance: random.Random) -> Any:
    """Another value of a scalar field: an extreme, a neighbour, a name or a word from elsewhere in the program."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        if field.enum_type is not None:
            return chance.choice([item.number for item in field.enum_type.values])
        return chance.choice([*EXTREMES, value + 1, value - 1, value * 2, -value])
    if isinstance(value, float):
        return chance.choice(FLOATS)
    if isinstance(value, bytes):
        return damage_bytes(value, chance) if value else b"\0"
    texts = [
        str(getattr(place.message, place.field.name))
        for place in places(model.mlProgram, [])
        if place.field.type == 9 and not place.field.is_repeated
    ]
    return chance.choice([*texts, *chance.sample(sorted(HANDLERS), 3), "", "same", "custom", "x" * 1000, "../../x", "%s\n"])


# ---- running ----


def run_case(seeds: list[Path], scratch: Path, case: int) -> tuple[str, str]:
    """(outcome, detail) of one case: ran, refused, unparsed, or violation with the traceback."""
    package = scratch / "case.mlpackage"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(seeds[case % len(seeds)], package)
    damage(package, case)
    try:
        model: Any = Model_pb2.Model()  # pyright: ignore[reportAttributeAccessIssue]
        model.ParseFromString((package / MODEL).read_bytes())
        parsed = True
    except DecodeError:
        parsed = False
    try:
        summarize(package)
        loaded = ReferenceModel(package, time_limit=TIME_LIMIT)
        inputs = {}
        for name, feature in loaded.inputs.items():
            shape = feature.default or tuple(size or 2 for size in feature.shape)
            if np.prod(shape, dtype=np.float64) > LARGEST_INPUT:
                return "refused", "larger inputs than this harness makes"
            inputs[name] = np.full(shape, 0.5, np.float32)
        loaded.predict(inputs, loaded.make_state() if loaded.states else None)
    except PackageError as error:
        return ("refused" if parsed else "unparsed"), str(error)
    except Exception:  # noqa: BLE001 - whatever else comes is what is looked for
        return "violation", traceback.format_exc()
    return "ran", ""


def work(connection: Connection, seeds: list[Path]) -> None:
    """A worker: takes case numbers, answers with (case, outcome, detail, peak bytes)."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    connection.send("ready")
    with tempfile.TemporaryDirectory() as scratch:
        while (case := connection.recv()) is not None:
            outcome, detail = run_case(seeds, Path(scratch), case)
            connection.send((case, outcome, detail, peak_memory()))


@dataclass
class Worker:
    process: Any
    connection: Any
    case: int = -1
    since: float = 0.0


def start(seeds: list[Path]) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, seeds), daemon=True)
    process.start()
    theirs.close()
    if not ours.poll(START_SECONDS):
        raise SystemExit(f"a worker did not start within {START_SECONDS} s")
    ours.recv()
    return Worker(process, ours)


def fuzz(seeds: list[Path], cases: range) -> tuple[Counter[str], list[str], int]:
    """(outcomes, violations, peak bytes) over all cases."""
    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    peak = 0
    remaining = iter(cases)
    busy: list[Worker] = []
    for worker in [start(seeds) for _ in range(WORKERS)]:
        give(worker, remaining, busy)
    while busy:
        ready = wait([worker.connection for worker in busy], timeout=1)
        late = [worker for worker in busy if worker.connection not in ready and time.monotonic() - worker.since > SECONDS]
        for worker in [worker for worker in busy if worker.connection in ready] + late:
            busy.remove(worker)
            try:
                if worker in late:
                    raise TimeoutError(f"took longer than {SECONDS} s")
                case, outcome, detail, held = worker.connection.recv()
            except (EOFError, OSError) as error:
                violations.append(f"case {worker.case}: the worker {'hung' if worker in late else 'died'} ({error})")
                outcomes["violation"] += 1
                worker.process.kill()
                give(start(seeds), remaining, busy)
                continue
            outcomes[outcome] += 1
            peak = max(peak, held)
            if outcome == "violation":
                violations.append(f"case {case}:\n{detail}")
            if held > PEAK_BYTES:
                violations.append(f"case {case}: the worker held {held / 1e9:.2f} GB")
                worker.process.kill()
                worker = start(seeds)
            give(worker, remaining, busy)
    return outcomes, violations, peak


def give(worker: Worker, remaining: Any, busy: list[Worker]) -> None:
    """The next case to a worker, or its dismissal."""
    worker.case, worker.since = next(remaining, -1), time.monotonic()
    worker.connection.send(worker.case if worker.case >= 0 else None)
    if worker.case >= 0:
        busy.append(worker)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the reference executor with damaged packages.")
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run one case in this process and show what happens")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = write_seeds(Path(folder))
        if options.only is not None:
            print(*run_case(seeds, Path(folder), options.only), sep="\n")
            return
        outcomes, violations, peak = fuzz(seeds, range(options.seed, options.seed + options.count))
    for violation in violations[:20]:
        print(violation, file=sys.stderr)
    total = outcomes.total()
    parsed = total - outcomes["unparsed"]
    print(f"{total} damaged packages: {outcomes['ran']} ran, {total - outcomes['ran'] - outcomes['violation']} were refused")
    print(f"{parsed} ({parsed / total:.0%}) still parsed; peak memory of a worker {peak / 1e9:.2f} GB; {len(violations)} violations")
    raise SystemExit(0 if not violations and parsed * 2 >= total else 1)


if __name__ == "__main__":
    main()
