"""One API worker and several engines, over real unix sockets: who gets which picture, and what holds when one goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from inference.errors import EngineUnavailable
from inference.ipc import Failure, Result
from inference.process_engine import ProcessEngine
from inference.types import EngineStatus, ModelInfo, Prediction, Preprocessing
from inference.worker.queue import Entry, FairQueue
from inference.worker.server import EngineServer

SIDE = 8
INFO = ModelInfo(
    name="held",
    version="1",
    digest="sha256:00",
    precision="bf16",
    device="cuda:0",
    preprocessing=Preprocessing(resize_px=SIDE, crop_px=SIDE, interpolation="bilinear"),
    labels=("a", "b"),
)


class HeldEngine:
    """An engine whose pictures are answered when the test says so."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.info = msgspec.structs.replace(INFO, device=f"cuda:{number}")
        self.held: list[Entry] = []
        self.server: EngineServer

    async def start(self, *, ready: bool = True) -> None:
        self.server = EngineServer(FairQueue(1000))
        self.server.listen(self.path)
        self.server.admit = self._hold
        if ready:
            self.become_ready()

    def become_ready(self) -> None:
        self.server.publish(EngineStatus(phase="ready", models=(self.info,)))

    def _hold(self, entry: Entry) -> Failure | None:
        self.held.append(entry)
        return None

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            entry = self.held.pop(0)
            entry.reply(Result(entry.id, [1], [1.0], 0.0, 1.0, 1))

    async def die(self) -> None:
        await self.server.aclose()
        self.path.unlink(missing_ok=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the condition is of another end of a socket
            await asyncio.sleep(0.001)


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[list[HeldEngine]]:
    engines = [HeldEngine(tmp_path / f"engine-{number}.sock", number) for number in range(2)]
    yield engines
    for engine in engines:
        if hasattr(engine, "server"):
            await engine.die()


@pytest.fixture
async def worker(engines: list[HeldEngine]) -> AsyncIterator[ProcessEngine]:
    worker = ProcessEngine([engine.path for engine in engines], max_pending=64)
    worker.start()
    yield worker
    await worker.aclose()


def ask(worker: ProcessEngine) -> asyncio.Task[Prediction]:
    return asyncio.create_task(worker.predict(np.zeros((SIDE, SIDE, 3), np.uint8), top_k=1, timeout_s=60, client="c"))


def holding(engines: list[HeldEngine]) -> list[int]:
    return [len(engine.held) for engine in engines]


async def both_ready(engines: list[HeldEngine], worker: ProcessEngine) -> None:
    for engine in engines:
        await engine.start()
    await until(lambda: len(worker.status().models) == 2)


async def test_pictures_are_divided_evenly(engines: list[HeldEngine], worker: ProcessEngine) -> None:
    await both_ready(engines, worker)
    calls = [ask(worker) for _ in range(10)]
    await until(lambda: holding(engines) == [5, 5])
    for engine in engines:
        engine.answer(5)
    assert {(await call).model.device for call in calls} == {"cuda:0", "cuda:1"}


async def test_one_picture_at_a_time_goes_to_each_in_turn(engines: list[HeldEngine], worker: ProcessEngine) -> None:
    await both_ready(engines, worker)
    devices = []
    for _ in range(6):
        call = ask(worker)
        await until(lambda: sum(holding(engines)) == 1)
        next(engine for engine in engines if engine.held).answer()
        devices.append((await call).model.device)
    assert sorted(devices[:2]) == ["cuda:0", "cuda:1"]
    assert devices == devices[:2] * 3


async def test_the_engine_that_answers_faster_gets_more(engines: list[HeldEngine], worker: ProcessEngine) -> None:
    await both_ready(engines, worker)
    slow, fast = engines
    calls = [ask(worker) for _ in range(4)]
    await until(lambda: holding(engines) == [2, 2])
    for _ in range(5):
        fast.answer()
        await until(lambda: sum(call.done() for call in calls) == len(calls) - 3)
        calls.append(ask(worker))
        await until(lambda: sum(holding(engines)) == 4)
    assert holding(engines) == [2, 2]
    slow.answer(2)
    fast.answer(2)
    await asyncio.gather(*calls)


async def test_an_engine_that_is_not_ready_gets_nothing_until_it_is(engines: list[HeldEngine], worker: ProcessEngine) -> None:
    await engines[0].start()
    await engines[1].start(ready=False)
    await until(lambda: worker.status().ready)
    calls = [ask(worker) for _ in range(3)]
    await until(lambda: holding(engines) == [3, 0])
    engines[1].become_ready()
    await until(lambda: len(worker.status().models) == 2)
    calls += [ask(worker) for _ in range(3)]
    await until(lambda: holding(engines) == [3, 3])
    for engine in engines:
        engine.answer(3)
    await asyncio.gather(*calls)


async def test_when_one_dies_its_pictures_fail_at_once_and_the_other_goes_on(engines: list[HeldEngine], worker: ProcessEngine) -> None:
    await both_ready(engines, worker)
    calls = [ask(worker) for _ in range(4)]
    await until(lambda: holding(engines) == [2, 2])
    await engines[0].die()
    await until(lambda: sum(call.done() for call in calls) == 2)
    assert [type(call.exception()) for call in calls if call.done()] == [EngineUnavailable] * 2
    assert worker.status().ready
    assert [model.device for model in worker.status().models] == ["cuda:1"]
    more = [ask(worker) for _ in range(3)]
    await until(lambda: holding(engines)[1] == 5)
    engines[1].answer(5)
    await asyncio.gather(*more, *(call for call in calls if not call.done()))
    engines[0].held.clear()
    await engines[0].start()
    await until(lambda: len(worker.status().models) == 2)
    back = ask(worker)
    await until(lambda: holding(engines) == [1, 0])
    engines[0].answer()
    await back


async def test_it_is_unavailable_only_when_all_are_gone_and_says_what_the_one_furthest_along_does(
    engines: list[HeldEngine], worker: ProcessEngine
) -> None:
    await both_ready(engines, worker)
    await engines[0].die()
    await engines[1].die()
    await until(lambda: not worker.status().ready)
    assert (worker.status().phase, worker.status().models) == ("unavailable", ())
    with pytest.raises(EngineUnavailable):
        await ask(worker)
    await engines[1].start(ready=False)
    engines[1].server.publish(EngineStatus(phase="warming", detail="Warming up the model."))
    await until(lambda: worker.status().phase == "warming")
    assert worker.status().detail == "Warming up the model."


async def test_there_is_one_entry_for_each_engine_in_their_order(engines: list[HeldEngine], worker: ProcessEngine) -> None:
    await engines[1].start()
    await until(lambda: worker.status().ready)
    await engines[0].start()
    await until(lambda: len(worker.status().models) == 2)
    assert [model.device for model in worker.status().models] == ["cuda:0", "cuda:1"]
