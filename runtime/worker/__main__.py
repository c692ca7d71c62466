"""`python -m rvc_coreml.runtime.worker SOCKET PARENT`: serves Core ML on a descriptor to the process that started it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time

from .model import import_coremltools
from .protocol import Channel
from .server import Server

WATCH_SECONDS = 1.0


def main() -> None:
    """Until the other end of the socket closes or the process that started this one is gone."""
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    server = Server(channel, alone=True)
    with contextlib.suppress(Exception):  # a load says why
        import_coremltools(whole=False)
    server.serve()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(0)


main()
