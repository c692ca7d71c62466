"""This side of the worker: calls with limits, and a new worker for one that died or hung. Not yet run on a Mac."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BackendError, WorkerFailure
from .compiled_cache import CompiledCache
from .protocol import MINIMUM, ROOM, Memory, NoRoom, anonymous_memory
from .remote import QUICK_SECONDS, RemoteModel, RemoteState, refused
from .starting import Running, Starter, in_thread, spawn_process

if TYPE_CHECKING:
    from .plan import Row

__all__ = ["CoreMLWorker", "Limits", "RemoteModel", "RemoteState", "close_shared_worker", "in_thread", "shared_worker", "spawn_process"]
STARTING_SECONDS = 60.0  # Python and coremltools; about one second where the disk is warm
_KEPT: Any = object()
_workers: weakref.WeakSet[CoreMLWorker] = weakref.WeakSet()


@dataclass(frozen=True)
class Limits:
    """Seconds that a call may take where it names none of its own."""

    load_seconds: float = 300.0
    prediction_seconds: float = 60.0


@dataclass
class _Life:
    """One worker process."""

    running: Running
    number: int
    ready: bool = False


class CoreMLWorker:
    """Core ML behind a channel: one call at a time, from any thread.

    A worker that dies or overruns a limit is ended, and the next call starts another. `notify` takes remarks about the cache.
    """

    def __init__(self, limits: Limits | None = None, start: Starter | None = None, cache: CompiledCache | None = _KEPT) -> None:
        self.limits = limits or Limits()
        self.cache = CompiledCache() if cache is _KEPT else cache
        self.notify: Callable[[str], None] = logging.getLogger("rvc_coreml").warning
        self._start = start or spawn_process
        self.lock = threading.RLock()  # held for a call, and by callers for several that belong together
        self._life: _Life | None = None
        self._spare: Running | None = None
        self._lives = itertools.count(1)
        self._numbers = itertools.count(1)
        self._released: deque[tuple[str, int]] = deque()
        self._said: set[str] = set()
        self._system: dict[str, str] = {}
        _workers.add(self)

    def start(self) -> None:
        """Start a worker without waiting for it, so that it is ready when it is asked."""
        with self.lock:
            self._living()

    @contextlib.contextmanager
    def standing_by(self) -> Iterator[None]:
        """Within it a second process waits, and takes over at once where the first has to be ended."""
        with self.lock:
            if self._spare is None:
                with contextlib.suppress(OSError):  # then the next one is started when it is needed
                    self._spare = self._start()
        try:
            yield
        finally:
            with self.lock:
                lost = self._life is None or not self._life.running.alive()
                if lost and self._spare is not None and self._spare.alive():
                    self._living()
                self._dismiss()

    def load(
        self, package: Path, compute_units: str = "ALL", function: str | None = None, *, limit: float | None = None, cached: bool = True
    ) -> RemoteModel:
        """A package in Core ML; compiled anew where not `cached`. Raises WorkerFailure, PackageError for what cannot be read."""
        return RemoteModel(self, Path(package), compute_units, function, limit, cached)

    def plan(self, package: Path, compute_units: str = "ALL", *, limit: float | None = None) -> dict[str, list[Row]]:
        """Function -> where Core ML would run each operation of a package (`plan.Row`), which compiles it but does not load it.

        Raises WorkerFailure.
        """
        limit, cache = limit or self.limits.load_seconds, self.cache
        arguments = {
            "path": str(Path(package).resolve()),
            "compute_units": compute_units,
            "cache": None if cache is None else (str(cache.folder.absolute()), cache.max_bytes),
            "wait": limit,
        }
        name = Path(package).name
        with refused("refused", f"Core ML could not plan {name}"):
            facts, _arrays = self.call("plan", arguments, f"planning {name} with {compute_units}", limit)
        for line in facts["notices"]:
            self.remark(line)
        return facts["functions"]

    def system(self) -> dict[str, str]:
        """`chip`, `os`, `os_build` and `coremltools`, as the worker sees them."""
        with self.lock:
            if not self._system:
                self._system = self.call("system", {}, "telling about the system", QUICK_SECONDS)[0]
            return self._system

    def close(self) -> None:
        """End the worker. One that is asked again starts anew."""
        with self.lock:
            self._end()
            self._dismiss()

    def abandon(self) -> None:
        """Forget the worker without ending it: it belongs to the process that this one was forked from."""
        self.lock, self._life, self._spare = threading.RLock(), None, None

    @property
    def life(self) -> int:
        """The number of the worker that would answer now, which starts one where there is none."""
        with self.lock:
            return self._living().number

    @property
    def pid(self) -> int | None:
        """The process of the worker that is running."""
        life = self._life
        return None if life is None else life.running.pid

    def release(self, kind: str, number: int) -> None:
        """Forget a model or a state, with the next call; it is for finalizers, which must not wait."""
        self._released.append((kind, number))

    def tidy(self) -> None:
        """Have the worker forget now what was released."""
        with self.lock, contextlib.suppress(BackendError):
            if self._life is not None and self._released:
                self.call("nothing", {}, "freeing a model", QUICK_SECONDS)

    def number(self) -> int:
        """For a model or a state."""
        return next(self._numbers)

    def call(
        self,
        name: str,
        arguments: dict[str, Any],
        doing: str,
        limit: float,
        values: Mapping[str, Any] | None = None,
        life: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Facts and arrays that a call answers with; `life` is the worker that has to answer.

        Raises WorkerFailure with kind unstarted, died or timeout, and BackendError with Core ML's reason.
        """
        with self.lock:
            living = self._living()
            if life is not None and living.number != life:
                raise WorkerFailure("died", f"Core ML's process was lost before {doing}")
            try:
                self._await_ready(living)
                return self._exchange(living, name, arguments, limit, values or {})
            except TimeoutError:
                self._end()
                raise WorkerFailure("timeout", f"Core ML took longer than {limit:g} s for {doing}; its process was ended") from None
            except (EOFError, OSError):
                kind, words = "died" if living.ready else "unstarted", living.running.last_words()
                self._end()
                raise WorkerFailure(kind, f"Core ML's process died while {doing}: {words}") from None
            except BackendError:
                raise
            except BaseException:  # Ctrl-C: the answer would come to the next call
                self._end()
                raise

    def _exchange(
        self, life: _Life, name: str, arguments: dict[str, Any], limit: float, values: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        channel, until = life.running.channel, time.monotonic() + limit
        places, end = self._written(life, values, until)
        if name == "predict":
            arguments = {**arguments, "end": end}
        status, facts, places = self._ask(life, (name, {**arguments, "limit": limit, "released": self._forgotten()}, places), until)
        if status == "room":
            self._grow(life, facts, until)
            status, facts, places = self._ask(life, ("fetch", {"limit": limit, "released": []}, {}), until)
        if status == "error":
            raise BackendError(facts)
        return facts, channel.memory.read(places, copied=True) if channel.memory is not None else {}

    def _written(self, life: _Life, values: Mapping[str, Any], until: float) -> tuple[dict[str, Any], int]:
        """Put arrays where the worker sees them."""
        channel = life.running.channel
        if channel.memory is None:
            self._grow(life, MINIMUM, until)
        while True:
            try:
                assert channel.memory is not None  # noqa: S101 - made above
                return channel.memory.write(values)
            except NoRoom as error:
                self._grow(life, error.size, until)

    def _grow(self, life: _Life, size: int, until: float) -> None:
        """New memory with room for `size` bytes."""
        channel = life.running.channel
        size = max(MINIMUM, int(ROOM * size))
        try:
            descriptor = anonymous_memory(size)
        except OSError as error:
            raise BackendError(f"there is no memory to share with Core ML's process: {error.strerror or error}") from error
        try:
            channel.memory = Memory(descriptor, size)
            channel.send(("memory", {"size": size}, {}))
            channel.send_descriptor(descriptor)
            self._reply(life, until)  # macOS loses a descriptor that is closed before it has arrived
        finally:
            os.close(descriptor)

    def _ask(self, life: _Life, request: tuple[Any, ...], until: float) -> Any:
        life.running.channel.send(request)
        return self._reply(life, until)

    def _reply(self, life: _Life, until: float) -> Any:
        if not life.running.channel.poll(max(0.0, until - time.monotonic())):
            raise TimeoutError
        return life.running.channel.receive()

    def _await_ready(self, life: _Life) -> None:
        if life.ready:
            return
        try:
            self._reply(life, time.monotonic() + STARTING_SECONDS)
        except TimeoutError:
            self._end()
            raise WorkerFailure("unstarted", f"Core ML's process did not start within {STARTING_SECONDS:g} s") from None
        life.ready = True

    def _living(self) -> _Life:
        """The worker that runs, or a new one."""
        if self._life is not None and not self._life.running.alive():
            self._end()
        if self._life is None:
            running, self._spare = self._spare, None
            try:
                if running is None or not running.alive():
                    running = self._start()
            except OSError as error:
                raise WorkerFailure("unstarted", f"Core ML's process could not be started: {error.strerror or error}") from error
            self._life = _Life(running, next(self._lives))
        return self._life

    def _end(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            life.running.end()

    def _dismiss(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def _forgotten(self) -> list[tuple[str, int]]:
        """What the worker may forget now; it ignores what an earlier one had, numbers being given once."""
        forgotten = []
        while self._released:
            forgotten.append(self._released.popleft())
        return forgotten

    def remark(self, line: str) -> None:
        """Tell about something once."""
        if line not in self._said:
            self._said.add(line)
            self.notify(line)


def _forked() -> None:
    """In a copy of this process: its locks may be held by threads that it does not have."""
    global _sharing
    _sharing = threading.Lock()
    for worker in _workers:
        worker.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
_shared: CoreMLWorker | None = None
_sharing = threading.Lock()


def shared_worker() -> CoreMLWorker:
    """The one worker of this process, which ends with it."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = CoreMLWorker(start=spawn_process)
            atexit.register(close_shared_worker)
        return _shared


def close_shared_worker() -> None:
    """End it; the next use starts with a new one."""
    global _shared
    with _sharing:
        worker, _shared = _shared, None
    if worker is not None:
        worker.close()
