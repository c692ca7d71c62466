"""Time of everything around the networks: the high-pass in scipy and in torch, reading, and finishing the output.

    python tools/benchmark_audio.py [--threads 2] [--repeats 9] [--json]

The fastest of several runs in milliseconds, on seeded noise: what else a shared machine does only adds. The high-pass is timed from
samples on the host to samples on the host, so a device's figures hold its transfers; a device is warmed up first. The last table is
one 3-minute stereo recording at 44.1 kHz and its output at 40 kHz.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from rvc_coreml.runtime.audio import SAMPLE_RATE, OutputBuffer, Samples, high_pass, high_pass_tensor, prepare, read_recording
from rvc_coreml.runtime.audio.decoding import decoded
from rvc_coreml.runtime.audio.resampling import INPUT_QUALITY, resampled

CLIPS = {"10 s": 10, "3 min": 180, "10 min": 600}
SONG_SECONDS, SONG_RATE, VOICE_RATE = 180, 44100, 40000
RMS_MIX_RATE = 0.25  # the classic interface's default


def noise(samples: int, channels: int = 1) -> Samples:
    values = np.random.default_rng(0).standard_normal((samples, channels), np.float32) * np.float32(0.1)
    return values[:, 0] if channels == 1 else values


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest run, after one that is not counted."""
    work()
    seconds = []
    for _repeat in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def filter_times(repeats: int) -> dict[str, dict[str, float]]:
    """Clip -> way -> milliseconds."""
    ways: dict[str, Callable[[Samples], object]] = {
        "scipy": high_pass,
        "torch cpu float64": lambda samples: high_pass(samples, "cpu"),
        "torch cpu float32": lambda samples: high_pass_tensor(torch.from_numpy(samples), torch.float32),
    }
    if torch.cuda.is_available():
        ways["torch cuda"] = lambda samples: high_pass(samples, "cuda")
    if torch.backends.mps.is_available():
        ways["torch mps"] = lambda samples: high_pass(samples, "mps")
    times: dict[str, dict[str, float]] = {}
    for clip, seconds in CLIPS.items():
        samples = noise(seconds * SAMPLE_RATE)
        times[clip] = {name: fastest(partial(way, samples), repeats) for name, way in ways.items()}
    return times


def song_times(repeats: int) -> dict[str, float]:
    """Step -> milliseconds."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "song.wav"
        soundfile.write(path, noise(SONG_SECONDS * SONG_RATE, 2), SONG_RATE)
        source, voice = noise(SONG_SECONDS * SAMPLE_RATE), noise(SONG_SECONDS * VOICE_RATE)
        mono = noise(SONG_SECONDS * SONG_RATE)

        def read() -> None:
            with read_recording(path):
                pass

        def decode() -> None:
            with decoded(path) as stream:
                for _block in stream.mono():
                    pass

        def finish(rms_mix_rate: float, resample_sr: int = 0, ending: str = "", device: str = "cpu") -> float:
            with OutputBuffer(VOICE_RATE) as output:
                output.append(torch.from_numpy(voice).to(device))
                start = time.perf_counter()
                output.finish(source, rms_mix_rate, resample_sr)
                if ending:
                    start = time.perf_counter()
                    output.write(Path(name) / f"out{ending}")
                return time.perf_counter() - start

        def finishing(**options: object) -> float:
            return 1000 * min([finish(**options) for _repeat in range(repeats + 1)][1:])  # pyright: ignore[reportArgumentType]

        steps = {
            "read, all of it": fastest(read, repeats),
            "  decode and mix down": fastest(decode, repeats),
            "  resample": fastest(lambda: list(resampled(iter([mono]), SONG_RATE, SAMPLE_RATE, INPUT_QUALITY)), repeats),
            "  peak and high-pass": fastest(lambda: prepare(source.copy()), repeats),
            "finish: peak": finishing(rms_mix_rate=1.0),
            "finish: loudness, peak": finishing(rms_mix_rate=RMS_MIX_RATE),
            "finish: loudness, 48 kHz, peak": finishing(rms_mix_rate=RMS_MIX_RATE, resample_sr=48000),
            "write wav": finishing(rms_mix_rate=1.0, ending=".wav"),
            "write flac": finishing(rms_mix_rate=1.0, ending=".flac"),
            "write mp3": finishing(rms_mix_rate=1.0, ending=".mp3"),
        }
        if torch.cuda.is_available():
            steps["finish on cuda: loudness, peak"] = finishing(rms_mix_rate=RMS_MIX_RATE, device="cuda")
        return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    filters, song = filter_times(arguments.repeats), song_times(arguments.repeats)
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "high_pass_ms": filters, "song_ms": song}, indent=2))
        return
    ways = list(next(iter(filters.values())))
    print(f"| high-pass, ms | {' | '.join(ways)} |")
    print(f"| --- |{' --- |' * len(ways)}")
    for clip, times in filters.items():
        print(f"| {clip} | {' | '.join(f'{times[way]:.1f}' for way in ways)} |")
    print("\n| 3-minute song | ms |\n| --- | --- |")
    for step, milliseconds in song.items():
        print(f"| {step.replace('  ', '- ')} | {milliseconds:.1f} |")


if __name__ == "__main__":
    main()
