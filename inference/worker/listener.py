"""Where an engine's connections come from: a socket's file, which may be deleted, and a hello, which must be waited for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from inference.ipc import FrameProtocol
from inference.picture_memory import ReceivedPictures
from inference.worker.outbox import Outbox

_LOOK_EVERY_S: Final = 1.0
_BACKLOG: Final = 128

_log: Final = structlog.get_logger()


class Listener:
    """Listens at one path, and again when somebody has deleted the file, as cleaners of temporary folders do.

    No new API worker could connect otherwise. Those that are connected keep their connections.

    Args:
        path: what a dead predecessor left there is replaced.
        protocol: makes the protocol of a connection whose worker has said hello, of where its pictures are read and its answers put.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, path: Path, protocol: Callable[[ReceivedPictures, Outbox], FrameProtocol]) -> None:
        self._path = path
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._greeting: set[asyncio.Task[None]] = set()
        path.unlink(missing_ok=True)
        self._accepting = self._listen()
        self._looking = asyncio.create_task(self._look_after(), name="look after the socket's file")

    def close(self) -> None:
        """Stop listening. What is connected stays so."""
        for task in (self._looking, self._accepting, *self._greeting):
            task.cancel()

    def _listen(self) -> asyncio.Task[None]:
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(str(self._path))
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        return asyncio.create_task(self._accept(listening), name="accept API workers")

    async def _accept(self, listening: socket.socket) -> None:
        with listening:
            while True:
                try:
                    connection, _ = await self._loop.sock_accept(listening)
                except OSError:  # too many open files, say
                    _log.exception("engine_accept_failed")
                    await asyncio.sleep(_LOOK_EVERY_S)
                else:
                    greeting = asyncio.create_task(self._greet(connection))
                    self._greeting.add(greeting)
                    greeting.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as unless_connected:  # a worker whose connection is closed comes again
            unless_connected.callback(connection.close)
            try:
                pictures = await ReceivedPictures.received(connection)
                unless_connected.callback(pictures.close)
                outbox = Outbox(connection.dup())
                unless_connected.callback(outbox.close)
                await self._loop.connect_accepted_socket(lambda: self._protocol(pictures, outbox), connection)
            except (OSError, ValueError) as error:
                _log.warning("engine_hello_refused", reason=str(error) or type(error).__name__)
            else:
                unless_connected.pop_all()

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._path.exists():
                continue
            _log.warning("engine_socket_gone")
            self._accepting.cancel()
            try:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                self._accepting = self._listen()
            except OSError:  # a full disk, say: there is another look
                _log.exception("engine_socket_lost")
