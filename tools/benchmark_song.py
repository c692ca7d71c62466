"""A three-minute song through the torch backend of a device: seconds from samples to samples, by stage.

    python tools/benchmark_song.py --device cuda [--json FILE]

Full-size seeded networks (v2 40k, HuBERT, RMVPE), audio made of the LibriVox clips; loading and one warm-up conversion are
not counted. Prints medians, each stage's floating-point work and what share of the device's measured peak that is, and
the SNR of half precision against float32 on the same device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime.backends.torch_backend import TorchBackend
from rvc_coreml.runtime.config import OptimizationConfig
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.devices import synchronize
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.profiling import Profile
from rvc_coreml.runtime.retrieval import FeatureIndex
from rvc_coreml.runtime.segments import HOP, PAD, SAMPLE_RATE
from seeded_checkpoints import write_hubert, write_rmvpe, write_voice
from torch_library import write_torch_library

CLIPS = Path(__file__).parent.parent / "golden_outputs" / "audio"
GFLOP_PER_SECOND = {"content_encoder": 14.0, "pitch": 7.0, "decoder": 89.0, "text_encoder": 2.0, "flow": 0.9}  # of audio


def song(minutes: float) -> NDArray[np.float32]:
    clips = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in sorted(CLIPS.glob("*.wav"))])
    return np.resize(clips, round(minutes * 60 * SAMPLE_RATE)).astype(np.float32)


def clustered_index(vectors: int) -> FeatureIndex:
    """Vectors around as many random centres as RVC's training makes cells."""
    generator = np.random.default_rng(0)
    cells = min(int(16 * np.sqrt(vectors)), vectors // 39)
    centroids = generator.standard_normal((cells, 768), dtype=np.float32)
    owners = np.sort(generator.integers(0, cells, vectors))
    values = centroids[owners] + 0.3 * generator.standard_normal((vectors, 768), dtype=np.float32)
    offsets = np.searchsorted(owners, np.arange(cells + 1))
    arrays = (centroids, values, np.arange(vectors, dtype=np.int64), offsets.astype(np.int64))
    return FeatureIndex(*(torch.from_numpy(array) for array in arrays), nprobe=1)


def peak_rate(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product."""
    size = 8192 if device != "cpu" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    for _ in range(3):
        torch.mm(a, a)
    synchronize(device)
    start, runs = time.perf_counter(), 20 if device != "cpu" else 2
    for _ in range(runs):
        torch.mm(a, a)
    synchronize(device)
    return 2 * size**3 * runs / (time.perf_counter() - start) / 1e12


def timed(converter: VoiceConverter, audio: NDArray[np.float32], runs: int, index_rate: float) -> list[float]:
    """Seconds of each run after a warm-up."""
    device, seconds = str(converter.synthesizer.stages["decoder"].device), []
    for _ in range(runs + 1):
        synchronize(device)
        start = time.perf_counter()
        converter.convert(audio, SAMPLE_RATE, f0_method="rmvpe", index_rate=index_rate)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def measure(
    library: Library, config: OptimizationConfig, audio: NDArray[np.float32], device: str, runs: int, index_rate: float
) -> Measured:
    """Medians of whole conversions with nothing measured inside, then the stages of as many conversions measured."""
    backend = TorchBackend(device, config)
    converter = VoiceConverter(library, "voice", backend, say, config=config)
    seconds = timed(converter, audio, runs, index_rate)
    profile = Profile(device)
    converter = VoiceConverter(library, "voice", backend, say, config=config, profile=profile)
    timed(converter, audio, 0, index_rate)
    profile.take()
    timed(converter, audio, 2, index_rate)
    stages = {stage: value / 3 for stage, value in profile.take().items()}
    return Measured(seconds, stages)


def same_pitch(library: Library, config: OptimizationConfig, device: str) -> NDArray[np.float32]:
    """45 s with a given contour: what a precision changes when the pitch is the same, whose phase would drift apart."""
    audio = song(0.75)
    frames = np.arange((len(audio) + 2 * PAD) // HOP)
    contour = np.where(frames // 50 % 4 == 3, 0.0, 160 + 60 * np.sin(frames / 150))
    converter = VoiceConverter(library, "voice", TorchBackend(device, config), say, config=config)
    return converter.convert(audio, SAMPLE_RATE, f0=contour, index_rate=0.0, rms_mix_rate=1.0)[0]


@dataclass(frozen=True)
class Measured:
    """Seconds of whole runs, and seconds by stage."""

    seconds: list[float]
    stages: dict[str, float]


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--index", type=int, default=200_000, help="vectors of the feature index")
    parser.add_argument("--compile", action="store_true", help="the decoder through torch.compile")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    audio, device = song(arguments.minutes), arguments.device
    report: dict[str, Any] = {"device": device, "torch": torch.__version__, "minutes": arguments.minutes, "index": arguments.index}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("writing seeded checkpoints and their library")
        checkpoints = (
            write_hubert(folder / "hubert_base.pt"),
            {"voice": write_voice(folder / "voice.pth")},
            [write_rmvpe(folder / "rmvpe.pt")],
        )
        library = write_torch_library(folder / "library", *checkpoints, clustered_index(arguments.index), goldens=True)
        samples: dict[str, NDArray[np.float32]] = {}
        for precision in ("fp16", "fp32") if device != "cpu" else ("fp32",):
            config = replace(OptimizationConfig.for_device(device), precision=precision, compile=arguments.compile)
            samples[precision] = same_pitch(library, config, device)
            peak = peak_rate(device, torch.float16 if precision == "fp16" else torch.float32)
            for index_rate in (0.0, 0.75):
                found = measure(library, config, audio, device, arguments.runs, index_rate)
                what = f"{precision}, {'with the index' if index_rate else 'without an index'}"
                say(f"{what}: median {statistics.median(found.seconds):.3f} s of {[round(value, 3) for value in found.seconds]}")
                for stage, value in found.stages.items():
                    work = GFLOP_PER_SECOND.get(stage.rpartition("/")[2], 0.0) * arguments.minutes * 60 / 1e3
                    say(f"  {stage:20} {value:7.4f} s  {work:6.2f} TFLOP  {work / value / peak if value else 0:6.1%} of {peak:.0f} TFLOP/s")
                report[what] = {"seconds": found.seconds, "stages": found.stages, "peak_tflops": peak}
        if len(samples) == 2:
            report["snr_db"] = compare(samples["fp32"], samples["fp16"], frame=400).snr_db
            say(f"fp16 against fp32 on 45 s with the same pitch: {report['snr_db']:.1f} dB")
            again = same_pitch(library, replace(OptimizationConfig.for_device(device), precision="fp32"), device)
            say(f"fp32 against itself: {compare(samples['fp32'], again, frame=400).snr_db:.1f} dB")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
