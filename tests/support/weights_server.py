"""A weights server on the loopback that can misbehave in every way a download meets."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WeightsServer:
    """Serves one file over HTTP; `script` holds what to do with each request in turn, the last of it for all that follow."""

    content: bytes
    url: str = ""
    script: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each request that came."""
    asked: threading.Event = field(default_factory=threading.Event)
    """Set once a request has come."""
    release: threading.Event = field(default_factory=threading.Event)
    """What a hanging answer waits for; set at the end of the test."""

    @property
    def name(self) -> str:
        return f"net-{hashlib.sha256(self.content).hexdigest()[:8]}.pth"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.ranges.append(handler.headers["Range"])
        self.asked.set()
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        step(handler)

    def whole(self, handler: BaseHTTPRequestHandler) -> None:
        """Behave: a range where one is asked for, 416 where there is none."""
        self._send(handler, len(self.content))

    def breaking_after(self, length: int) -> Callable[[BaseHTTPRequestHandler], None]:
        """Promise everything, send `length` bytes, close."""
        return lambda handler: self._send(handler, length)

    def hanging_after(self, length: int) -> Callable[[BaseHTTPRequestHandler], None]:
        """Promise everything, send `length` bytes, then nothing until `release`, then the rest."""

        def step(handler: BaseHTTPRequestHandler) -> None:
            self._send(handler, length)
            self.release.wait()
            handler.wfile.write(self.content[length:])

        return step

    def ignoring_range(self, content: bytes | None = None, length: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
        """Send the whole file (or other bytes) from the start whatever is asked for, `length` bytes of it."""
        body = self.content if content is None else content

        def step(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[:length])

        return step

    def without_length(self, handler: BaseHTTPRequestHandler) -> None:
        """Send everything and close, without having said how much there is."""
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(self.content)

    def silent(self, handler: BaseHTTPRequestHandler) -> None:
        """Take the request and never answer it."""
        self.release.wait()

    @staticmethod
    def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def step(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(code)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return step

    def _send(self, handler: BaseHTTPRequestHandler, length: int) -> None:
        total = len(self.content)
        asked_range = handler.headers["Range"]
        start = int(asked_range.removeprefix("bytes=").removesuffix("-")) if asked_range else 0
        if start >= total:
            self.status(416)(handler)
            return
        handler.send_response(206 if asked_range else 200)
        if asked_range:
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        handler.send_header("Content-Length", str(total - start))
        handler.end_headers()
        handler.wfile.write(self.content[start : start + length])
        handler.wfile.flush()


@contextmanager
def serve_weights(content: bytes) -> Iterator[WeightsServer]:
    """Serve `content` under a name with its hash, at `WeightsServer.url`, until the context ends."""
    served = WeightsServer(content=content)
    served.script = [served.whole]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Keep the test's output clean."""

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has left is part of these tests."""

    with QuietServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}/models/{served.name}"
        try:
            yield served
        finally:
            served.release.set()
            server.shutdown()
            thread.join()
