"""What a process may have, has had, and can still take."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from rvc_coreml.runtime import memory
from rvc_coreml.runtime.memory import available_to_process, free_memory, peak_memory


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The files of a control group: limit and use."""
    pair = tmp_path / "limit", tmp_path / "used"
    monkeypatch.setattr(memory, "_CGROUPS", (pair, (tmp_path / "absent", tmp_path / "absent")))
    return pair


def test_what_a_process_may_have_is_the_least_of_its_limits(container: tuple[Path, Path]) -> None:
    whole = available_to_process()
    assert whole > 1e8
    for text, wanted in (("max\n", whole), ("1000000\n", 1_000_000), ("9" * 30, whole), ("", whole)):
        container[0].write_text(text)
        assert available_to_process() == wanted


def test_what_is_free_is_what_the_container_has_left(container: tuple[Path, Path]) -> None:
    container[0].write_text("3000000")
    assert free_memory() == 3_000_000
    container[1].write_text("1000000")
    assert free_memory() == 2_000_000
    container[1].write_text("4000000")
    assert free_memory() == 0
    container[0].write_text("max")
    assert 0 < free_memory() <= psutil.virtual_memory().total


@pytest.mark.skipif(sys.platform != "linux", reason="limits of an address space are kept on Linux")
def test_a_limit_of_the_process_itself_counts() -> None:
    code = (
        "import resource; from rvc_coreml.runtime.memory import available_to_process, free_memory;"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY)); print(available_to_process(), free_memory())"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    whole, free = map(int, shown.split())
    assert whole <= 1 << 30
    assert 0 < free < whole


def test_the_peak_grows_with_what_is_held_and_stays() -> None:
    before = peak_memory()
    held = np.ones(max(0, before - psutil.Process().memory_info().rss) + 50_000_000, np.uint8)
    grown = peak_memory()
    assert grown - before > 40_000_000
    del held
    assert peak_memory() > grown - 10_000_000  # Linux counts pages in batches
    assert grown < 4 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
