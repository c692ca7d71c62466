"""The reference executor against PyTorch eager, side by side in one run: time and peak memory.

    python tools/benchmark_reference.py [LIBRARY]

Takes the content encoder and the first voice's decoder of a library (the demo's, made by `make demo`, unless another is
named), as half-precision packages with windows of 5 s and 2 s. The same stage runs as PyTorch float32 and, from its
package, under the policies `declared` and `float32`, in turn and round after round; ratios are of medians. Memory is
the peak of a process of its own for each, which loads the stage and runs it three times. Exits with 1 where a ratio is
over its limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.models.stages import content_encoder_stage
from rvc_coreml.runtime.backends.base import predict_arrays
from rvc_coreml.runtime.backends.torch_backend import TorchBackend, TorchRunner
from rvc_coreml.runtime.library import Component, Library
from rvc_coreml.runtime.memory import peak_memory
from rvc_coreml.runtime.reference import ReferenceModel

CONTENT_FRAMES = 249  # of 20 ms: 5 s of audio
STAGES = {"content_encoder": "5 s", "decoder": "2 s"}
TIME_LIMITS = {"declared": 1.3, "float32": 1.15}
MEMORY_LIMIT = 1.2
PREDICTIONS = 3  # in a process whose memory is measured


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the reference executor with PyTorch eager.")
    parser.add_argument("library", nargs="?", type=Path, default=Path("demo/library"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", nargs=3, metavar=("KIND", "STAGE", "PACKAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure_child(options.library, *options.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        failed = [stage for stage in STAGES if not compare(options.library, stage, Path(folder), options.rounds)]
    raise SystemExit(f"over the limit: {', '.join(failed)}" if failed else 0)


def compare(library: Path, stage: str, folder: Path, rounds: int) -> bool:
    """Print the table of one stage; whether every ratio is within its limit."""
    package = folder / f"{stage}.mlpackage"
    runner = torch_stage(library, stage)
    convert_stage(runner.stage, "fp16").model.save(str(package))
    memory = {kind: child(library, kind, stage, package) for kind in ("torch", *TIME_LIMITS)}
    inputs = example(runner)
    runs: dict[str, Callable[[], object]] = {"torch": partial(predict_arrays, runner, inputs)}
    runs |= {policy: partial(ReferenceModel(package, numerics=policy).predict, inputs) for policy in TIME_LIMITS}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(rounds):
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            times[kind].append(time.perf_counter() - start)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    print(f"{stage}, {STAGES[stage]} of audio, {torch.get_num_threads()} threads, medians of {rounds}")
    print(f"  {'':10}  {'seconds':>8}  {'ratio':>6}  {'limit':>6}  {'peak GB':>8}  {'ratio':>6}  {'limit':>6}")
    print(f"  {'torch':10}  {medians['torch']:8.3f}  {'':6}  {'':6}  {memory['torch'] / 1e9:8.2f}")
    good = True
    for policy, limit in TIME_LIMITS.items():
        slower, larger = medians[policy] / medians["torch"], memory[policy] / memory["torch"]
        shown = f"{medians[policy]:8.3f}  {slower:6.2f}  {limit:6.2f}  {memory[policy] / 1e9:8.2f}  {larger:6.2f}  {MEMORY_LIMIT:6.2f}"
        print(f"  {policy:10}  {shown}")
        good &= slower <= limit and larger <= MEMORY_LIMIT
    return good


def torch_stage(library: Path, stage: str) -> TorchRunner:
    """A stage of the library in PyTorch, at the window measured here."""
    opened, backend = Library.open(library), TorchBackend("cpu")
    if stage == "content_encoder":
        network: Any = backend.network(opened.content_encoder())
        return TorchRunner(content_encoder_stage(network, CONTENT_FRAMES), "cpu")
    return backend.network_runner(first_voice(opened), stage)


def first_voice(library: Library) -> Component:
    return library.voice(library.voice_names()[0])


def example(runner: TorchRunner) -> dict[str, np.ndarray]:
    """Seeded inputs of the stage's shapes, every frame valid."""
    generator = np.random.default_rng(0)
    inputs = {spec.name: generator.standard_normal(spec.shape, dtype=np.float32) for spec in runner.stage.inputs}
    return inputs | {"mask": np.ones_like(inputs["mask"])}


def child(library: Path, kind: str, stage: str, package: Path) -> int:
    """Peak bytes of a process that loads one kind and predicts."""
    command = [sys.executable, __file__, str(library), "--child", kind, stage, str(package)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["peak"]


def measure_child(library: Path, kind: str, stage: str, package: str) -> None:
    if kind == "torch":
        runner = torch_stage(library, stage)
        run: Callable[[], object] = partial(predict_arrays, runner, example(runner))
    else:
        model = ReferenceModel(package, numerics=kind)
        generator = np.random.default_rng(0)
        inputs = {name: generator.standard_normal(feature.default, dtype=np.float32) for name, feature in model.inputs.items()}
        run = partial(model.predict, inputs)
    for _ in range(PREDICTIONS):
        run()
    print(json.dumps({"peak": peak_memory()}))


if __name__ == "__main__":
    main()
