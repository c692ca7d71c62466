"""A clip on the CPU: all the work that upstream's pipeline does against what this project leaves out, at equal output.

    python tools/benchmark_upstream.py [--seconds 2 30] [--runs 5] [--threads 2]

The baseline is made of this project's own modules and does what RVC-WebUI does: flow and decoder over the whole padded
segment, every layer at once, attention written out. Weights (full size, seeded), pads, pitch, noise and threads are equal;
the two take turns, and the audio is compared. Exits with 1 below the ratios that are asked for: 1.4 up to ten seconds, 1.5
beyond.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from benchmark_song import song
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime.config import OptimizationConfig
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.segments import HOP, PAD, SAMPLE_RATE
from seeded_checkpoints import write_hubert, write_voice
from torch_library import write_torch_library

WANTED = {"short": 1.4, "long": 1.5}  # times upstream's speed
LONG = 10.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 30.0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        voices = {"voice": write_voice(folder / "voice.pth")}
        library = write_torch_library(folder / "library", write_hubert(folder / "hubert_base.pt"), voices)
        configs = {"upstream": OptimizationConfig.upstream(), "ours": OptimizationConfig.for_cpu()}
        converters = {key: VoiceConverter(library, "voice", "torch", device="cpu", config=config) for key, config in configs.items()}
        for seconds in arguments.seconds:
            audio = song(seconds / 60)
            f0 = np.full((len(audio) + 2 * PAD) // HOP, 200.0)
            times: dict[str, list[float]] = {key: [] for key in converters}
            outputs = {}
            for converter in converters.values():
                converter.convert(audio[: 2 * SAMPLE_RATE], SAMPLE_RATE, f0=f0)  # warm-up
            for _ in range(arguments.runs):
                for key, converter in converters.items():
                    start = time.perf_counter()
                    outputs[key] = converter.convert(audio, SAMPLE_RATE, f0=f0)[0]
                    times[key].append(time.perf_counter() - start)
            medians = {key: statistics.median(values) for key, values in times.items()}
            ratio, wanted = medians["upstream"] / medians["ours"], WANTED["short" if seconds <= LONG else "long"]
            missed |= ratio < wanted
            closeness = compare(outputs["upstream"], outputs["ours"], frame=400).snr_db
            shown = ", ".join(f"{key} {value:.2f} s" for key, value in medians.items())
            print(f"{seconds:g} s, {arguments.threads} cores: {shown}, ratio {ratio:.2f} (asked {wanted}), {closeness:.1f} dB", flush=True)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
