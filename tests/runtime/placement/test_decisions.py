"""What is remembered survives kills, races, full disks and damage, and is forgotten when anything it depends on changes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.runtime.placement import decisions as module
from rvc_coreml.runtime.placement.decisions import Decisions, Key
from rvc_coreml.runtime.placement.record import (
    MAX_PACKAGES,
    WHEN,
    age,
    fastest,
    is_usable,
    known_entry,
    own_entry,
    serving_order,
    with_entry,
)

KEY = Key("program", "Apple M1", "24A335", "9.0", "0.1.0")
ORDER = ["coreml (ALL)", "coreml (CPU_ONLY)", "torch (cpu)"]
RACE = """
import sys
from pathlib import Path
from rvc_coreml.runtime.placement.decisions import Decisions
decisions, name = Decisions(Path(sys.argv[1])), sys.argv[2]
for number in range(int(sys.argv[3])):
    decisions.update("shared", lambda record: {**record, f"{name}{number}": number})
"""


def child(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE)


def test_it_needs_neither_torch_nor_coremltools_nor_numpy() -> None:
    code = "import sys, rvc_coreml.runtime.placement.decisions; assert not {'torch', 'coremltools', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_stored_is_loaded_and_nothing_else(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "placement")
    assert decisions.load("a") is None
    decisions.store("a", {"verdict": "good"})
    assert Decisions(tmp_path / "placement").load("a") == {"verdict": "good"}
    assert decisions.update("a", lambda record: {**record, "more": 1}) == {"verdict": "good", "more": 1}
    decisions.forget("a")
    assert decisions.load("a") is None
    with pytest.raises(ValueError, match="no key"):
        decisions.load("../a")


@pytest.mark.parametrize("field", ["program", "chip", "os_build", "coremltools", "rvc_coreml"])
def test_every_part_of_the_key_makes_another_record(field: str) -> None:
    assert replace(KEY, **{field: "another"}).digest != KEY.digest
    assert replace(KEY).digest == KEY.digest


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format_version": 1}', b'{"format_version": 2, "record": {}}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_file_is_no_record_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    decisions = Decisions(tmp_path)
    decisions.store("a", {"x": 1})
    (tmp_path / "a.json").write_bytes(content)
    assert decisions.load("a") is None
    decisions.store("a", {"x": 2})
    assert decisions.load("a") == {"x": 2}


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [child(RACE, tmp_path, name, 40) for name in ("a", "b", "c")]
    for writer in writers:
        assert writer.wait() == 0, writer.stderr and writer.stderr.read()
    assert len(Decisions(tmp_path).load("shared") or {}) == 3 * 40


def test_a_killed_process_leaves_a_record_no_lock_and_nothing_that_stays(tmp_path: Path) -> None:
    for delay in (0.12, 0.17, 0.25):
        writer = child(RACE, tmp_path, "a", 1_000_000)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        begun = time.monotonic()
        Decisions(tmp_path).store("b", {})
        assert time.monotonic() - begun < 1
        assert [item.name for item in tmp_path.glob(".*.json")] == []
        for item in tmp_path.glob("*.json"):
            json.loads(item.read_text())


def test_a_process_that_holds_the_lock_and_stands_still_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    decisions = Decisions(tmp_path)
    decisions.store("a", {"x": 1})
    with (tmp_path / ".lock").open("a") as file:
        assert module.lock(file)
        decisions.store("a", {"x": 2})
    assert Decisions(tmp_path).load("a") == {"x": 2}


def test_the_oldest_records_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 5)
    decisions = Decisions(tmp_path)
    for number in range(9):
        decisions.store(f"k{number}", {"number": number})
        os.utime(tmp_path / f"k{number}.json", (number, number))
    assert sorted(item.name for item in tmp_path.glob("*.json")) == [f"k{number}.json" for number in range(4, 9)]


def test_a_folder_that_cannot_be_written_is_said_once_and_the_process_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    blocked = tmp_path / "file"
    blocked.write_text("")
    decisions = Decisions(blocked / "placement", lines.append)
    for number in range(3):
        decisions.store("a", {"x": number})
    assert decisions.load("a") == {"x": 2}
    assert len(lines) == 1
    assert "is not remembered" in lines[0]

    def full(_path: Path, _value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    disk = Decisions(tmp_path / "disk", lines.append)
    assert disk.update("a", lambda record: {**record, "x": 1}) == {"x": 1}
    assert disk.update("a", lambda record: {**record, "y": 1}) == {"x": 1, "y": 1}
    assert lines[1:] == [f"what was found about compute units is not remembered: {disk.folder} cannot be used (No space left on device)"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_once(tmp_path: Path) -> None:
    lines: list[str] = []
    Decisions(tmp_path).store("a", {"x": 1})
    tmp_path.chmod(0o500)
    try:
        decisions = Decisions(tmp_path, lines.append)
        decisions.store("a", {"x": 2})
        decisions.store("b", {})
        assert decisions.load("a") == {"x": 2}
        assert Decisions(tmp_path).load("a") == {"x": 1}
        assert len(lines) == 1
    finally:
        tmp_path.chmod(0o700)


def test_a_disk_that_is_full_for_real_leaves_the_old_record(tmp_path: Path) -> None:
    """A process may write no more than a few bytes to any file: the system's own answer to a full disk."""
    Decisions(tmp_path).store("a", {"x": 1})

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))

    code = (
        "import sys; from pathlib import Path; from rvc_coreml.runtime.placement.decisions import Decisions\n"
        "decisions = Decisions(Path(sys.argv[1]), print)\n"
        "decisions.store('a', {'x': 2}); decisions.store('b', {'x': 3})\n"
        "assert decisions.load('a') == {'x': 2}"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path)], stdout=subprocess.PIPE, preexec_fn=limit, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert Decisions(tmp_path).load("a") == {"x": 1}
    assert sorted(item.name for item in tmp_path.iterdir()) == [".lock", "a.json"]


def good(seconds: float) -> dict[str, object]:
    return {"verdict": "good", "reason": "", "prediction_seconds": seconds}


BAD = {"verdict": "broken", "reason": "level 4.25"}


def test_a_package_that_fails_alone_takes_nothing_from_the_others() -> None:
    record = with_entry({}, "one", "coreml (ALL)", good(0.1))
    record = with_entry(record, "two", "coreml (ALL)", BAD)
    assert not is_usable(known_entry(record, "two", "coreml (ALL)"))
    assert is_usable(known_entry(record, "one", "coreml (ALL)"))
    assert is_usable(known_entry(record, "three", "coreml (ALL)"))
    assert own_entry(record, "three", "coreml (ALL)") is None


def test_what_the_first_package_found_wrong_holds_for_the_next_until_one_runs() -> None:
    record = with_entry({}, "one", "coreml (ALL)", BAD)
    assert not is_usable(known_entry(record, "two", "coreml (ALL)"))
    record = with_entry(record, "two", "coreml (ALL)", good(0.1))
    assert is_usable(known_entry(record, "three", "coreml (ALL)"))
    assert not is_usable(known_entry(record, "one", "coreml (ALL)"))


def test_a_unit_that_goes_bad_for_its_own_package_is_bad_for_all() -> None:
    record = with_entry(with_entry({}, "one", "coreml (ALL)", good(0.1)), "one", "coreml (ALL)", BAD)
    assert not is_usable(known_entry(record, "two", "coreml (ALL)"))


@pytest.mark.parametrize("damage", [{"load_seconds": "soon"}, {"prediction_seconds": [1]}, {"snr_db": "high"}, {"verdict": None}], ids=str)
def test_an_entry_whose_figures_are_none_is_measured_anew(damage: dict[str, object]) -> None:
    record = with_entry({}, "one", "coreml (ALL)", {**good(0.1), **damage})
    assert known_entry(record, "one", "coreml (ALL)") is None


def test_only_the_latest_packages_are_kept() -> None:
    record: dict[str, object] = {}
    for number in range(MAX_PACKAGES + 3):
        record = with_entry(record, f"p{number}", "coreml (ALL)", good(0.1))
    assert own_entry(record, "p2", "coreml (ALL)") is None
    assert own_entry(record, f"p{MAX_PACKAGES + 2}", "coreml (ALL)") is not None


def test_an_entry_says_how_old_it_is() -> None:
    assert 0 <= age({"when": time.strftime(WHEN)}) < 120
    assert age({"when": time.strftime(WHEN, time.localtime(time.time() - 7200))}) == pytest.approx(7200, abs=61)
    assert age({"when": "yesterday"}) == age({}) == float("inf")


def test_the_order_is_as_given_until_tuned_and_then_by_speed() -> None:
    record: dict[str, object] = {}
    for name, seconds in zip(ORDER, (0.3, 0.1, 0.2), strict=True):
        record = with_entry(record, "one", name, good(seconds))
    assert serving_order(record, ORDER) == ORDER
    assert fastest(record, ORDER) == "coreml (CPU_ONLY)"
    tuned = {**record, "tuned": True, "chosen": "coreml (CPU_ONLY)"}
    assert serving_order(tuned, ORDER) == ["coreml (CPU_ONLY)", "torch (cpu)", "coreml (ALL)"]
    assert fastest(with_entry(record, "one", "coreml (CPU_ONLY)", BAD), ORDER) == "torch (cpu)"
    assert serving_order({**tuned, "chosen": "something else"}, ORDER) == ORDER


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["candidates", "packages", "tuned", "chosen", "key"]), JSON))
def test_a_record_of_anything_breaks_nothing(record: dict[str, object]) -> None:
    """Files are read by later versions and edited by hand."""
    assert sorted(serving_order(record, ORDER)) == sorted(ORDER)
    assert fastest(record, ORDER) is None or fastest(record, ORDER) in ORDER
    changed = with_entry(record, "one", "coreml (ALL)", good(0.1))
    assert own_entry(changed, "one", "coreml (ALL)") == good(0.1)
