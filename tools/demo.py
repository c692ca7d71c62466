"""`make demo`: the whole chain on an embedded default, with nothing to download.

Writes full-size HuBERT and v2 40k voice checkpoints (seeded weights), converts them, converts a LibriVox sentence
through the packages (Core ML on a Mac, the reference executor elsewhere) and through PyTorch, compares the two,
validates the library, and leaves a wav, a picture and a report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime.backends.coreml_backend import coreml_available
from seeded_checkpoints import write_hubert, write_voice
from spectrogram import draw_spectrograms

CLIP = Path(__file__).parent.parent / "golden_outputs" / "audio" / "librivox_austen_0880.wav"  # 3 s, which one window holds
VOICE = "seeded_v2_40k"
WARNING = "The weights are seeded random numbers, not a trained voice: formats, sizes and speed are real, the sound is noise."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where everything is written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    library = folder / "library"

    say("1/5  writing seeded checkpoints in their real file formats")
    hubert = write_hubert(folder / "hubert_base.pt")
    voice = write_voice(folder / f"{VOICE}.pth")

    say("2/5  converting them to Core ML packages")
    rvc("convert", "hubert", hubert, "-o", library, "--replace", "--windows", "255")
    rvc("convert", "voice", voice, "-o", library, "--replace", "--windows", "text_encoder=928")

    packages = "coreml" if coreml_available() else "reference"
    say(f"3/5  converting a LibriVox sentence through the packages ({packages}) and through PyTorch")
    runs = {}
    for backend in (packages, "torch"):
        output = folder / f"converted_{backend}.wav"
        runs[backend] = infer(output, library, backend)
    through_packages, rate = read(folder / f"converted_{packages}.wav")
    through_torch, _rate = read(folder / "converted_torch.wav")
    closeness = compare(through_torch, through_packages, frame=rate // 100)
    say(f"     packages against PyTorch: {closeness.snr_db:.1f} dB SNR, level {closeness.level:.3f}")
    say("     (the clip fits one window of the content encoder, 5.1 s; what longer ones lose: docs/windows.md)")

    say(f"4/5  validating the library ({packages} against PyTorch)")
    page = folder / "validation.html"
    checks = validate(library, packages, page)

    say("5/5  drawing input and output")
    source, source_rate = read(CLIP)
    picture = folder / "spectrograms.png"
    sounds = [("input: LibriVox, Sense and Sensibility", source, source_rate), (f"output: {VOICE}", through_packages, rate)]
    draw_spectrograms(picture, sounds)

    seconds = time.perf_counter() - start
    report = folder / "report.md"
    report.write_text(make_report(packages, runs, closeness.snr_db, closeness.level, checks, seconds), encoding="utf-8")
    say(f"done in {seconds:.0f} s. {WARNING}")
    for path in (folder / f"converted_{packages}.wav", picture, report, page):
        say(f"  {path}")
    if not all(check["passed"] for check in checks):
        raise SystemExit("some checks failed: the report names them, and infer ran what Core ML got wrong through PyTorch")
    say("A voice of your own: rvc-coreml convert voice VOICE.pth -o library (see the README).")


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


def infer(output: Path, library: Path, backend: str) -> dict[str, Any]:
    result = json.loads(rvc("infer", CLIP, output, "-m", library, "--voice", VOICE, "--backend", backend, "--json"))
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
        say(f"     degraded: {'; '.join(lesser)} (a seeded content encoder's features are about three times as large as a real one's)")
    return result["checks"]


def make_report(
    packages: str, runs: dict[str, dict[str, Any]], snr: float, level: float, checks: list[dict[str, Any]], seconds: float
) -> str:
    lines = [
        "# rvc-coreml demo",
        "",
        f"**{WARNING}**",
        "",
        f"Input: `{CLIP.name}` (LibriVox, public domain). Output: `converted_{packages}.wav`. The whole demo took {seconds:.0f} s.",
        "",
        "![spectrograms of input and output](spectrograms.png)",
        "",
        f"The packages' output agrees with PyTorch's at **{snr:.1f} dB** SNR (mean removed), level {level:.4f}.",
        "",
        "| backend | ran on | real-time factor | peak memory | fallbacks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for backend, run in runs.items():
        ran = ", ".join(sorted(set(run["executed_by"].values())))
        memory = f"{run['peak_memory_bytes'] / 1e9:.1f} GB"
        lines.append(f"| {backend} | {ran} | {run['real_time_factor']:.2f} | {memory} | {'; '.join(run['fallbacks']) or 'none'} |")
    lines += [
        "",
        "Every output of every stage against its golden output; `validation.html` draws and plays them.",
        "",
        "| component | stage | case | output | ran on | SNR dB | worst-frame cosine | level | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for check in checks:
        named = f"| {check['component']} | {check['stage']} ({check['precision']}) | {check['case']} | {check['output']} | {check['ran']}"
        if "problem" in check:
            lines.append(f"{named} |  |  |  | {check['verdict']}: {check['problem']} |")
            continue
        snr_text = "exact" if check["exact"] else "none" if check["snr_db"] is None else f"{check['snr_db']:.1f}"
        why = f": {'; '.join(check['decided_by'])}" if check["decided_by"] else ""
        lines.append(f"{named} | {snr_text} | {check['worst_cosine']:.6f} | {check['level']:.4f} | {check['verdict']}{why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
