"""The engine's side of the wire: one unix socket, any number of API workers, one queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import structlog

from inference.ipc import Cancel, Failure, FrameProtocol, Predict, StatusChanged, decode_from_worker
from inference.types import EngineStatus
from inference.worker.batcher import Answers
from inference.worker.queue import Entry, FairQueue

LOOK_EVERY_S: Final = 1.0

_log: Final = structlog.get_logger()

Admit = Callable[[Entry], Failure | None]


class _Connection:
    """One API worker. What it asked for goes back to it alone: every entry carries its own connection's `send`."""

    def __init__(self, server: EngineServer) -> None:
        self._server = server
        self.frames = FrameProtocol(self._on_frame, self._on_lost, self._on_made)

    def _on_made(self) -> None:
        self._server.connections.add(self)
        self.frames.send(StatusChanged(self._server.status))

    def _on_frame(self, meta: bytes, payload: bytearray) -> None:
        try:
            message = decode_from_worker(meta)
        except msgspec.MsgspecError:
            _log.exception("engine_frame_refused")
            self.frames.close()
            return
        if isinstance(message, Cancel):
            self._server.queue.discard((self, message.id))
        else:
            self._predict(message, payload)

    def _predict(self, message: Predict, payload: bytearray) -> None:
        status, admit = self._server.status, self._server.admit
        if admit is None or not status.ready:
            self.frames.send(Failure(message.id, "unavailable"))
            return
        side = status.models[0].preprocessing.crop_px
        if len(payload) != side * side * 3:
            _log.error("engine_payload_refused", expected_bytes=side * side * 3, received_bytes=len(payload))
            self.frames.send(Failure(message.id, "failed"))
            return
        pixels = np.frombuffer(payload, np.uint8).reshape(side, side, 3)
        entry = Entry((self, message.id), message.id, pixels, message.top_k, message.deadline_ns, message.client, self.frames.send)
        refusal = admit(entry)
        if refusal is not None:
            self.frames.send(refusal)

    def _on_lost(self) -> None:
        self._server.connections.discard(self)
        self._server.queue.discard_where(lambda key: isinstance(key, tuple) and key[0] is self)


class EngineServer:
    """Listens from the first moment, so that API workers can tell their callers what the engine is doing until it is ready."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.status = EngineStatus(phase="starting", detail="The engine is starting.")
        self.admit: Admit | None = None
        """Set once the model is warm."""
        self.connections: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.AbstractServer | None = None
        self._looking: asyncio.Task[None] | None = None

    async def listen(self, path: Path) -> None:
        """Listen at `path`, replacing what a dead predecessor left there."""
        path.unlink(missing_ok=True)
        await self._bind(path)
        self._looking = asyncio.create_task(self._look_after(path), name="look after the socket's file")

    async def _bind(self, path: Path) -> None:
        self._server = await self._loop.create_unix_server(lambda: _Connection(self).frames, str(path))

    async def _look_after(self, path: Path) -> None:
        """Listen again when somebody has deleted the file, as cleaners of temporary folders do: no new API worker could connect.

        Those that are connected keep their connections.
        """
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if path.exists() or self._server is None:
                continue
            _log.warning("engine_socket_gone")
            self._server.close()
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                await self._bind(path)
            except OSError:  # a full disk, say: there is another look
                _log.exception("engine_socket_lost")

    def publish(self, status: EngineStatus) -> None:
        """Tell every API worker. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._publish, status)

    def _publish(self, status: EngineStatus) -> None:
        self.status = status
        for connection in self.connections:
            connection.frames.send(StatusChanged(status))

    def deliver(self, answers: Answers) -> None:
        """Send each answer to the connection that asked. From any thread."""
        with contextlib.suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(_deliver, answers)

    async def aclose(self) -> None:
        """Stop listening, refuse what waits, and close the connections."""
        if self._looking is not None:
            self._looking.cancel()
        if self._server is not None:
            self._server.close()
        _deliver([(entry, Failure(entry.id, "unavailable")) for entry in self.queue.close()])
        for connection in tuple(self.connections):
            connection.frames.close()
        # One turn of the loop lets the transports flush and close.
        await asyncio.sleep(0)


def _deliver(answers: Answers) -> None:
    for entry, message in answers:
        entry.reply(message)
