"""Retrieval side by side with faiss-cpu: the same index, the same frames, the same threads, in turns.

    python tools/benchmark_retrieval.py
    python tools/benchmark_retrieval.py --vectors 1700 200000 --frames 1 100 1743 --threads 2 --json

Vectors are real ContentVec frames (from ../shared, where it is) with Gaussian noise added, the frames looked up are others
with noise of their own. Prints medians in milliseconds, and exits with 1 where neighbours differ from faiss's or this
project's search takes longer. `--device cuda` or `mps` searches there; faiss stays on the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from rvc_coreml.runtime.retrieval import FeatureIndex, Retriever, load_index, open_index, store_index

FEATURES = Path(__file__).resolve().parents[2] / "shared" / "real_features" / "contentvec_layer12.npy"
TIE = 1e-5  # relative; neighbours closer than that may come in any order
ITERATIONS = 4
TRAINED_ON = 40_000
WARM_UP = 2  # rounds
FEW_FRAMES, CALLS_OF_FEW = 10, 20  # calls that take less than a clock tells are timed together
PAUSE = 0.003  # seconds: threads of one library wait busily for a while after their work, at the other's expense


def real_features() -> tuple[NDArray[np.float32], str]:
    """Frames (n, 768), and what they are."""
    if FEATURES.exists():
        return np.load(FEATURES), "real ContentVec frames"
    random = np.random.default_rng(1)
    centres = random.standard_normal((60, 768)) * 0.33
    frames = centres[np.arange(1743) // 30] + 0.1 * random.standard_normal((1743, 768))
    return frames.astype(np.float32), "made-up frames (no real ones in ../shared)"


def build(frames: NDArray[np.float32], count: int, jitter: float) -> Any:
    """faiss's index of `count` vectors, its cells as many as RVC makes."""
    random = np.random.default_rng(2)
    if count <= len(frames):
        vectors = frames[random.permutation(len(frames))[:count]]
    else:
        vectors = frames[random.integers(0, len(frames), count)]
        vectors = vectors + np.float32(jitter) * random.standard_normal(vectors.shape, np.float32)
    cells = max(1, min(int(16 * np.sqrt(count)), count // 39))  # RVC-WebUI's rule
    index: Any = faiss.index_factory(frames.shape[1], f"IVF{cells},Flat")
    index.cp.niter = ITERATIONS
    index.cp.min_points_per_centroid = 1
    index.train(vectors[:TRAINED_ON])
    index.add(vectors)
    index.nprobe = 1
    return index


def stored(index: Any) -> FeatureIndex:
    """As a library keeps it: through the file, checked and mapped."""
    with tempfile.TemporaryDirectory() as folder:
        faiss.write_index(index, f"{folder}/added.index")
        store_index(open_index(f"{folder}/added.index"), Path(folder) / "index.safetensors")
        return load_index(Path(folder) / "index.safetensors")


def finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def in_turns(works: dict[str, Callable[[int], object]], rounds: int, calls: int) -> dict[str, float]:
    """Medians in milliseconds of a call; each round does each work `calls` times."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + WARM_UP):
        for name, work in works.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            for call in range(calls):
                work(turn * calls + call)
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - start) / calls)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def differences(ours: tuple[torch.Tensor, torch.Tensor], scores: NDArray[np.float32], ids: NDArray[np.int64]) -> int:
    """Neighbours that are not faiss's although no other has nearly the same score."""
    other = ours[1].cpu().numpy() != ids
    close = np.abs(ours[0].cpu().numpy() - scores) <= TIE * scores
    tied = np.zeros_like(other)
    tied[:, 1:] |= np.diff(scores, axis=1) <= TIE * scores[:, 1:]
    tied[:, :-1] |= np.diff(scores, axis=1) <= TIE * scores[:, 1:]
    return int((other & ~tied).sum() + (~close).sum())


def measure(arguments: argparse.Namespace, count: int, frames: NDArray[np.float32]) -> list[dict[str, Any]]:
    theirs = build(frames, count, arguments.jitter)
    index = stored(theirs)
    device = torch.device(arguments.device)
    ours = Retriever(index, device, arguments.mode, getattr(torch, arguments.dtype), strategy=arguments.strategy)
    random = np.random.default_rng(3)
    queries = frames + np.float32(arguments.jitter) * random.standard_normal(frames.shape, np.float32)
    longest = int(index.offsets.diff().max())
    print(f"{count} vectors in {index.cells} cells, the longest {longest}; search: {ours.strategy}", file=sys.stderr)
    wrong = 0 if arguments.mode == "exact" else differences(ours.search(torch.from_numpy(queries).to(device)), *theirs.search(queries, 8))
    rows = []
    for length in arguments.frames:
        calls = CALLS_OF_FEW if length < FEW_FRAMES else 1
        starts = [turn * 131 % max(1, len(queries) - length + 1) for turn in range((arguments.rounds + WARM_UP) * calls)]
        parts = [queries[start : start + length] for start in starts]
        tensors = [torch.from_numpy(part).to(device) for part in parts]

        def search(turn: int, tensors: list[torch.Tensor] = tensors) -> None:
            ours.search(tensors[turn])
            finished(device)

        def blend(turn: int, tensors: list[torch.Tensor] = tensors) -> None:
            ours.blend(tensors[turn], 0.75)
            finished(device)

        def faiss_search(turn: int, parts: list[NDArray[np.float32]] = parts) -> None:
            theirs.search(parts[turn], 8)

        took = in_turns({"faiss": faiss_search, "search": search, "blend": blend}, arguments.rounds, calls)
        rows.append({"vectors": count, "cells": index.cells, "longest_cell": longest, "frames": length, **took, "different": wrong})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="+", default=[200_000])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 100, 1743])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--jitter", type=float, default=0.07)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--mode", choices=["faithful", "exact"], default="faithful")
    parser.add_argument("--strategy", choices=["listed", "padded", "dense"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    frames, what = real_features()
    rows = [row for count in arguments.vectors for row in measure(arguments, count, frames)]
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        print(json.dumps({"features": what, "torch": torch.__version__, "faiss": faiss.__version__, **settings, "rows": rows}, indent=2))
    else:
        print(f"{what}, {arguments.threads} threads, {arguments.device} {arguments.dtype}; medians of {arguments.rounds} rounds in ms")
        print(f"{'vectors':>9} {'frames':>7} {'faiss':>9} {'search':>9} {'ratio':>6} {'blend':>9}  neighbours that differ")
        for row in rows:
            print(
                f"{row['vectors']:9} {row['frames']:7} {row['faiss']:9.3f} {row['search']:9.3f} {row['faiss'] / row['search']:6.2f}"
                f" {row['blend']:9.3f}  {row['different']}"
            )
    slower = [row for row in rows if row["search"] > row["faiss"] and row["vectors"] >= 200_000]
    raise SystemExit(1 if slower or any(row["different"] for row in rows) else 0)


if __name__ == "__main__":
    main()
