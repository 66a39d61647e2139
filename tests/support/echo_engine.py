"""The engine's two halves, to be put together over a real unix socket, with a model whose answer is written in the picture."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.errors import InferenceFailed
from inference.process_engine import ProcessEngine
from inference.types import EngineStatus, ModelInfo, Pixels, Preprocessing
from inference.worker.batcher import Batcher
from inference.worker.metrics import EngineMetrics
from inference.worker.queue import FairQueue
from inference.worker.server import EngineServer

SIDE = 8
INFO = ModelInfo(
    name="echo",
    version="1",
    digest="sha256:00",
    precision="fp32",
    device="cpu",
    preprocessing=Preprocessing(resize_px=SIDE, crop_px=SIDE, interpolation="bilinear"),
    labels=tuple(f"label {number}" for number in range(65_536)),
)
METRICS = EngineMetrics("test")


def picture(number: int) -> Pixels:
    """A picture that says which class it is."""
    pixels = np.full((SIDE, SIDE, 3), 7, np.uint8)
    pixels[0, 0, 0], pixels[0, 0, 1] = number % 256, number // 256
    return pixels


@dataclass
class EchoModel:
    """Answers with the class written in each picture; can be held at the gate, and fails when told to."""

    max_batch: int = 4
    lanes: int = 1
    open: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ran: list[list[int]] = field(default_factory=list)
    seconds_per_batch: float = 0.0
    fails: bool = False
    gives_nan: bool = False
    tested: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    broken: bool = False

    def self_test(self, lane: int) -> None:
        self.tested.release()
        if self.broken:
            raise InferenceFailed("other numbers")

    def batch_size(self, waiting: int) -> int:
        return min(waiting, self.max_batch)

    def infer(self, pixels: Sequence[Pixels], *, lane: int, alone: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        self.entered.release()
        assert self.open.wait(30)
        time.sleep(self.seconds_per_batch)
        if self.fails:
            raise RuntimeError("the device is gone")
        numbers = [int(one[0, 0, 0]) + 256 * int(one[0, 0, 1]) for one in pixels]
        self.ran.append(numbers)
        ids = np.array([[number, (number + 1) % 65_536] for number in numbers], np.int64)
        scores = [np.nan] * 2 if self.gives_nan else [0.75, 0.25]
        return ids, np.tile(np.array(scores, np.float32), (len(numbers), 1))


class Stand:
    """An engine server on a socket, with its device thread, as `inference.worker.process` puts them together."""

    def __init__(self, path: Path, model: EchoModel, *, queue_size: int = 64, seconds_per_batch: float = 0.0) -> None:
        self.path = path
        self.model = model
        self.queue = FairQueue(queue_size)
        self.server = EngineServer(self.queue)
        self.batcher = Batcher(self.queue, model, deliver=self.server.deliver, metrics=METRICS, seconds_per_batch=seconds_per_batch)
        self._thread = threading.Thread(target=self.batcher.run, args=(0,), daemon=True)

    async def start(self) -> None:
        self.server.listen(self.path)
        self.server.admit = self.batcher.admit
        self.server.status = EngineStatus(phase="ready", models=(INFO,))
        self._thread.start()

    async def stop(self) -> None:
        self.model.open.set()
        await self.server.aclose()
        await asyncio.to_thread(self._thread.join, 30)

    async def running(self) -> None:
        """Wait until a batch is at the model."""
        assert await asyncio.to_thread(self.model.entered.acquire, timeout=30)


@asynccontextmanager
async def connected(path: Path, *, max_pending: int) -> AsyncIterator[ProcessEngine]:
    """An API worker's side, connected to an engine that is ready."""
    engine = ProcessEngine([path], max_pending=max_pending)
    engine.start()
    try:
        await until(lambda: engine.status().ready)
        yield engine
    finally:
        await engine.aclose()


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the condition is of another thread or process
            await asyncio.sleep(0.001)
