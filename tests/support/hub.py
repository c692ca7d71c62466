"""A model hub on loopback: enough of the real one's protocol for metadata, redirects, ranges and broken transfers."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RESOLVE = re.compile(r"^/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")


@dataclass
class Hub:
    """What the server holds and how it behaves. `breaks` are the counts of bytes after which the next transfers break off."""

    url: str = ""
    store: str = ""  # where the bytes lie: another origin, as with the real hub
    files: dict[str, bytes] = field(default_factory=dict)  # "owner/name@revision/file" or "/path" -> content
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    status: int | None = None  # answered to everything
    headers: dict[str, str] = field(default_factory=dict)  # sent with metadata, over the true ones
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def add(self, repository: str, revision: str, name: str, content: bytes) -> None:
        self.files[f"{repository}@{revision}/{name}"] = content

    def transfers(self) -> list[str | None]:
        """The Range header of every request that reached content."""
        return [headers.get("range") for method, path, headers in self.seen if method == "GET" and "/resolve/" not in path]


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            hub.seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
            if hub.status is not None:
                self.finish_with(hub.status, b"")
                return
            asked = _RESOLVE.match(self.path)
            if asked:
                key = f"{asked['repository']}@{asked['revision']}/{asked['file']}"
                content = hub.files.get(key)
                if content is None:
                    self.finish_with(404, b"", {"X-Error-Code": "EntryNotFound"})
                    return
                tag = hashlib.sha256(content).hexdigest()
                described = {
                    "X-Repo-Commit": asked["revision"],
                    "X-Linked-Size": str(len(content)),
                    "X-Linked-Etag": f'"{tag}"',
                    "ETag": f'"{tag}"',
                    "Location": f"{hub.store}/cdn/{key}",
                    **hub.headers,
                }
                self.finish_with(302, b"", described)
                return
            content = hub.files.get(self.path.removeprefix("/cdn/"), hub.files.get(self.path))
            if content is None:
                self.finish_with(404, b"")
            else:
                self.transfer(content, body)

        def transfer(self, content: bytes, body: bool) -> None:
            start = 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked and hub.ranges:
                start = int(asked[1])
                if start >= len(content):
                    self.finish_with(416, b"")
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            part = content[start:]
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if not body:
                return
            if hub.breaks:
                self.wfile.write(part[: hub.breaks.pop(0)])
                self.close_connection = True
                return
            self.wfile.write(part)

        def finish_with(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    servers = [QuietServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub.url, hub.store = (
        f"http://{host}:{server.server_address[1]}" for host, server in zip(("127.0.0.1", "localhost"), servers, strict=True)
    )
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True) for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.daemon_threads = True
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
