"""A client that speaks HTTP byte by byte, so that a test can send what no library would."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

_MAX_ANSWER_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class RawAnswer:
    """One answer. Header names are in lower case; of a repeated header, all values."""

    status: int
    headers: dict[str, list[str]]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header that must be there once."""
        (value,) = self.headers[name]
        return value

    def problem(self) -> dict[str, Any]:
        """The body of a refusal."""
        assert self.header("content-type") == "application/problem+json", self
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        assert found["request_id"] == self.header("x-request-id")
        return found


class ConnectionClosed(Exception):
    """The server closed the connection before a whole answer had come."""


class RawConnection:
    """One connection to the server at `url`.

    Args:
        url: where the server listens.
        timeout_s: for every operation of the socket.
        receive_buffer_bytes: the kernel's buffer for what is not read yet; small ones make a reader slow.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, receive_buffer_bytes: int | None = None) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            self.socket.connect((parts.hostname, parts.port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def request(self, method: str, target: str, *headers: str, body: bytes = b"", host: bool = True) -> None:
        """Send a request with these header lines, and nothing that was not asked for but Host."""
        lines = [f"{method} {target} HTTP/1.1", *([f"Host: {self.host}"] if host else []), *headers, "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)

    def push(self, total_bytes: int, *, piece: bytes = b"x" * 65_536) -> int:
        """Send so many bytes, or as many as the server takes before it closes; how many that was."""
        sent = 0
        try:
            while sent < total_bytes:
                sent += self.socket.send(piece[: total_bytes - sent])
        except (ConnectionError, TimeoutError):
            pass
        return sent

    def answer(self, *, head_only: bool = False) -> RawAnswer:
        """Read one answer.

        Raises:
            ConnectionClosed: it does not come.
        """
        while b"\r\n\r\n" not in self._unread:
            self._read_more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip())
        status = int(status_line.split(" ")[1])
        if status == 100:
            return RawAnswer(status, headers, b"")
        length = 0 if head_only else int(headers["content-length"][0])
        while len(self._unread) < length:
            self._read_more()
        body, self._unread = self._unread[:length], self._unread[length:]
        return RawAnswer(status, headers, body)

    def closed_after_s(self) -> float:
        """Wait until the server has closed the connection; how long that took, in seconds. What still comes is thrown away."""
        began_s = time.monotonic()
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionError:
            pass
        return time.monotonic() - began_s

    def _read_more(self) -> None:
        assert len(self._unread) < _MAX_ANSWER_BYTES
        try:
            data = self.socket.recv(65_536)
        except ConnectionError as error:
            raise ConnectionClosed from error
        if not data:
            raise ConnectionClosed
        self._unread += data
