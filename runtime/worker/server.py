"""The worker's side: answers one request after the other until the channel ends."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .compiled_cache import CompiledCache
from .model import LoadedModel
from .plan import package_plan
from .protocol import Channel, NoRoom
from .system import system_facts, toolchain

GRACE_SECONDS = 5.0  # beyond a call's limit, after which the process ends itself because nobody has ended it
READY = ("ready", {}, {})


class Server:
    """Models and states by number, as the client names them.

    `alone`: it has a process to itself, which ends where a call overruns its limit and the client is not there to end it.
    """

    def __init__(self, channel: Channel, *, alone: bool) -> None:
        self._channel = channel
        self._alone = alone
        self._models: dict[int, LoadedModel] = {}
        self._states: dict[int, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._inputs_end = 0
        self._caches: dict[tuple[str, int], CompiledCache] = {}
        self._notices: list[str] = []
        self._facts: dict[str, str] = {}
        self._calls: dict[str, Callable[..., Any]] = {
            "nothing": lambda _values: ({}, {}),
            "system": self.system,
            "load": self.load,
            "plan": self.plan,
            "predict": self.predict,
            "fetch": self.fetch,
            "make_state": self.make_state,
            "read_state": self.read_state,
            "write_state": self.write_state,
        }

    def serve(self) -> None:
        """Until the client is gone. What raises SystemExit ends it without a reply, as a process that dies would."""
        try:
            self._channel.send(READY)
            while True:
                self._answer(*self._channel.receive())
        except (EOFError, OSError, SystemExit):
            pass
        finally:
            self._states.clear()
            for model in self._models.values():
                model.close()
            self._channel.close()

    def _answer(self, call: str, arguments: dict[str, Any], places: dict[str, Any]) -> None:
        if call == "memory":
            self._channel.receive_memory(arguments["size"])
            self._channel.send(READY)
            return
        self._release(arguments.pop("released"))
        limit = arguments.pop("limit")
        if self._alone:  # a thread of C's: it ends the process also while Core ML holds the interpreter
            faulthandler.dump_traceback_later(limit + GRACE_SECONDS, exit=True)
        try:
            memory = self._channel.memory
            values = memory.read(places, copied=False) if memory is not None else {}
            facts, outputs = self._calls[call](values, **arguments)
            self._outputs = outputs
            reply = self._reply(facts)
        except Exception as error:  # noqa: BLE001 - every failure is the client's to judge
            reply = ("error", str(error) or type(error).__name__, {})
        finally:
            if self._alone:
                faulthandler.cancel_dump_traceback_later()
        self._channel.send(reply)

    def _reply(self, facts: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
        """The outputs behind the inputs, of which they may be views."""
        if not self._outputs:
            return "done", facts, {}
        memory = self._channel.memory
        try:
            if memory is None:
                raise NoRoom(1)
            places, _end = memory.write(self._outputs, self._inputs_end)
        except NoRoom as error:
            return "room", error.size, {}
        self._outputs = {}
        return "done", facts, places

    def system(self, _values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        self._facts = self._facts or system_facts()
        return self._facts, {}

    def load(
        self,
        _values: dict[str, Any],
        *,
        model: int,
        path: str,
        compute_units: str,
        function: str | None,
        cache: tuple[str, int] | None,
        wait: float,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.system({})
        self._notices.clear()
        loaded = LoadedModel(Path(path), compute_units, function, self._keeper(cache), toolchain(self._facts), wait)
        self._models[model] = loaded
        return {"seconds": loaded.seconds, "from_cache": loaded.from_cache, "notices": list(self._notices)}, {}

    def plan(
        self, _values: dict[str, Any], *, path: str, compute_units: str, cache: tuple[str, int] | None, wait: float
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where Core ML would run each operation."""
        self.system({})
        self._notices.clear()
        found = package_plan(Path(path), compute_units, self._keeper(cache), toolchain(self._facts), wait)
        return {"functions": found, "notices": list(self._notices)}, {}

    def predict(self, values: dict[str, Any], *, model: int, state: int | None, end: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self._inputs_end = end
        return {}, self._models[model].predict(values, None if state is None else self._states[state])

    def fetch(self, _values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The outputs that there was no room for."""
        self._inputs_end = 0
        return {}, self._outputs

    def make_state(self, _values: dict[str, Any], *, model: int, state: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self._states[state] = self._models[model].make_state()
        return {}, {}

    def read_state(self, _values: dict[str, Any], *, state: int, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        self._inputs_end = 0
        return {}, {"value": self._states[state].read_state(name)}

    def write_state(self, values: dict[str, Any], *, state: int, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        self._states[state].write_state(name, values["value"].copy())
        return {}, {}

    def _keeper(self, cache: tuple[str, int] | None) -> CompiledCache | None:
        return None if cache is None else self._caches.setdefault(cache, CompiledCache(Path(cache[0]), cache[1], self._notices.append))

    def _release(self, released: list[tuple[str, int]]) -> None:
        for kind, number in released:
            if kind == "state":
                self._states.pop(number, None)
            elif (model := self._models.pop(number, None)) is not None:
                with contextlib.suppress(Exception):
                    model.close()
