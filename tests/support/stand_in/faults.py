"""What is to go wrong, what was called, and what the machine claims to be: files in a folder that all processes of a test share.

`faults.json` and `machine.json` are replaced whole, `calls.jsonl` grows by one write a line, so that readers in other
processes never see half of one. No import here is slow: sitecustomize reads this in every process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "RVC_STAND_IN"  # the folder
# Which call each kind of fault strikes.
KINDS = {
    "compile_error": "compile",
    "endless_compile": "compile",
    "slow_compile": "compile",
    "load_error": "load",
    "crash_load": "load",
    "crash_predict": "predict",
    "scale": "predict",
    "nan": "predict",
    "exception": "predict",
    "slow": "predict",
    "hang": "predict",
}


@dataclass(frozen=True)
class Fault:
    """`stage`, `units`, `window` limit where it strikes (None: everywhere), `after` lets so many matching calls pass.

    A compile fault with `units` strikes when a compiled model is first loaded for them: Core ML's compiler knows no
    compute units, and what takes minutes is the specialisation for a device at the first load.
    """

    kind: str
    stage: str | None = None
    units: str | None = None
    window: int | None = None
    after: int = 0
    seconds: float | None = None  # None: for ever
    factor: float = 4.25
    since: int = 0  # bytes of the call log when it was set

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; choose one of {', '.join(KINDS)}")

    @property
    def call(self) -> str:
        return "load" if KINDS[self.kind] == "compile" and self.units is not None else KINDS[self.kind]

    def matches(self, call: Call) -> bool:
        return (
            self.call == call.call
            and self.stage in (None, call.stage)
            and self.units in (None, call.units)
            and (self.window is None or self.window in call.sizes)
        )


@dataclass(frozen=True)
class Call:
    """`sizes`: every axis of the model's inputs and outputs, the window's among them."""

    call: str  # compile, load, predict, plan
    stage: str
    units: str | None
    pid: int
    function: str | None = None
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Machine:
    macos: tuple[int, ...] = (15, 0)
    build: str = "24A335"
    chip: str = "Apple M2"
    specification_version: int = 9  # the newest that macOS 15 reads


class Crash(SystemExit):
    """What a crash is where the worker is a thread of the tests: nothing that catches Exception stops it."""


class Record:
    """The shared folder. `released` ends every endless wait in this process; `threaded`: a crash must not take the process down."""

    def __init__(self, folder: Path, threaded: bool = False) -> None:
        self.folder, self.threaded = folder, threaded
        self.released = threading.Event()
        self._calls, self._faults, self._machine = folder / "calls.jsonl", folder / "faults.json", folder / "machine.json"

    # ---- what a test says ----

    def set_faults(self, faults: list[Fault]) -> None:
        replace(self._faults, [asdict(fault) for fault in faults])

    def set_machine(self, machine: Machine) -> None:
        """Also as macOS' own two programs would say it: `bin` goes first on PATH."""
        replace(self._machine, asdict(machine))
        version = ".".join(str(part) for part in machine.macos)
        answers = {
            "sw_vers": {"-productVersion": version, "-buildVersion": machine.build, "-productName": "macOS"},
            "sysctl": {"machdep.cpu.brand_string": machine.chip},
        }
        (self.folder / "bin").mkdir(exist_ok=True)
        for program, said in answers.items():
            lines = [f"    *{question}) echo '{answer}' ;;" for question, answer in said.items()]
            path = self.folder / "bin" / program
            temporary = path.with_name(f".{program}.{os.getpid()}")
            temporary.write_text("\n".join(["#!/bin/sh", 'case "$*" in', *lines, "    *) exit 1 ;;", "esac", ""]))
            temporary.chmod(0o755)
            temporary.replace(path)

    # ---- what Core ML reads ----

    def faults(self) -> list[Fault]:
        return [Fault(**item) for item in _read(self._faults, [])]

    def machine(self) -> Machine:
        found = _read(self._machine, {})
        return Machine(**{**found, "macos": tuple(found["macos"])}) if found else Machine()

    def calls(self, start: int = 0) -> Iterator[Call]:
        try:
            with self._calls.open("rb") as file:
                file.seek(start)
                lines = file.read().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            item = json.loads(line)
            yield Call(**{**item, "sizes": tuple(item["sizes"])})

    @property
    def length(self) -> int:
        """Bytes of the call log."""
        return self._calls.stat().st_size if self._calls.exists() else 0

    def called(self, call: str, stage: str, units: str | None, function: str | None = None, sizes: tuple[int, ...] = ()) -> list[Fault]:
        """Writes a call down; returns the faults that strike it."""
        this = Call(call, stage, units, os.getpid(), function or None, sizes)
        line = (json.dumps(asdict(this)) + "\n").encode()
        handle = os.open(self._calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
        return [fault for fault in self.faults() if fault.matches(this) and self._due(fault)]

    def _due(self, fault: Fault) -> bool:
        return fault.after == 0 or sum(fault.matches(call) for call in self.calls(fault.since)) > fault.after

    def wait(self, seconds: float | None) -> None:
        """As long as a fault asks; a process can be killed in it, a thread is let go when its test ends."""
        if self.released.wait(seconds):
            raise Crash("the test is over")

    def crash(self) -> NoReturn:
        """As Core ML takes a process down: at once, with nothing cleaned up."""
        if self.threaded:
            raise Crash("Core ML crashed")
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
        sys.exit(1)


active = Record(Path(os.devnull))  # the test's own, put here by install.py


def strike(fault: Fault) -> None:
    """Everything that goes wrong before there are numbers."""
    if fault.kind in ("endless_compile", "hang"):
        active.wait(None)
    elif fault.kind in ("slow_compile", "slow"):
        active.wait(fault.seconds)
    elif fault.kind == "compile_error":
        raise error("Failed to parse the model specification. Error: Unable to parse ML Program.")
    elif fault.kind == "load_error":
        raise error("Failed to build the model execution plan using a model architecture file with error code: -1.")
    elif fault.kind in ("crash_load", "crash_predict"):
        active.crash()
    elif fault.kind == "exception":
        raise error("Error computing NN outputs.")


def error(text: str) -> RuntimeError:
    """An NSError's user info as `Utils::handleError` shows it."""
    return RuntimeError(f'{{\n    NSLocalizedDescription = "{text}";\n}}')


def replace(path: Path, content: Any) -> None:
    """A JSON file, in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def _read(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
