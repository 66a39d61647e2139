"""One engine as an API worker sees it: the connection, its last status, and the predictions that it holds. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from inference.errors import DeadlineExceeded, EngineUnavailable, InferenceError, InferenceFailed, Overloaded
from inference.fair_lines import FairLines
from inference.ipc import Cancel, Failure, FrameProtocol, Predict, Result, StatusChanged, decode_from_engine
from inference.picture_memory import PictureSlots
from inference.types import EngineStatus, ModelInfo, Pixels

_RECONNECT_MIN_S: Final = 0.02
_RECONNECT_MAX_S: Final = 0.5
ABSENT: Final = EngineStatus(phase="starting", detail="The engine is starting.")
_GONE: Final = EngineStatus(phase="unavailable", detail="The engine has stopped and is being restarted.")

_log: Final = structlog.get_logger()


class _Held(NamedTuple):
    """One prediction that an engine has been handed."""

    client: str
    future: asyncio.Future[Result]


class _Wire(NamedTuple):
    """A connection to an engine, and the memory shared with it."""

    frames: FrameProtocol
    slots: PictureSlots


class EngineLink:
    """One engine: its connection, its last status, and the predictions that it holds."""

    def __init__(self, path: Path, max_pending: int, on_status: Callable[[], None]) -> None:
        self.path = path
        self.status = ABSENT
        self.last_id = 0
        """The prediction that it was handed last."""
        self.pending: dict[int, _Held] = {}
        self._lines: FairLines[int] = FairLines()
        self.retry_after_s = 1
        self.heard = asyncio.Event()
        """Set once it has said where it stands, or is known not to be there."""
        self._max_pending = max_pending
        self._on_status = on_status
        self._wire: _Wire | None = None
        self._lost = asyncio.Event()
        self._ending = False

    async def keep(self) -> None:
        """Connect, and connect again whenever the engine comes back, until cancelled."""
        pause_s = _RECONNECT_MIN_S
        while True:
            self._lost.clear()
            frames = FrameProtocol(self._on_message, self._on_lost)
            try:
                # Callers who leave free their places among the pending, not those in the memory: a halted engine does not say that it
                # reads no more.
                with contextlib.closing(PictureSlots(2 * self._max_pending)) as slots:
                    self._wire = _Wire(frames, slots)
                    await self._connect(self._wire)
                    await self._lost.wait()
                    if slots.reserved:  # all went well, once
                        pause_s = _RECONNECT_MIN_S
            except OSError:
                # Not there yet, or being replaced: the supervisor restarts it. Liveness does not hang on this.
                self.heard.set()
            except asyncio.CancelledError:
                self._ending = True
                raise
            finally:
                self._wire = None
                frames.close()
            await asyncio.sleep(pause_s)
            pause_s = min(_RECONNECT_MAX_S, pause_s * 1.5)

    async def _connect(self, wire: _Wire) -> None:
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, str(self.path))
            wire.slots.hand_over(connection)
            await loop.create_unix_connection(lambda: wire.frames, sock=connection)
        except BaseException:
            connection.close()
            raise

    def send(
        self, prediction_id: int, pixels: Pixels, *, top_k: int, deadline_ns: int, client: str, may_displace: bool
    ) -> asyncio.Future[Result]:
        """Hand one picture over; the future gets its answer, and nobody else's."""
        wire = self._wire
        if wire is None:
            raise EngineUnavailable
        if wire.slots.full:
            raise Overloaded(retry_after_s=self.retry_after_s)
        full = len(self.pending) >= self._max_pending
        turned_out = self._lines.put(client, prediction_id, full=full, may_displace=may_displace)
        if turned_out == prediction_id:
            raise Overloaded(retry_after_s=self.retry_after_s)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.pending[prediction_id] = _Held(client, future)
        if turned_out is not None:
            self._turn_out(turned_out)
        offset = wire.slots.put(prediction_id, pixels)
        if not wire.frames.send(Predict(prediction_id, offset, top_k, deadline_ns, client, may_displace=may_displace)):
            self._take(prediction_id)
            raise EngineUnavailable
        self.last_id = prediction_id
        return future

    def _turn_out(self, prediction_id: int) -> None:
        future = self.pending.pop(prediction_id).future
        self._cancel(prediction_id)
        if not future.done():
            future.set_exception(Overloaded(retry_after_s=self.retry_after_s))

    def forget(self, prediction_id: int) -> None:
        """The caller is gone or served; an engine that still holds the picture is told not to run it."""
        if self._take(prediction_id) is not None:
            self._cancel(prediction_id)

    def _cancel(self, prediction_id: int) -> None:
        if self._wire is not None:
            self._wire.frames.send(Cancel(prediction_id))

    def _take(self, prediction_id: int) -> asyncio.Future[Result] | None:
        held = self.pending.pop(prediction_id, None)
        if held is None:
            return None
        self._lines.discard(held.client, prediction_id)
        return held.future

    def _on_message(self, encoded: bytes) -> None:
        message = decode_from_engine(encoded)
        if isinstance(message, StatusChanged):
            if message.status.ready and not self._reserve(message.status.models[0]):
                return
            self._set_status(message.status)
            return
        if self._wire is not None:
            self._wire.slots.free(message.id)
        if isinstance(message, Result):
            # What the newest answer took is the best guess of what the next one will.
            self.retry_after_s = max(1, math.ceil((message.queue_ms + message.infer_ms) / 1000))
        elif message.kind == "overloaded":
            self.retry_after_s = message.retry_after_s
        future = self._take(message.id)
        if future is None or future.done():
            return  # its caller has left
        if isinstance(message, Result):
            future.set_result(message)
        else:
            future.set_exception(_as_error(message))

    def _reserve(self, model: ModelInfo) -> bool:
        """Make room for the model's pictures; without it, the engine is as good as not there."""
        assert self._wire is not None
        try:
            self._wire.slots.reserve(model.preprocessing.crop_px**2 * 3)
        except OSError:
            _log.exception("picture_memory_refused", engine=self.path.stem)
            self._wire.frames.close()
            return False
        return True

    def _set_status(self, status: EngineStatus) -> None:
        self.status = status
        self.heard.set()
        self._on_status()

    def _on_lost(self) -> None:
        self._wire = None
        self._set_status(_GONE)
        held, self.pending, self._lines = self.pending, {}, FairLines()
        for one in held.values():
            if not one.future.done():
                one.future.set_exception(EngineUnavailable("The engine stopped while it held this picture."))
        if not self._ending:
            _log.warning("engine_connection_lost", engine=self.path.stem, held=len(held))
        self._lost.set()


def _as_error(failure: Failure) -> InferenceError:
    match failure.kind:
        case "overloaded":
            return Overloaded(retry_after_s=failure.retry_after_s)
        case "deadline":
            return DeadlineExceeded()
        case "unavailable":
            return EngineUnavailable(retry_after_s=failure.retry_after_s)
        case "failed" | "cancelled":  # cancelled: nobody waits for this
            return InferenceFailed("The prediction failed.")
