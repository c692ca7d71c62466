"""Hours of audio through `rvc-coreml infer`: memory above the loaded models, an interrupt part-way, and the second run that goes on.

    python tools/measure_long_file.py [--minutes 180] [-m LIB --voice NAME] [--f0-method dio] [--json FILE]

A narrow seeded voice and content encoder stand in for real ones unless a library is named: the audio, and with it what is held
of it, has its real size. A folder of two files, ten seconds and the long one, is converted by the command itself with its
progress bar on a pseudo-terminal. The first run is interrupted by SIGINT while it works on the long file; the second one is
measured. Resident memory counts the pages of mapped temporary files too, although the system may take those back.
Ends with code 1 where memory passes the limit or the interrupt leaves anything behind. Not for Windows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.batch import STATE
from rvc_coreml.runtime.files import write_json
from rvc_coreml.runtime.segments import CENTER, QUERY, SAMPLE_RATE
from torch_library import write_torch_library

ROOT = Path(__file__).parent.parent
CLIPS = ROOT / "golden_outputs" / "audio"
LIMIT = 2.5e9  # bytes above the loaded models
SHORT_SECONDS = 10
INTERVAL = 0.1  # seconds between samples of the resident memory
LOST_SECONDS = 0.02  # at most, at the end of every segment: upstream's way, and the default
INTERRUPTED = 130  # the command's exit code
SHORT, LONG = "a_short.wav", "b_long.wav"  # converted in this order
_SHOWN_PERCENT = re.compile(rb"(\d+)%")
_LOAD = (
    "import sys, psutil, torch; torch.set_num_threads(1)\n"
    "from rvc_coreml.runtime.converter import VoiceConverter\n"
    "converter = VoiceConverter(sys.argv[1], sys.argv[2], 'torch', device='cpu')\n"
    "print(psutil.Process().memory_info().rss)"
)


@dataclass
class Run:
    """One run of the command. `resident` is (seconds since the start, bytes) throughout; `percent` what its bar showed last."""

    code: int
    seconds: float
    resident: list[tuple[float, int]] = field(repr=False)
    percent: int
    printed: str = field(repr=False)
    said: str = field(repr=False)


@dataclass(frozen=True)
class Measured:
    """What was found. Bytes and seconds; `resident` is the memory at eleven moments of the second run, evenly spread."""

    minutes: float
    loaded: int
    peak: int
    above: int
    seconds: float
    real_time_factor: float
    interrupted_after_seconds: float
    interrupted_at_percent: int
    resident: list[int]
    problems: list[str]


def narrow_library(folder: Path) -> tuple[Path, str]:
    """A library for the torch backend whose networks are those of the tests, and its voice's name."""
    sys.path.append(str(ROOT / "tests"))
    from support.checkpoints import SMALL_HUBERT, write_small_hubert, write_voice  # pyright: ignore[reportMissingImports]

    sizes: dict[str, Any] = {"hidden": 768, "heads": 12, "feed_forward": 32, "layers": 1, "position_groups": 16, "projection": 256}
    encoder = write_small_hubert(folder / "hubert", config=type(SMALL_HUBERT)(**{**asdict(SMALL_HUBERT), **sizes}))
    write_torch_library(folder / "library", encoder, {"narrow": write_voice(folder / "narrow.pth")})
    return folder / "library", "narrow"


def write_recording(path: Path, seconds: float) -> None:
    """16 kHz mono int16 of the LibriVox clips over and over, a little louder or softer each time; written as it is made."""
    clips = [soundfile.read(clip, dtype="float32")[0] for clip in sorted(CLIPS.glob("*.wav"))]
    levels = np.random.default_rng(0)
    left = round(seconds * SAMPLE_RATE)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        while left:
            for clip in clips:
                part = clip[:left] * levels.uniform(0.3, 1.0)
                file.write(part)
                left -= len(part)


def loaded_memory(library: Path, voice: str) -> int:
    """Bytes resident in a process that has loaded the voice and converted nothing."""
    found = subprocess.run([sys.executable, "-c", _LOAD, str(library), voice], check=True, capture_output=True, text=True)
    return int(found.stdout)


def infer(arguments: Sequence[object], temporary: Path, interrupt_when: Path | None = None, after: float = 0.0) -> Run:
    """The command with its bar on a pseudo-terminal; SIGINT comes `after` seconds of `interrupt_when` existing."""
    environment = {**os.environ, "TMPDIR": str(temporary), "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "rvc_coreml", "infer", *map(str, arguments), "--json"]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background; the command would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    ours, theirs = pty.openpty()
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=theirs, stdin=subprocess.DEVNULL, env=environment, cwd=temporary)
        os.close(theirs)
        shown: list[bytes] = []
        reader = threading.Thread(target=lambda: shown.extend(_lines_of(ours)), daemon=True)
        reader.start()
        resident, due = [], None
        try:
            while process.poll() is None:
                now = time.perf_counter() - begun
                with contextlib.suppress(psutil.Error):
                    resident.append((now, psutil.Process(process.pid).memory_info().rss))
                if interrupt_when is not None and due is None and interrupt_when.exists():
                    due = now + after
                if due is not None and now >= due:
                    process.send_signal(signal.SIGINT)
                    interrupt_when = due = None
                time.sleep(INTERVAL)
        finally:
            process.kill()
        seconds = time.perf_counter() - begun
        reader.join(5)
        os.close(ours)
        output.seek(0)
        printed = output.read().decode()
    said = b"".join(shown)
    percents = _SHOWN_PERCENT.findall(said)
    return Run(process.returncode, seconds, resident, int(percents[-1]) if percents else -1, printed, said.decode(errors="replace"))


def _lines_of(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # Linux's end of a pseudo-terminal
            return
        if not data:
            return
        yield data


def left_behind(output: Path, temporary: Path, finished: set[str]) -> list[str]:
    """Files that an interrupted run ought not to have left, or ought to have."""
    names = {item.name for item in output.iterdir()} if output.exists() else set()
    problems = [f"{name} was left in the output folder" for name in sorted(names - finished - {STATE})]
    problems += [f"{name} is missing from the output folder" for name in sorted(finished - names)]
    return problems + [f"{item.name} was left in the temporary folder" for item in temporary.iterdir()]


def measure(folder: Path, library: Path, voice: str, minutes: float, f0_method: str = "dio", after: float = 10.0) -> Measured:
    """Both runs in a folder, which needs 1.1 GB of disk for every hour at 40 kHz and twice that while it works."""
    source, output, temporary = folder / "in", folder / "out", folder / "tmp"
    for path in (source, temporary):
        path.mkdir()
    write_recording(source / SHORT, SHORT_SECONDS)
    write_recording(source / LONG, minutes * 60)
    arguments = [source, output, "-m", library, "--voice", voice, "--backend", "torch", "--device", "cpu", "--threads", 1]
    arguments += ["--f0-method", f0_method]
    loaded = loaded_memory(library, voice)
    first = infer(arguments, temporary, output / SHORT, after)
    problems = left_behind(output, temporary, {SHORT})
    if (output / LONG).exists():
        raise UsageError(f"the long file was done before the interrupt, {after:g} s after the short one: choose fewer seconds")
    if first.code != INTERRUPTED:
        problems.append(f"the interrupted command ended with code {first.code}, not {INTERRUPTED}: {first.said[-300:]}")
    short_before = (output / SHORT).stat() if (output / SHORT).exists() else None
    second = infer(arguments, temporary)
    if second.code:
        raise UsageError(f"the second run ended with code {second.code}: {second.said[-300:]}")
    report = json.loads(second.printed)
    statuses = {Path(item["output"]).name: item["status"] for item in report["files"]}
    if (
        statuses != {SHORT: "skipped", LONG: "converted"}
        or short_before is None
        or (output / SHORT).stat().st_mtime_ns != short_before.st_mtime_ns
    ):
        problems.append(f"the second run did not go on from the first: {statuses}")
    problems += [problem.replace("was left", "remained") for problem in left_behind(output, temporary, {SHORT, LONG})]
    length = soundfile.info(output / LONG).duration
    lost = minutes * 60 - length
    if not 0 <= lost <= LOST_SECONDS * (minutes * 60 * SAMPLE_RATE / (CENTER - QUERY) + 1):
        problems.append(f"the long output lasts {length:.2f} s instead of {minutes * 60:.2f} s")
    if second.percent < 0:
        problems.append("no progress was shown on the terminal")
    peak = max(int(report["peak_memory_bytes"]), *(size for _time, size in second.resident))
    if peak - loaded > LIMIT:
        problems.append(f"{(peak - loaded) / 1e9:.2f} GB above the loaded models is more than {LIMIT / 1e9:g} GB")
    done = next(item for item in report["files"] if item["status"] == "converted")
    moments = np.linspace(0, len(second.resident) - 1, 11).astype(int)
    return Measured(
        minutes=minutes,
        loaded=loaded,
        peak=peak,
        above=peak - loaded,
        seconds=float(done["seconds"]),
        real_time_factor=float(done["real_time_factor"]),
        interrupted_after_seconds=round(first.seconds, 1),
        interrupted_at_percent=first.percent,
        resident=[second.resident[moment][1] for moment in moments],
        problems=problems,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=180.0)
    parser.add_argument("-m", "--library", type=Path, help="default: narrow seeded networks")
    parser.add_argument("--voice", help="of the library")
    parser.add_argument("--f0-method", default="dio")
    parser.add_argument("--interrupt-after", type=float, default=10.0, metavar="S", help="seconds into the long file")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if (arguments.library is None) != (arguments.voice is None):
        parser.error("--library and --voice go together")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name).resolve()
        library, voice = (arguments.library.resolve(), arguments.voice) if arguments.library else narrow_library(folder)
        found = measure(folder, library, voice, arguments.minutes, arguments.f0_method, arguments.interrupt_after)
    if arguments.json:
        write_json(arguments.json, asdict(found))
    print(
        f"{found.minutes:g} minutes in {found.seconds:.0f} s (real-time factor {found.real_time_factor:.3f}); resident memory"
        f" {found.loaded / 1e9:.2f} GB loaded, {found.peak / 1e9:.2f} GB at the peak, {found.above / 1e9:.2f} GB above"
    )
    print("resident over time, GB:", *(f"{size / 1e9:.2f}" for size in found.resident))
    print(f"interrupted after {found.interrupted_after_seconds:.1f} s, the bar at {found.interrupted_at_percent}%")
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
