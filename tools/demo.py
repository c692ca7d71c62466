"""`make demo`: a LibriVox sentence in the voice that comes with rvc-coreml, with nothing to download.

Takes the commands that a user would: writes the embedded voice as files, converts them to packages, converts the sentence through
the packages (Core ML on a Mac, the reference executor elsewhere) and through PyTorch, compares the two, validates the library, and
leaves a wav, a picture and a report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from rvc_coreml.golden_outputs.metrics import Comparison, compare
from rvc_coreml.models.embedded import Embedded, read_embedded
from rvc_coreml.runtime.backends.coreml_backend import coreml_available
from rvc_coreml.runtime.pitch import estimate_pitch
from spectrogram import draw_spectrograms
from train_embedded.settings import MEDIAN_METHOD, median_pitch, transposition

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "golden_outputs" / "audio" / "librivox_austen_0870.wav"  # 7 s
EXAMPLES = ROOT / "docs" / "embedded"  # there once the voice has been trained and evaluated
CONTENT_WINDOWS, TEXT_ENCODER_WINDOWS = "464", "text_encoder=928"  # 9.3 s, which hold the clip and a second on either side
METHOD = "swiftf0"
SEEDED = "The weights are seeded random numbers, not a trained voice: formats, sizes and speed are real, the sound is noise."
YOUR_OWN = (
    "A voice of your own: rvc-coreml download hubert -o weights && rvc-coreml convert hubert weights/hubert_base.pt -o library"
    " && rvc-coreml convert voice VOICE.pth -o library"
)


@dataclass
class Result:
    """What a run of the demo has found."""

    embedded: Embedded
    packages: str
    pitch: int
    runs: dict[str, dict[str, Any]]
    closeness: Comparison
    checks: list[dict[str, Any]]
    seconds: float = 0.0
    sounds: list[tuple[str, NDArray[np.float32], int]] = field(default_factory=list)

    @property
    def heard(self) -> str:
        """One line for who listens."""
        if self.embedded.seeded:
            return f"You are listening to noise. {SEEDED}"
        moved = f"moved by {self.pitch:+d} semitones" if self.pitch else "at the reader's own pitch"
        return (
            f"You are listening to a sentence of a LibriVox reader in the voice {self.embedded.name!r}, {moved}:"
            " encoder and voice are small ones, trained by this project on synthetic speech."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where everything is written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    result = demonstrate(folder, CLIP)
    converted, page = folder / f"converted_{result.packages}.wav", folder / "validation.html"
    say(f"done in {result.seconds:.0f} s:")
    for path in (converted, folder / "spectrograms.png", folder / "report.md", page):
        say(f"  {path}")
    if not all(check["passed"] for check in result.checks):
        raise SystemExit("some checks failed: the report names them, and infer ran what Core ML got wrong through PyTorch")
    say(result.heard)
    say(YOUR_OWN)


def demonstrate(folder: Path, clip: Path) -> Result:
    """Everything but the last words."""
    start = time.perf_counter()
    library, embedded = folder / "library", read_embedded()

    say("1/5  writing the voice that comes with rvc-coreml as files of the usual formats")
    files = json.loads(rvc("embedded", folder / "embedded", "--replace", "--json"))["files"]

    say("2/5  converting them to Core ML packages")
    rvc("convert", "hubert", files["hubert"], "-o", library, "--replace", "--windows", CONTENT_WINDOWS)
    rvc("convert", "voice", files["voice"], "-o", library, "--replace", "--windows", TEXT_ENCODER_WINDOWS)
    # Half a thousandth off in pitch, which nobody hears, is half a cycle off after ten seconds, which the comparison below would count.
    rvc("convert", "pitch", files["pitch"], "-o", library, "--replace", "--precision", "fp32")

    packages = "coreml" if coreml_available() else "reference"
    say(f"3/5  converting a LibriVox sentence through the packages ({packages}) and through PyTorch")
    source, source_rate = read(clip)
    contour = estimate_pitch(source, MEDIAN_METHOD)
    pitch = transposition(contour, embedded.median_pitch)
    median = median_pitch(contour) or 0
    say(f"     --pitch {pitch}: the reader's median pitch is {median:.0f} Hz, the voice's {embedded.median_pitch:.0f} Hz")
    runs = {backend: infer(clip, folder / f"converted_{backend}.wav", library, embedded, pitch, backend) for backend in (packages, "torch")}
    through_packages, rate = read(folder / f"converted_{packages}.wav")
    through_torch, _rate = read(folder / "converted_torch.wav")
    closeness = compare(through_torch, through_packages, frame=rate // 100)
    say(f"     packages against PyTorch: {closeness.snr_db:.1f} dB SNR, level {closeness.level:.3f}")
    say("     (the clip fits one window of the content encoder here; what the Neural Engine's windows of 5.1 s change: docs/windows.md)")

    say(f"4/5  validating the library ({packages} against PyTorch)")
    checks = validate(library, packages, folder / "validation.html")

    say("5/5  drawing source, conversion and the voice's own speech")
    result = Result(embedded, packages, pitch, runs, closeness, checks)
    result.sounds = [
        ("source: LibriVox, Sense and Sensibility", source, source_rate),
        (f"conversion: {embedded.name}", through_packages, rate),
        *([] if embedded.seeded else target_speech(embedded.name)),
    ]
    draw_spectrograms(folder / "spectrograms.png", result.sounds)
    result.seconds = time.perf_counter() - start
    (folder / "report.md").write_text(make_report(result, clip), encoding="utf-8")
    return result


def target_speech(name: str) -> list[tuple[str, NDArray[np.float32], int]]:
    """The example of the voice's own speech, where the checkout has it."""
    return [(f"{name}'s own speech, another sentence", *read(path)) for path in sorted(EXAMPLES.glob("target_*.wav"))[:1]]


def read(path: Path) -> tuple[NDArray[np.float32], int]:
    samples, rate = soundfile.read(path, dtype="float32")
    return np.asarray(samples, np.float32), rate


def say(text: str) -> None:
    print(text, flush=True)


def rvc(*arguments: object, accepted: tuple[int, ...] = (0,)) -> str:
    """Run the command line as a user would; its standard output. Stops the demo on other exit codes."""
    command = [sys.executable, "-m", "rvc_coreml", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in accepted:
        raise SystemExit(f"'{' '.join(command)}' failed with exit code {done.returncode}\n{done.stdout}")
    if "--json" not in arguments:
        say("     " + done.stdout.strip().replace("\n", "\n     "))
    return done.stdout


def infer(clip: Path, output: Path, library: Path, embedded: Embedded, pitch: int, backend: str) -> dict[str, Any]:
    asked = ["--voice", embedded.name, "--pitch", pitch, "--f0-method", METHOD, "--index-rate", embedded.index_rate]
    result = json.loads(rvc("infer", clip, output, "-m", library, *asked, "--backend", backend, "--json"))
    ran = ", ".join(sorted(set(result["executed_by"].values())))
    say(
        f"     {backend}: real-time factor {result['real_time_factor']:.2f}, peak memory {result['peak_memory_bytes'] / 1e9:.1f} GB,"
        f" run by {ran}"
    )
    return result


def validate(library: Path, backend: str, page: Path) -> list[dict[str, Any]]:
    result = json.loads(rvc("validate", library, "--backend", backend, "--json", "--html", page, accepted=(0, 1)))
    worst = min(check["snr_db"] for check in result["checks"] if check.get("snr_db") is not None)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in result["counts"].items() if count)
    say(f"     {len(result['checks'])} checks: {counts}; the least SNR is {worst:.1f} dB")
    lesser = sorted({f"{check['stage']}, {check['case']}" for check in result["checks"] if check["verdict"] == "degraded"})
    if lesser:
        say(f"     degraded: {'; '.join(lesser)}")
    return result["checks"]


def make_report(result: Result, clip: Path) -> str:
    drawn = " and ".join([", ".join(title for title, _samples, _rate in result.sounds[:-1]), result.sounds[-1][0]])
    lines = [
        "# rvc-coreml demo",
        "",
        f"**{result.heard}**",
        "",
        f"Input: `{clip.name}` (LibriVox, public domain). Output: `converted_{result.packages}.wav`."
        f" The whole demo took {result.seconds:.0f} s.",
        "",
        f"![spectrograms of {drawn}](spectrograms.png)",
        "",
        f"The packages' output agrees with PyTorch's at **{result.closeness.snr_db:.1f} dB** SNR (mean removed),"
        f" level {result.closeness.level:.4f}.",
        "",
        "| backend | ran on | real-time factor | peak memory | fallbacks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for backend, run in result.runs.items():
        ran = ", ".join(sorted(set(run["executed_by"].values())))
        memory = f"{run['peak_memory_bytes'] / 1e9:.1f} GB"
        lines.append(f"| {backend} | {ran} | {run['real_time_factor']:.2f} | {memory} | {'; '.join(run['fallbacks']) or 'none'} |")
    lines += [
        "",
        "Every output of every stage against its golden output; `validation.html` draws and plays them.",
        "",
        "| component | stage | case | output | ran on | SNR dB | worst-frame cosine | level | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(check_row, result.checks),
        "",
        f"{YOUR_OWN}.",
    ]
    return "\n".join(lines) + "\n"


def check_row(check: dict[str, Any]) -> str:
    named = f"| {check['component']} | {check['stage']} ({check['precision']}) | {check['case']} | {check['output']} | {check['ran']}"
    if "problem" in check:
        return f"{named} |  |  |  | {check['verdict']}: {check['problem']} |"
    snr = "exact" if check["exact"] else "none" if check["snr_db"] is None else f"{check['snr_db']:.1f}"
    why = f": {'; '.join(check['decided_by'])}" if check["decided_by"] else ""
    return f"{named} | {snr} | {check['worst_cosine']:.6f} | {check['level']:.4f} | {check['verdict']}{why} |"


if __name__ == "__main__":
    main()
