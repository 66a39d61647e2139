"""One client's flood and another client's single pictures: real sockets, real queues, a device that takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inference.errors import Overloaded
from inference.ipc import Failure
from inference.process_engine import ProcessEngine
from inference.types import Prediction
from inference.worker.queue import Entry
from support.echo_engine import EchoModel, Stand, picture, until

QUEUE_SIZE = 16
MAX_BATCH = 4
FLOOD = 10 * (QUEUE_SIZE + MAX_BATCH)
"""Ten times what the engine can hold."""
SECONDS_PER_BATCH = 0.002
SINGLE = 10_000
"""The number of the other client's first picture; below are those of the flood."""


@asynccontextmanager
async def served(
    folder: Path, *, workers: int, max_pending: int = QUEUE_SIZE, seconds_per_batch: float = SECONDS_PER_BATCH
) -> AsyncIterator[tuple[Stand, list[ProcessEngine]]]:
    stand = Stand(
        folder / "s",
        EchoModel(max_batch=MAX_BATCH, seconds_per_batch=SECONDS_PER_BATCH),
        queue_size=QUEUE_SIZE,
        seconds_per_batch=seconds_per_batch,
    )
    await stand.start()
    engines = [ProcessEngine([stand.path], max_pending=max_pending) for _ in range(workers)]
    for engine in engines:
        engine.start()
    await until(lambda: all(engine.status().ready for engine in engines))
    try:
        yield stand, engines
    finally:
        for engine in engines:
            await engine.aclose()
        await stand.stop()


async def flood(engine: ProcessEngine, number: int, refused: list[int]) -> None:
    """One of the flood's many callers: asks again at once, whatever the answer is."""
    while True:
        try:
            await engine.predict(picture(number), top_k=1, timeout_s=300, client="flood")
        except Overloaded:
            refused.append(number)
            await asyncio.sleep(0.001)


def watch_admissions(stand: Stand) -> dict[int, int]:
    """How many batches had been run when each of the other client's pictures had just been put into the queue, by its number."""
    run_before: dict[int, int] = {}
    admit = stand.batcher.admit

    def watched(entry: Entry) -> Failure | None:
        refusal = admit(entry)
        if entry.client == "single":
            run_before[number_of(entry)] = len(stand.model.ran)
        return refusal

    stand.server.admit = watched
    return run_before


def number_of(entry: Entry) -> int:
    return int(entry.pixels[0, 0, 0]) + 256 * int(entry.pixels[0, 0, 1])


async def test_behind_a_flood_of_ten_times_capacity_nobody_else_is_refused_or_waits_for_more_than_one_batch(tmp_path: Path) -> None:
    async with served(tmp_path, workers=2) as (stand, engines):
        stand.model.open.set()
        refused: list[int] = []
        callers = [asyncio.create_task(flood(engines[number % 2], number, refused)) for number in range(FLOOD)]
        try:
            await until(lambda: len(refused) > FLOOD)
            run_before = watch_admissions(stand)
            for number in range(SINGLE, SINGLE + 40):
                engine = engines[number % 2]  # through both workers: each holds as many of the flood's as it may
                prediction = await engine.predict(picture(number), top_k=1, timeout_s=300, client="single")
                assert prediction.scores[0].class_id == number
                place = next(place for place, batch in enumerate(stand.model.ran) if number in batch)
                # The batch that was at the device when it came; then its own.
                assert place - run_before[number] <= 1
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)


async def test_a_flood_whose_wait_is_past_every_deadline_is_refused_and_nobody_else_is(tmp_path: Path) -> None:
    # By its first, far too long measurement each batch takes 10 s: the one that runs, and two that wait.
    async with served(tmp_path, workers=1, max_pending=1000, seconds_per_batch=10.0) as (stand, (engine,)):
        waiting = [asyncio.create_task(engine.predict(picture(n), top_k=1, timeout_s=300, client="flood")) for n in range(12)]
        await stand.running()
        await until(lambda: len(stand.queue) == 8)
        with pytest.raises(Overloaded) as refusal:
            await engine.predict(picture(20), top_k=1, timeout_s=15, client="flood")
        assert refusal.value.retry_after_s == 30
        single = asyncio.create_task(engine.predict(picture(SINGLE), top_k=1, timeout_s=15, client="single"))
        await until(lambda: len(stand.queue) == 9)
        stand.model.open.set()
        await asyncio.gather(single, *waiting)
        assert SINGLE in stand.model.ran[1]


async def flooded(stand: Stand, engine: ProcessEngine) -> list[asyncio.Task[Prediction]]:
    """What one client waits for that has filled the engine's queue; the last is the newest."""
    flooding = [asyncio.create_task(engine.predict(picture(n), top_k=1, timeout_s=300, client="flood")) for n in range(MAX_BATCH)]
    await stand.running()
    await until(lambda: len(stand.queue) <= MAX_BATCH)
    room = QUEUE_SIZE - len(stand.queue)
    flooding += [asyncio.create_task(engine.predict(picture(100 + n), top_k=1, timeout_s=300, client="flood")) for n in range(room)]
    await until(lambda: len(stand.queue) == QUEUE_SIZE)
    return flooding


async def test_what_gives_way_in_the_engines_queue_is_answered_and_never_run(tmp_path: Path) -> None:
    async with served(tmp_path, workers=2, max_pending=1000) as (stand, engines):
        flooding = await flooded(stand, engines[0])
        newest = max(_waiting(stand))
        single = asyncio.create_task(engines[1].predict(picture(SINGLE), top_k=1, timeout_s=300, client="single"))
        await asyncio.wait({flooding[-1]}, timeout=30)
        assert isinstance(flooding[-1].exception(), Overloaded)
        stand.model.open.set()
        await asyncio.gather(single, *flooding[:-1])
        assert newest not in [number for batch in stand.model.ran for number in batch]


async def test_what_may_displace_nothing_is_refused_by_an_engine_whose_queue_another_workers_pictures_fill(tmp_path: Path) -> None:
    async with served(tmp_path, workers=2, max_pending=1000) as (stand, engines):
        flooding = await flooded(stand, engines[0])
        with pytest.raises(Overloaded):
            await engines[1].predict(picture(SINGLE), top_k=1, timeout_s=300, client="single", may_displace=False)
        stand.model.open.set()
        await asyncio.gather(*flooding)


async def test_what_gives_way_in_a_worker_is_taken_back_from_the_engine(tmp_path: Path) -> None:
    async with served(tmp_path, workers=1, max_pending=6) as (stand, (engine,)):
        flooding = [asyncio.create_task(engine.predict(picture(n), top_k=1, timeout_s=300, client="flood")) for n in range(6)]
        await stand.running()
        single = asyncio.create_task(engine.predict(picture(SINGLE), top_k=1, timeout_s=300, client="single"))
        await asyncio.wait({flooding[-1]}, timeout=30)
        assert isinstance(flooding[-1].exception(), Overloaded)
        await until(lambda: _waiting(stand) >= {SINGLE} and 5 not in _waiting(stand))
        stand.model.open.set()
        await asyncio.gather(single, *flooding[:-1])
        # One that comes when all have been answered finds everything as it was.
        for number in range(6):
            assert (await engine.predict(picture(number), top_k=1, timeout_s=300, client="flood")).scores[0].class_id == number


def _waiting(stand: Stand) -> set[int]:
    return {number_of(entry) for entry in stand.queue._lines}
