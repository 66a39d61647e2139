"""A TCP proxy as small as one can be: it stands in for the load balancer that operators have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

_READ_BYTES: Final = 65_536


class TcpProxy:
    """Passes every new connection on to `target`, a URL that may be changed at any time."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(30)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, serving = asyncio.get_running_loop(), asyncio.current_task()
        assert serving is not None
        self._serving = serving
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with asyncio.TaskGroup() as connections:
                # Not asyncio.start_server or sock_accept: ended at that very moment, they leave open what they have just accepted.
                self._loop.add_reader(listener, self._accept, listener, connections)
                self._listening.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket, connections: asyncio.TaskGroup) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # the client has left again
            connection, _ = listener.accept()
            connection.setblocking(False)
            # Closed here, because a task that is cancelled before its first step has no last one.
            connections.create_task(self._pass_on(connection)).add_done_callback(lambda _: connection.close())

    async def _pass_on(self, connection: socket.socket) -> None:
        there = urlsplit(self.target)
        back = {"host": there.hostname, "port": there.port}
        with contextlib.suppress(OSError):  # a target that cannot be reached is a client's connection closed
            async with _stream(sock=connection) as (reader, writer), _stream(**back) as (back_reader, back_writer):
                ways = [asyncio.create_task(_copy(reader, back_writer)), asyncio.create_task(_copy(back_reader, writer))]
                try:
                    # The end of either is the end of both.
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()


@contextlib.asynccontextmanager
async def _stream(**address: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:  # noqa: ANN401 # asyncio's own
    """A connection whose last bytes are sent before it closes, but for one that is cancelled."""
    reader, writer = await asyncio.open_connection(**address)
    try:
        yield reader, writer
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    finally:
        writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
