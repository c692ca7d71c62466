"""Python processes that start in milliseconds: one process imports torch, coremltools and the project once, and forks.

`python -m support.forked FOLDER` is that one. It reads a line of JSON for every new process, `{"code", "arguments"}`, answers with
its number, and for `{"wait": number}` with its exit status, or null while it lives. Other systems than Linux, whose
frameworks do not survive a fork, start a Python each time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent


class Forked:
    """A process as subprocess.Popen has them, as far as tests need it."""

    def __init__(self, code: str, arguments: tuple[str, ...]) -> None:
        self.pid = int(_ask(code=code, arguments=arguments))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(wait=self.pid)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it printed, and its errors, once it has ended."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        paths = [Path(_nursery()[1]) / f"{self.pid}.{name}" for name in ("stdout", "stderr")]
        stdout, stderr = (path.read_text() for path in paths)
        for path in paths:
            path.unlink()
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def python(code: str, *arguments: object, fresh: bool = False) -> Any:
    """A process that runs `code` as `python -c` does in the folder of the tests; a `fresh` one imports everything itself."""
    texts = tuple(map(str, arguments))
    if sys.platform == "linux" and not fresh:
        return Forked(code, texts)
    return subprocess.Popen(
        [sys.executable, "-c", code, *texts],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job is started without it
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@lru_cache(maxsize=1)
def _nursery() -> tuple[subprocess.Popen[str], str]:
    folder = tempfile.TemporaryDirectory()
    command = [sys.executable, "-W", "ignore", "-m", "support.forked", folder.name]
    process = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), text=True)
    _kept.append(folder)  # until this process ends; the other one ends with its input
    return process, folder.name


_kept: list[Any] = []


def _ask(**message: Any) -> Any:
    process, _folder = _nursery()
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(message), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def serve(folder: Path) -> None:
    import pytest  # noqa: F401 - for those who are forked
    import rvc_coreml.cli.convert
    import rvc_coreml.converters.conversion  # noqa: F401

    answers = os.dup(1)
    for line in sys.stdin:
        message = json.loads(line)
        if "wait" in message:
            found, status = os.waitpid(message["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if answer == 0:
                os.close(answers)
                _live(folder, message["code"], message["arguments"])
        os.write(answers, f"{json.dumps(answer)}\n".encode())


def _live(folder: Path, code: str, arguments: list[str]) -> None:
    """As a fresh interpreter: its exit status, and a traceback where it fails."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / f"{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-c", *arguments]
    status: Any = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends with it
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
