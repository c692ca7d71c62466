"""The channel to a worker: small messages over a socket pair, arrays through memory that both sides map.

The memory has no name: the client makes it, passes its descriptor over the socket, and the system takes it back when
both processes are gone, however they went. The client owns it; a worker that needs more room asks for it.

A request is (call, arguments, arrays); a reply is ("done", facts, arrays), ("room", bytes, {}) where the outputs do not
fit, or ("error", reason, {}). `arrays` is what `Memory.write` returns.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes; what the Neural Engine asks of the last axis, and vector units like
MINIMUM = 1 << 20
ROOM = 1.5  # of what is needed, so that memory seldom grows twice
Where = tuple[Any, ...]  # ("array", dtype, shape, offset), ("image", mode, size, length, offset) or ("plain", value)


class NoRoom(Exception):
    """The values take `size` bytes, which is more than there is."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Memory:
    """Shared memory of `size` bytes. Mappings end with the last array that is a view of them."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._bytes = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)

    def write(self, values: Mapping[str, Any], start: int = 0) -> tuple[dict[str, Where], int]:
        """Put arrays and PIL images there, behind `start`; where each lies, and where they end. Raises NoRoom."""
        places: dict[str, Where] = {}
        end = start
        pending: list[tuple[int, np.ndarray]] = []
        for name, value in values.items():
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            if isinstance(value, np.ndarray):
                array = value
                places[name] = ("array", array.dtype.str, array.shape, offset)
            elif hasattr(value, "mode") and hasattr(value, "tobytes"):
                array = np.frombuffer(value.tobytes(), np.uint8)
                places[name] = ("image", value.mode, value.size, array.nbytes, offset)
            else:
                places[name] = ("plain", value)
                continue
            end = offset + array.nbytes
            pending.append((offset, array))
        if end > self.size:
            raise NoRoom(end)
        for offset, array in pending:
            self._view(offset, array.dtype, array.shape)[...] = array
        return places, end

    def read(self, places: Mapping[str, Where], *, copied: bool) -> dict[str, Any]:
        """The values; arrays as views of the memory, or copies of their own."""
        return {name: self._value(where, copied) for name, where in places.items()}

    def _value(self, where: Where, copied: bool) -> Any:
        if where[0] == "plain":
            return where[1]
        if where[0] == "image":
            from PIL import Image

            _kind, mode, size, length, offset = where
            return Image.frombytes(mode, size, self._bytes[offset : offset + length].tobytes())
        _kind, dtype, shape, offset = where
        view = self._view(offset, np.dtype(dtype), shape)
        return view.copy() if copied else view

    def _view(self, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return self._bytes[offset : offset + size].view(dtype).reshape(shape)


class Channel:
    """One end: messages, descriptors and the memory."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._connection = Connection(os.dup(end.fileno()))
        self.memory: Memory | None = None

    def send(self, message: Any) -> None:
        self._connection.send(message)

    def receive(self) -> Any:
        """The next message. Raises EOFError where the other side is gone."""
        try:
            return self._connection.recv()
        except OSError as error:
            raise EOFError from error

    def poll(self, seconds: float | None) -> bool:
        """Whether a message, or the end, comes within so many seconds."""
        return self._connection.poll(seconds)

    def send_descriptor(self, descriptor: int) -> None:
        socket.send_fds(self._socket, [b"."], [descriptor])

    def receive_memory(self, size: int) -> None:
        """Map the memory whose descriptor comes next."""
        _message, descriptors, _flags, _address = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise EOFError
        try:
            self.memory = Memory(descriptors[0], size)
        finally:
            os.close(descriptors[0])

    def close(self) -> None:
        """Also wakes the other side."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._connection.close()


def anonymous_memory(size: int) -> int:
    """The descriptor of `size` bytes that no name leads to: memory on Linux, elsewhere an unlinked file, as multiprocessing uses.

    Raises OSError where there is no room. The file is written whole: a process that fills a hole of a mapped file on a full
    disk is killed.
    """
    named = not hasattr(os, "memfd_create")
    if named:
        descriptor, path = tempfile.mkstemp(prefix="rvc-coreml-")
        os.unlink(path)
    else:
        descriptor = os.memfd_create("rvc-coreml")
    try:
        if named:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(bytes(size))
        else:
            os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
