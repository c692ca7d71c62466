"""43 s of joined speech through the packages' fixed windows against the torch pipeline's whole segments.

    python tools/measure_seams.py -m LIB --voice NAME [--seconds 43] [--json FILE] [--plot FILE.png]

Both get the same noise and the same pitch (found once by dio), and keep the voice's own loudness, so that the windows and the
packages' precision are all that differs. A seam is where two windows of the content encoder or the text encoder are joined, or
two segments of the clip; the flow and the decoder have their whole context and no seams of that kind. The error of a 10 ms
frame is the RMS of the difference; at a seam it is the mean from NEAR frames before to NEAR after, and is held against the
95th percentile of the same mean over all frames of the clip. Ends with code 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from rvc_coreml.golden_outputs.audio_metrics import log_mel_cosine
from rvc_coreml.golden_outputs.metrics import level_ratio, snr_db
from rvc_coreml.runtime.audio import recording_of, reflect_padded
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.files import atomic_path, write_json
from rvc_coreml.runtime.pitch import estimate_pitch
from rvc_coreml.runtime.segments import HOP, PAD, PAD_FRAMES, SAMPLE_RATE, Segment, plan_segments
from rvc_coreml.runtime.windows import plan_windows

CLIPS = Path(__file__).parent.parent / "golden_outputs" / "audio"
SECONDS = 43.0  # beyond the 41 s up to which a clip is one segment
NEAR = 5  # frames on either side of a seam
PERCENTILE = 95.0
LEAST_COSINE = 0.99
WINDOWED = {"content_encoder": 2, "text_encoder": 1}  # stages whose context is not exact, and 10 ms frames of each of theirs
FLOOR = 1e-12

Frames = NDArray[np.float64]


@dataclass(frozen=True)
class Seam:
    """A join at 10 ms frame `frame` of the output: its error (RMS of full scale), that error's rank, and the level in dB."""

    kind: str
    frame: int
    error: float
    percentile: float
    level_db: float


@dataclass(frozen=True)
class Found:
    """`error_95` is what no seam may exceed; the cosines are plain and with the reference's mean spectrum removed."""

    seconds: float
    snr_db: float
    level_db: float
    log_mel_cosine: float
    log_mel_cosine_mean_removed: float
    error_mean: float
    error_95: float
    seams: list[Seam]
    spent: dict[str, float]

    @property
    def worst(self) -> Seam:
        return max(self.seams, key=lambda seam: seam.error)

    @property
    def problems(self) -> list[str]:
        missed = [f"log-mel cosine {self.log_mel_cosine:.4f} is below {LEAST_COSINE}"] if self.log_mel_cosine < LEAST_COSINE else []
        return missed + [
            f"the {seam.kind} seam at {seam.frame / 100:.2f} s has error {seam.error:.2e}, above {self.error_95:.2e}, the clip's"
            f" {PERCENTILE:g}th percentile"
            for seam in self.seams
            if seam.error > self.error_95
        ]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "problems": self.problems}


def joined_speech(seconds: float = SECONDS) -> NDArray[np.float32]:
    """The LibriVox clips one after the other, over again as often as it takes, at 16 kHz."""
    clips = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in sorted(CLIPS.glob("*.wav"))])
    return np.resize(clips, round(seconds * SAMPLE_RATE)).astype(np.float32)


def seams_of(segments: Sequence[Segment], converter: VoiceConverter) -> list[tuple[str, int]]:
    """(kind, frame of the output) of every join inside what is kept, in order."""
    seams, begun = [], 0
    for index, segment in enumerate(segments):
        if index:
            seams.append(("segment", begun))
        samples = segment.stop - segment.start
        frames = converter.synthesizer.frames(samples)
        kept = frames - 2 * PAD_FRAMES if segment.frames is None else segment.frames
        for stage, unit in WINDOWED.items():
            entry = converter.synthesizer.entries[stage]
            total = frames if unit == 1 else converter.synthesizer.content_host.config.frames(samples)
            for window in plan_windows(0, total, entry.window, entry.context)[:-1]:
                place = window.keep_to * unit - PAD_FRAMES
                if 0 < place < kept:
                    seams.append((stage, begun + place))
        begun += kept
    return sorted(seams, key=lambda seam: seam[1])


def frame_rms(samples: NDArray[np.floating], length: int) -> Frames:
    """RMS of every whole frame of `length` samples."""
    whole = samples[: len(samples) // length * length].astype(np.float64)
    return np.sqrt(np.mean(whole.reshape(-1, length) ** 2, axis=1))


def near_mean(values: Frames) -> Frames:
    """Mean over NEAR frames on either side of each, over fewer at the ends."""
    sums = np.convolve(values, np.ones(2 * NEAR + 1), mode="same")
    return sums / np.convolve(np.ones(len(values)), np.ones(2 * NEAR + 1), mode="same")


def compare_clips(reference: NDArray[np.floating], actual: NDArray[np.floating], rate: int, places: Sequence[tuple[str, int]]) -> Found:
    """Everything that is recorded of two clips (N,) at `rate` Hz, `places` being their seams."""
    length = rate // 100
    error = near_mean(frame_rms(actual.astype(np.float64) - reference, length))
    seams = []
    for kind, frame in places:
        around = slice(max(0, frame - NEAR) * length, (frame + NEAR) * length)
        level = 20 * np.log10(max(FLOOR, level_ratio(reference[around], actual[around])))
        rank = 100 * float(np.mean(error < error[frame]))
        seams.append(Seam(kind, frame, float(error[frame]), rank, float(level)))
    return Found(
        seconds=len(reference) / rate,
        snr_db=snr_db(reference, actual),
        level_db=float(20 * np.log10(level_ratio(reference, actual))),
        log_mel_cosine=log_mel_cosine(reference, actual, rate),
        log_mel_cosine_mean_removed=log_mel_cosine(reference, actual, rate, mean_removed=True),
        error_mean=float(error.mean()),
        error_95=float(np.percentile(error, PERCENTILE)),
        seams=seams,
        spent={},
    )


def measure(library: Path, voice: str, seconds: float = SECONDS, backend: str = "reference") -> tuple[Found, dict[str, Any]]:
    """What was found, and the clips behind it: `reference`, `actual` (N,) and `rate` in Hz."""
    audio = joined_speech(seconds)
    with recording_of(audio, SAMPLE_RATE) as recording:
        segments = plan_segments(recording.samples)
        with reflect_padded(recording.samples, PAD) as padded:
            f0 = estimate_pitch(np.asarray(padded), "dio")[: len(padded) // HOP]
    outputs, spent, rate, places = {}, {}, 0, []
    for name in ("torch", backend):
        begun = time.perf_counter()
        converter = VoiceConverter(library, voice, name, device="cpu" if name == "torch" else None)
        outputs[name], rate = converter.convert(audio, SAMPLE_RATE, f0=f0, seed=1, rms_mix_rate=1.0)
        spent[name] = round(time.perf_counter() - begun, 1)
        if not all(ran.startswith(name) for ran in converter.executed_by.values()):
            raise RuntimeError(f"{name} did not run every stage: {converter.executed_by}")
        places = seams_of(segments, converter)
    found = compare_clips(outputs["torch"], outputs[backend], rate, places)
    found.spent.update(spent)
    return found, {"reference": outputs["torch"], "actual": outputs[backend], "rate": rate}


def draw(found: Found, clips: dict[str, Any], path: Path) -> None:
    """Error along the clip with its seams, above the reference's level. Needs matplotlib."""
    from matplotlib.figure import Figure

    rate = clips["rate"]
    error = near_mean(frame_rms(clips["actual"].astype(np.float64) - clips["reference"], rate // 100))
    level = near_mean(frame_rms(clips["reference"], rate // 100))
    times = np.arange(len(error)) / 100
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for values, colour, label in ((level, "#bbbbbb", "level of the torch pipeline"), (error, "#2c6fbb", "error through the windows")):
        axes.plot(times, 20 * np.log10(np.maximum(values, FLOOR)), linewidth=0.8, color=colour, label=label)
    limit = 20 * np.log10(max(found.error_95, FLOOR))
    axes.axhline(limit, color="#c0392b", linewidth=0.8, linestyle="--", label=f"{PERCENTILE:g}th percentile of the error")
    for kind, colour in (("content_encoder", "#e67e22"), ("text_encoder", "#7fb77e"), ("segment", "#8e44ad")):
        chosen = [seam for seam in found.seams if seam.kind == kind]
        for index, seam in enumerate(chosen):
            label = f"{kind.replace('_', ' ')} seam" if index == 0 else None
            axes.axvline(seam.frame / 100, color=colour, linewidth=0.8, label=label)
            axes.plot(seam.frame / 100, 20 * np.log10(max(seam.error, FLOOR)), "o", color=colour, markersize=4)
    axes.set_xlabel("seconds")
    axes.set_ylabel("dB of full scale, mean over 110 ms")
    axes.set_title(
        f"SNR {found.snr_db:.1f} dB, log-mel cosine {found.log_mel_cosine:.5f} (mean removed {found.log_mel_cosine_mean_removed:.4f})",
        fontsize=10,
    )
    axes.set_xlim(0, times[-1])
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=7, ncols=3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--library", type=Path, required=True)
    parser.add_argument("--voice", required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--backend", choices=["reference", "coreml"], default="reference")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found, clips = measure(arguments.library, arguments.voice, arguments.seconds, arguments.backend)
    if arguments.json:
        write_json(arguments.json, found.as_dict())
    if arguments.plot:
        draw(found, clips, arguments.plot)
    print(
        f"{found.seconds:.1f} s: SNR {found.snr_db:.1f} dB, level {found.level_db:+.3f} dB, log-mel cosine {found.log_mel_cosine:.5f}"
        f" (mean removed {found.log_mel_cosine_mean_removed:.5f}); frame error {found.error_mean:.2e}, {PERCENTILE:g}th percentile"
        f" {found.error_95:.2e}; seconds {found.spent}"
    )
    for seam in found.seams:
        print(
            f"{seam.kind:16} {seam.frame / 100:7.2f} s  error {seam.error:.2e} (above {seam.percentile:4.1f}% of the clip) "
            f" level {seam.level_db:+.3f} dB"
        )
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
