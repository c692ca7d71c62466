"""Ways to start a worker: a process of its own, or for tests a thread of this one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Protocol

from .protocol import Channel

GRACE_SECONDS = 0.5  # between the polite signal and the one that cannot be ignored
REAP_SECONDS = 2.0
LOG_BYTES = 1 << 20  # of a worker's own words; more are forgotten
LINE_CHARACTERS = 300
MODULE = "rvc_coreml.runtime.worker"


class Running(Protocol):
    """A worker that was started, and this side's end of the channel to it."""

    channel: Channel

    @property
    def pid(self) -> int: ...

    def alive(self) -> bool: ...

    def end(self) -> None:
        """At once, whatever it is doing; never waits for long."""
        ...

    def last_words(self) -> str:
        """How it ended and the last line it printed, as far as known."""
        ...


Starter = Callable[[], Running]


def spawn_process() -> Running:
    """A fresh process that shares nothing with this one but a socket. Raises OSError where none can be started."""
    return _Process()


def in_thread() -> Starter:
    """A starter that serves on a thread of this process: nothing is isolated, and a call that hangs keeps its thread."""
    return _Thread


class _Process:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._log = _unlinked_log()
        try:
            # Its own session: Ctrl-C is for the process that asks. Safe path: no module of the current folder is taken for ours.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", MODULE, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        except BaseException:
            ours.close()
            os.close(self._log)
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        with contextlib.suppress(OSError):
            if os.fstat(self._log).st_size > LOG_BYTES:
                os.ftruncate(self._log, 0)  # it is written to by appending
        return self._process.poll() is None

    def end(self) -> None:
        self.channel.close()
        for signal_to_send, seconds in ((self._process.terminate, GRACE_SECONDS), (self._process.kill, REAP_SECONDS)):
            if self._process.poll() is not None:
                break
            signal_to_send()
            with contextlib.suppress(subprocess.TimeoutExpired):  # after the last one it is beyond the system's reach
                self._process.wait(seconds)
        with contextlib.suppress(OSError):
            os.close(self._log)

    def last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):  # its end of the socket closes a moment before it is gone
            self._process.wait(GRACE_SECONDS)
        status = self._process.poll()
        how = "it ended" if status is None else f"it ended with status {status}"
        if status is not None and status < 0:
            how = f"it was ended by {_signal_name(-status)}"
        line = _last_line(self._log)
        return f"{how}, its last words were: {line}" if line else how


class _Thread:
    def __init__(self) -> None:
        from .server import Server

        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self._thread = threading.Thread(target=Server(Channel(theirs), alone=False).serve, daemon=True, name="rvc-coreml worker")
        self._thread.start()

    @property
    def pid(self) -> int:
        return os.getpid()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self.channel.close()
        self._thread.join(GRACE_SECONDS)

    def last_words(self) -> str:
        return "its thread ended"


def _unlinked_log() -> int:
    """A file without a name that is appended to."""
    descriptor, path = tempfile.mkstemp(prefix="rvc-coreml-")
    try:
        return os.open(path, os.O_RDWR | os.O_APPEND)
    finally:
        os.close(descriptor)
        os.unlink(path)


def _last_line(descriptor: int) -> str:
    try:
        size = os.fstat(descriptor).st_size
        text = os.pread(descriptor, 4096, max(0, size - 4096)).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-LINE_CHARACTERS:] if lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
