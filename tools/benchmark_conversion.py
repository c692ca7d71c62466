"""Time and peak memory of converting a full-size HuBERT and a full-size voice, each in a process of its own.

    python tools/benchmark_conversion.py

Writes seeded checkpoints to a temporary folder, converts them with the command line, prints a table, and exits with 1
if the two together take more than the budget of 90 s or either more than 6 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seeded_checkpoints import write_hubert, write_voice

BUDGET_SECONDS = 90
BUDGET_BYTES = 6e9


def measure(*arguments: object) -> tuple[float, int]:
    """Seconds and peak bytes of one rvc-coreml command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "rvc_coreml", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"rvc-coreml {arguments[0]} {arguments[1]} failed with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hubert, voice = write_hubert(folder / "hubert_base.pt"), write_voice(folder / "voice.pth")
        library = folder / "library"
        results = {
            "HuBERT": measure("convert", "hubert", hubert, "-o", library),
            "voice (v2 40k)": measure("convert", "voice", voice, "-o", library),
        }
    print(f"{'conversion':16}  {'seconds':>8}  {'peak GB':>8}")
    for what, (seconds, peak) in results.items():
        print(f"{what:16}  {seconds:8.1f}  {peak / 1e9:8.2f}")
    total = sum(seconds for seconds, _peak in results.values())
    worst = max(peak for _seconds, peak in results.values())
    print(f"{'both':16}  {total:8.1f}  {worst / 1e9:8.2f}   (budget {BUDGET_SECONDS} s, {BUDGET_BYTES / 1e9:.0f} GB)")
    raise SystemExit(0 if total <= BUDGET_SECONDS and worst <= BUDGET_BYTES else 1)


if __name__ == "__main__":
    main()
