from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[3] / "tools" / "fuzz_packages.py"


def test_two_hundred_damaged_packages_run_or_are_refused() -> None:
    done = subprocess.run([sys.executable, TOOL, "--count", "200"], capture_output=True, text=True, timeout=500)
    counts = re.search(r"200 damaged packages: (\d+) ran, (\d+) were refused\n(\d+) .* 0 violations", done.stdout)
    assert counts is not None, done.stdout + done.stderr
    assert done.returncode == 0
    ran, refused, parsed = map(int, counts.groups())
    assert ran > 20
    assert refused > 50
    assert parsed >= 100
