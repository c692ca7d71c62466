"""Core ML for a test on Linux: coremltools stands on the stand-in's native module, and faults can be switched on.

    def test_something(coreml):                      # a fixture; import it, and name it in __all__
        coreml.fault("scale", stage="decoder", units="ALL", after=2)
        ...
        assert coreml.loaded == [("decoder", "ALL")]

The worker is a thread of this process unless the test says `coreml.processes = True` before its first prediction; a
crash then ends that thread. Subprocesses of the test, and their workers, are under the stand-in too: `coreml.environment()`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rvc_coreml.runtime.backends import coreml_backend
from rvc_coreml.runtime.downloads import CACHE_VARIABLE
from rvc_coreml.runtime.worker import client

from .stand_in import install
from .stand_in.faults import VARIABLE, Fault, Machine, Record


class StandIn:
    """What the test says to Core ML, and what Core ML was asked, over all processes of the test."""

    def __init__(self, folder: Path) -> None:
        self.record = Record(folder, threaded=True)
        self.folder = folder
        self.processes = False
        self.record.set_machine(Machine())

    def fault(
        self,
        kind: str,
        *,
        stage: str | None = None,
        units: str | None = None,
        window: int | None = None,
        after: int = 0,
        seconds: float | None = None,
        factor: float = 4.25,
    ) -> None:
        """From now on this goes wrong, for `stage` (a package's stem), `units` and `window` frames; None is any.

        compile_error, endless_compile, slow_compile (`seconds`; at the first load for `units` where they are given),
        load_error, crash_load, and in predictions crash_predict, scale (times `factor`), nan, exception, slow
        (`seconds`), hang. `after` lets so many pass that it would have struck.
        """
        if kind in ("slow", "slow_compile") and seconds is None:
            raise ValueError(f"how many seconds does {kind} take?")
        fault = Fault(kind, stage, units, window, after, seconds, factor, self.record.length)
        self.record.set_faults([*self.record.faults(), fault])

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self.record.set_faults([])

    def calls(self) -> list[dict[str, Any]]:
        """Every call, in order: call (compile, load, predict, plan), stage, units, pid, function, sizes."""
        return [asdict(call) for call in self.record.calls()]

    @property
    def loaded(self) -> list[tuple[str, str | None]]:
        """Stage and compute units of every load, in order."""
        return [(call.stage, call.units) for call in self.record.calls() if call.call == "load"]

    @property
    def functions(self) -> list[str | None]:
        """The function that each load asked for."""
        return [call.function for call in self.record.calls() if call.call == "load"]

    @property
    def predictions(self) -> dict[str, int]:
        """How often each stage predicted."""
        stages = [call.stage for call in self.record.calls() if call.call == "predict"]
        return {stage: stages.count(stage) for stage in stages}

    @property
    def machine(self) -> Machine:
        return self.record.machine()

    def pretend(self, **facts: Any) -> None:
        """Another machine: `macos` (15, 0), `build`, `chip`, `specification_version`."""
        self.record.set_machine(replace(self.record.machine(), **facts))

    def environment(self) -> dict[str, str]:
        """Variables for a subprocess in which Core ML is there."""
        return install.environment(self.folder)


FIRST_SOUND = "RVC_COREML_FIRST_SOUND_SECONDS"
_active: list[StandIn] = []
_really_available = coreml_backend.coreml_available


def _available() -> bool:
    return bool(_active) or _really_available()  # modules that a test imports keep this name


@pytest.fixture
def coreml(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Core ML seems to be here, and it is the stand-in."""
    stand_in = StandIn(tmp_path_factory.mktemp("coreml"))
    install.patch(stand_in.record, monkeypatch.setattr, monkeypatch.setitem)
    for name, module in list(sys.modules.items()):
        if name.startswith("rvc_coreml.") and vars(module).get("coreml_available") is _really_available:
            monkeypatch.setattr(module, "coreml_available", _available)
    for name, value in stand_in.environment().items():
        if name in (VARIABLE, "PYTHONPATH", "PATH"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv(CACHE_VARIABLE, str(stand_in.folder / "cache"))
    monkeypatch.setenv(FIRST_SOUND, "600")  # a machine that is busy with other tests is no reason to leave units out
    _active.append(stand_in)
    with _workers(stand_in, monkeypatch):
        yield stand_in
    _active.remove(stand_in)


@contextmanager
def _workers(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shared worker is this test's own: a thread, or a process where the test asks for one."""
    spawn, thread = client.spawn_process, client.in_thread()
    monkeypatch.setattr(client, "spawn_process", lambda: spawn() if stand_in.processes else thread())
    client.close_shared_worker()
    yield
    stand_in.record.released.set()  # first, so that a worker that hangs on purpose ends at once
    client.close_shared_worker()
