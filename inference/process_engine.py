"""The `Engine` that lives in other processes of this host, reached over unix sockets. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from inference.errors import DeadlineExceeded, EngineUnavailable, InferenceError, InferenceFailed, Overloaded
from inference.fair_lines import FairLines
from inference.ipc import Cancel, Failure, FrameProtocol, Predict, Result, StatusChanged, decode_from_engine
from inference.picture_memory import PictureSlots
from inference.types import ClassScore, EngineStatus, ModelInfo, Phase, Pixels, Prediction

_RECONNECT_MIN_S: Final = 0.02
_RECONNECT_MAX_S: Final = 0.5
_ABSENT: Final = EngineStatus(phase="starting", detail="The engine is starting.")
_GONE: Final = EngineStatus(phase="unavailable", detail="The engine has stopped and is being restarted.")
_PHASES: Final[tuple[Phase, ...]] = ("unavailable", "starting", "downloading", "loading", "compiling", "warming", "ready")

_log: Final = structlog.get_logger()


class _Held(NamedTuple):
    """One prediction that an engine has been handed."""

    client: str
    future: asyncio.Future[Result]


class _Wire(NamedTuple):
    """A connection to an engine, and the memory shared with it."""

    frames: FrameProtocol
    slots: PictureSlots


class _Link:
    """One engine: its connection, its last status, and the predictions that it holds."""

    def __init__(self, path: Path, max_pending: int, on_status: Callable[[], None]) -> None:
        self.path = path
        self.status = _ABSENT
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


class ProcessEngine:
    """Implements `inference.engine.Engine` over one unix socket for each engine process. All of them serve the same model.

    A picture goes to the engine that is ready and holds the fewest of this worker's; of several, to the one that has waited longest.

    Args:
        sockets: where the engines listen; they may come and go.
        max_pending: the most predictions that one engine may hold for this worker; one more is `Overloaded`, or the newest of the client
            that has most of them is.
    """

    def __init__(self, sockets: Sequence[Path], *, max_pending: int) -> None:
        self._links = [_Link(path, max_pending, self._merge_statuses) for path in sockets]
        self._status = _ABSENT
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to connect, on the running event loop. Returns at once."""
        self._tasks = [asyncio.create_task(link.keep(), name=f"engine link {link.path.name}") for link in self._links]

    async def heard(self, *, timeout_s: float) -> None:
        """Wait until it is known of every engine where it stands, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for link in self._links:
                    await link.heard.wait()

    async def predict(self, pixels: Pixels, *, top_k: int, timeout_s: float, client: str, may_displace: bool = True) -> Prediction:
        """See `inference.engine.Engine.predict`."""
        ready = [link for link in self._links if link.status.ready]
        if not ready:
            raise EngineUnavailable
        link = min(ready, key=lambda link: (len(link.pending), link.last_id))
        model = link.status.models[0]
        side = model.preprocessing.crop_px
        if pixels.shape != (side, side, 3):
            raise InferenceFailed(f"The model takes pictures of {side} by {side} pixels.")
        prediction_id = next(self._ids)
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        future = link.send(prediction_id, pixels, top_k=top_k, deadline_ns=deadline_ns, client=client, may_displace=may_displace)
        # The engine drops what is late; this is for an engine that no longer answers at all.
        late = asyncio.get_running_loop().call_later(timeout_s, _give_up, future)
        try:
            result = await future
        finally:
            late.cancel()
            link.forget(prediction_id)
            # It may hold an error whose traceback holds this frame: only the garbage collector would find the two, and the caller's frames.
            del future
        return _as_prediction(result, model, link.path.stem)

    def status(self) -> EngineStatus:
        """The status of the engine furthest along, with the models of all that are ready."""
        return self._status

    def _merge_statuses(self) -> None:
        statuses = [link.status for link in self._links]
        furthest = max(statuses, key=lambda status: _PHASES.index(status.phase))
        models = tuple(model for status in statuses if status.ready for model in status.models)
        self._status = msgspec.structs.replace(furthest, models=models) if furthest.ready else furthest

    async def aclose(self) -> None:
        """Disconnect; predictions still waiting raise `EngineUnavailable`."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _give_up(future: asyncio.Future[Result]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded())


def _as_prediction(result: Result, model: ModelInfo, engine: str) -> Prediction:
    scores = tuple(
        ClassScore(class_id, model.labels[class_id], probability)
        for class_id, probability in zip(result.class_ids, result.probabilities, strict=True)
    )
    return Prediction(
        scores=scores,
        model=model,
        queue_ms=result.queue_ms,
        infer_ms=result.infer_ms,
        batch_size=result.batch_size,
        engine=engine,
    )
