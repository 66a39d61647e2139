"""The `Engine` that lives in other processes of this host, reached over unix sockets. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from inference.engine_link import ABSENT, EngineLink
from inference.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed
from inference.ipc import Result
from inference.types import ClassScore, EngineStatus, ModelInfo, Phase, Pixels, Prediction

_PHASES: Final[tuple[Phase, ...]] = ("unavailable", "starting", "downloading", "loading", "compiling", "warming", "ready")


class ProcessEngine:
    """Implements `inference.engine.Engine` over one unix socket for each engine process. All of them serve the same model.

    A picture goes to the engine that is ready and holds the fewest of this worker's; of several, to the one that has waited longest.

    Args:
        sockets: where the engines listen; they may come and go.
        max_pending: the most predictions that one engine may hold for this worker; one more is `Overloaded`, or the newest of the client
            that has most of them is.
    """

    def __init__(self, sockets: Sequence[Path], *, max_pending: int) -> None:
        self._links = [EngineLink(path, max_pending, self._merge_statuses) for path in sockets]
        self._status = ABSENT
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
