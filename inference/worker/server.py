"""The engine's side of the wire: one unix socket, any number of API workers, one queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from inference.ipc import Failure, FrameProtocol, Predict, Result, StatusChanged, decode_from_worker
from inference.picture_memory import ReceivedPictures
from inference.types import EngineStatus
from inference.worker.batcher import Answers
from inference.worker.listener import Listener
from inference.worker.outbox import Outbox
from inference.worker.queue import Entry, FairQueue, Reply

_log: Final = structlog.get_logger()

Admit = Callable[[Entry], Failure | None]


class _Connection:
    """One API worker. What it asked for goes back to it alone: every entry carries its own connection's outbox."""

    def __init__(self, server: EngineServer, pictures: ReceivedPictures, outbox: Outbox) -> None:
        self._server = server
        self._pictures = pictures
        self.outbox = outbox
        self.frames = FrameProtocol(self._on_message, self._on_lost, self._on_made)

    def _on_made(self) -> None:
        self._server.connections.add(self)
        self.outbox.send(StatusChanged(self._server.status))

    def _on_message(self, encoded: bytes) -> None:
        try:
            message = decode_from_worker(encoded)
        except msgspec.MsgspecError:
            _log.exception("engine_frame_refused")
            self.frames.close()
            return
        if isinstance(message, Predict):
            self._predict(message)
        elif self._server.queue.discard((self, message.id)):
            self.outbox.send(Failure(message.id, "cancelled"))

    def _predict(self, message: Predict) -> None:
        status, admit = self._server.status, self._server.admit
        if admit is None or not status.ready:
            self.outbox.send(Failure(message.id, "unavailable"))
            return
        try:
            pixels = self._pictures.picture(message.offset, status.models[0].preprocessing.crop_px)
        except (OSError, ValueError):
            _log.exception("engine_picture_refused", offset=message.offset)
            self.outbox.send(Failure(message.id, "failed"))
            return
        entry = Entry(
            (self, message.id),
            message.id,
            pixels,
            message.top_k,
            message.deadline_ns,
            message.client,
            self.outbox.send,
            may_displace=message.may_displace,
        )
        refusal = admit(entry)
        if refusal is not None:
            self.outbox.send(refusal)

    def _on_lost(self) -> None:
        self._server.connections.discard(self)
        self._server.queue.discard_where(lambda key: isinstance(key, tuple) and key[0] is self)
        self._pictures.close()
        self.outbox.close()


class EngineServer:
    """Listens from the first moment, so that API workers can tell their callers what the engine is doing until it is ready."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.status = EngineStatus(phase="starting", detail="The engine is starting.")
        self.admit: Admit | None = None
        """Set once the model is warm."""
        self.connections: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = None

    def listen(self, path: Path) -> None:
        """Listen at `path`.

        Raises:
            OSError: it cannot.
        """
        self._listener = Listener(path, lambda pictures, outbox: _Connection(self, pictures, outbox).frames)

    def publish(self, status: EngineStatus) -> None:
        """Tell every API worker. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._publish, status)

    def _publish(self, status: EngineStatus) -> None:
        self.status = status
        for connection in self.connections:
            connection.outbox.send(StatusChanged(status))

    def deliver(self, answers: Answers) -> None:
        """Send each answer to the connection that asked. From any thread."""
        messages_to: defaultdict[Reply, list[Result | Failure]] = defaultdict(list)
        for entry, message in answers:
            messages_to[entry.reply].append(message)
        for reply, messages in messages_to.items():
            reply(*messages)

    async def aclose(self) -> None:
        """Stop listening, refuse what waits, and close the connections."""
        if self._listener is not None:
            self._listener.close()
        self.deliver([(entry, Failure(entry.id, "unavailable")) for entry in self.queue.close()])
        for connection in tuple(self.connections):
            connection.frames.close()
        # One turn of the loop lets the connections close.
        await asyncio.sleep(0)
