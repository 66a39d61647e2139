"""One HTTP/1.1 connection of a soak's client. It knows whether a request was out, whole, which decides what counts as lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Final

ANSWER_TIMEOUT_S: Final = 60.0
"""Far past the service's own deadline: whoever waits that long is owed an answer that never comes."""
_CONNECT_TIMEOUT_S: Final = 30.0
_MAX_ANSWER_BYTES: Final = 4 << 20

Endpoint = tuple[str, int]
"""The client's end of a connection."""


class NotSent(Exception):
    """The connection ended before the request was out: nobody was asked anything."""


class Unanswered(Exception):
    """The request was out, whole, and no well-formed answer came; the message says what came instead."""


@dataclass(frozen=True)
class Answer:
    """One answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One connection.

    Args:
        port: the service's, on loopback.
        address: the client's own address, in 127.0.0.0/8: limits are counted by address.
    """

    def __init__(self, port: int, address: str) -> None:
        self._port = port
        self._address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.endpoint: Endpoint = (address, 0)

    async def open(self) -> None:
        """Connect, unless there is a connection that still stands.

        Raises:
            NotSent: nobody listens.
        """
        if self._reader is not None and self._writer is not None and not self._reader.at_eof() and not self._writer.is_closing():
            return
        self.close()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))
        except (OSError, TimeoutError) as error:
            raise NotSent(type(error).__name__) from error
        # So that `drain` returns when the kernel has it all, and not sooner.
        self._writer.transport.set_write_buffer_limits(0)
        self.endpoint = self._writer.get_extra_info("sockname")

    async def ask(self, head: str, body: bytes = b"") -> Answer:
        """Send one request, and read its answer.

        Raises:
            NotSent, Unanswered: as they say.
        """
        await self.open()
        await self.send(head.encode("latin-1") + body)
        return await self.answer()

    async def send(self, data: bytes) -> None:
        """Send bytes on the open connection.

        Raises:
            NotSent: not all of them could be.
        """
        assert self._writer is not None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._writer.write(data)
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            self.close()
            raise NotSent(type(error).__name__) from error

    async def answer(self) -> Answer:
        """Read one answer.

        Raises:
            Unanswered: it did not come whole.
        """
        assert self._reader is not None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                head = await self._reader.readuntil(b"\r\n\r\n")
                status_line, *lines = head[:-4].decode("latin-1").split("\r\n")
                fields = (line.partition(":") for line in lines)
                headers = {name.lower(): value.strip() for name, _, value in fields}
                length = int(headers["content-length"])
                if not 0 <= length <= _MAX_ANSWER_BYTES:
                    raise Unanswered(f"an answer of {length} bytes")
                body = await self._reader.readexactly(length)
        except (OSError, EOFError, TimeoutError, KeyError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise Unanswered(f"{type(error).__name__}: {error}"[:200]) from error
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(status_line.split(" ")[1]), headers, body)

    def close(self) -> None:
        """Close it as a client does that has no more to ask."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    def reset(self) -> None:
        """End it as a client does that has crashed: RST, whatever is under way."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                one: socket.socket = self._writer.get_extra_info("socket")
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        self._reader = self._writer = None


def request_head(method: str, target: str, *lines: str, body_bytes: int | None = None) -> str:
    """The head of a request with these header lines."""
    length = [] if body_bytes is None else [f"Content-Length: {body_bytes}"]
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: lensgate", *lines, *length, "", ""])
