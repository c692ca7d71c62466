"""Time and memory are counted where they were spent."""

from __future__ import annotations

import json
import threading
import timeit
from collections.abc import Iterator

import numpy as np
import pytest
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime import devices
from rvc_coreml.runtime.memory import peak_memory
from rvc_coreml.runtime.profiling import HEADINGS, NULL_PROFILE, Profile


def ticks(*times: float) -> Iterator[float]:
    yield from times


def stepped(*times: float) -> Profile:
    clock = ticks(*times)
    return Profile(clock=lambda: next(clock))


def test_stages_add_up_over_calls_and_inside_one_another() -> None:
    profile = stepped(0, 1, 3, 10, 20, 24, 100, 107)
    with profile.measure("voice"), profile.measure("flow"):
        pass
    with profile.measure("voice"), profile.measure("flow"):
        pass
    assert profile.stages["voice/flow"].seconds == [3 - 1, 100 - 24]
    assert profile.stages["voice"].seconds == [10 - 0, 107 - 20]


def test_a_stage_that_raises_is_counted_and_closed() -> None:
    profile = stepped(0, 5, 6, 8)
    with pytest.raises(ValueError, match="stop"), profile.measure("pitch"):
        raise ValueError("stop")
    with profile.measure("voice"):
        pass
    assert profile.take() == {"pitch": 5, "voice": 2}
    assert profile.take() == {}


def test_threads_do_not_nest_in_each_other() -> None:
    profile = Profile()
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        inside.wait(10)
        with profile.measure("pitch"):
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    with profile.measure("content"):
        inside.set()
        assert done.wait(10)
    thread.join()
    assert set(profile.stages) == {"content", "pitch"}


def test_memory_that_a_stage_takes_is_seen_even_when_it_is_given_back() -> None:
    profile = Profile()
    room = 120_000_000 + max(0, peak_memory() - _held())
    with profile.measure("large"):
        np.ones(room, np.uint8).sum()
    with profile.measure("small"):
        np.ones(1000, np.uint8).sum()
    assert profile.stages["large"].raised > 80_000_000
    assert profile.stages["small"].raised < 20_000_000


def _held() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def test_the_device_is_waited_for_on_both_sides_and_its_peak_read(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    peaks = iter([100, 700])
    monkeypatch.setattr(devices, "synchronize", lambda device: events.append(f"wait {device}"))
    monkeypatch.setattr(devices, "peak_device_memory", lambda _device: next(peaks))
    profile = Profile("cuda:1")
    with profile.measure("flow"):
        events.append("work")
    assert events == ["wait cuda:1", "work", "wait cuda:1"]
    assert profile.stages["flow"].raised_on_device == 600
    assert "cuda:1" in profile.rows()[0][-1]
    with pytest.raises(UsageError, match="unknown"):
        Profile("gpu")


def test_the_table_keeps_inner_stages_below_their_outer_one_and_shares_sum_to_one() -> None:
    profile = stepped(0, 30, 30, 60, 70, 90, 95, 100)
    with profile.measure("voice"):
        pass
    with profile.measure("pitch"):
        pass
    with profile.measure("voice"), profile.measure("flow"):
        pass
    rows = profile.rows()
    assert [row[0] for row in rows] == ["voice", "  flow", "pitch"]
    assert all(len(row) == len(HEADINGS) for row in rows)
    shares = [int(row[2].removesuffix("%")) for row in rows if not row[0].startswith(" ")]
    assert sum(shares) == 100
    assert [row[1] for row in rows] == ["60.000", "5.000", "30.000"]
    assert [row[3] for row in rows] == ["2", "1", "1"]


def test_it_is_written_as_json() -> None:
    profile = stepped(0, 1, 2, 5)
    for _ in range(2):
        with profile.measure("pitch"):
            pass
    report = json.loads(json.dumps(profile.as_dict()))
    assert report["stages"]["pitch"]["seconds"] == 4
    assert report["stages"]["pitch"]["median_seconds"] == 2
    assert report["device"] == "cpu"


def test_nothing_is_measured_and_hardly_anything_paid_without_a_profile() -> None:
    def work() -> None:
        with NULL_PROFILE.measure("flow"), NULL_PROFILE.measure("flow"):
            pass

    assert min(timeit.repeat(work, number=10_000, repeat=3)) / 10_000 < 2e-5
    with pytest.raises(ValueError, match="stop"), NULL_PROFILE.measure("x"):
        raise ValueError("stop")
