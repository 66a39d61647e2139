"""The engine's two halves over a real unix socket, with a model whose answer is written in the picture."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded
from inference.process_engine import ProcessEngine
from inference.types import Pixels
from inference.worker.batcher import Batcher
from inference.worker.queue import Entry, FairQueue
from inference.worker.watchdog import ForwardPass
from support.echo_engine import METRICS, SIDE, EchoModel, Stand, connected, picture, until
from support.freed import freed_at_once


@pytest.fixture
async def engine(stand: Stand) -> AsyncIterator[ProcessEngine]:
    async with connected(stand.path, max_pending=64) as engine:
        yield engine


async def test_the_answer_is_that_of_the_picture_with_its_labels_and_timings(stand: Stand, engine: ProcessEngine) -> None:
    stand.model.open.set()
    prediction = await engine.predict(picture(285), top_k=2, timeout_s=30, client="c")
    assert [(score.class_id, score.label, score.confidence) for score in prediction.scores] == [
        (285, "label 285", 0.75),
        (286, "label 286", 0.25),
    ]
    assert prediction.model.name == "echo"
    assert prediction.batch_size == 1
    assert prediction.infer_ms > 0
    assert prediction.queue_ms >= 0


async def test_top_k_cuts_the_answer(stand: Stand, engine: ProcessEngine) -> None:
    stand.model.open.set()
    assert len((await engine.predict(picture(1), top_k=1, timeout_s=30, client="c")).scores) == 1


async def test_what_waits_while_a_batch_runs_becomes_the_next_batch(stand: Stand, engine: ProcessEngine) -> None:
    first = asyncio.create_task(engine.predict(picture(0), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    rest = [asyncio.create_task(engine.predict(picture(n), top_k=1, timeout_s=30, client="c")) for n in range(1, 6)]
    await until(lambda: len(stand.queue) == 5)
    stand.model.open.set()
    await asyncio.gather(first, *rest)
    assert stand.model.ran == [[0], [1, 2, 3, 4], [5]]


async def test_no_picture_gets_the_answer_of_another_among_many_workers_some_of_whom_leave(stand: Stand) -> None:
    stand.model.open.set()
    rng = random.Random(7)
    workers = [ProcessEngine([stand.path], max_pending=64) for _ in range(4)]
    for worker in workers:
        worker.start()
    await until(lambda: all(worker.status().ready for worker in workers))
    numbers = itertools.count()
    answered = 0

    async def client(worker: ProcessEngine, name: str) -> None:
        nonlocal answered
        for _ in range(60):
            number = next(numbers)
            call = asyncio.create_task(worker.predict(picture(number), top_k=2, timeout_s=30, client=name))
            if rng.random() < 0.25:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                call.cancel()
            try:
                prediction = await call
            except (asyncio.CancelledError, Overloaded):
                continue
            assert [score.class_id for score in prediction.scores] == [number, number + 1]
            answered += 1

    await asyncio.gather(*(client(worker, f"client {n}") for n, worker in enumerate(workers * 6)))
    assert answered > 500
    for worker in workers:
        await worker.aclose()


async def test_a_caller_who_leaves_frees_his_place_and_is_never_run(stand: Stand, engine: ProcessEngine) -> None:
    first = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    second = asyncio.create_task(engine.predict(picture(2), top_k=1, timeout_s=30, client="c"))
    await until(lambda: len(stand.queue) == 1)
    second.cancel()
    await until(lambda: len(stand.queue) == 0)
    stand.model.open.set()
    await first
    assert stand.model.ran == [[1]]


async def test_the_pictures_of_a_worker_that_died_are_never_run(stand: Stand, engine: ProcessEngine) -> None:
    first = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    async with connected(stand.path, max_pending=64) as dying:
        second = asyncio.create_task(dying.predict(picture(9), top_k=1, timeout_s=30, client="c"))
        await until(lambda: len(stand.queue) == 1)
    await until(lambda: len(stand.queue) == 0)
    with pytest.raises(EngineUnavailable):
        await second
    stand.model.open.set()
    await first
    assert stand.model.ran == [[1]]


async def test_a_deadline_that_passes_in_the_queue_is_504_and_the_picture_is_never_run(stand: Stand, engine: ProcessEngine) -> None:
    first = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    with pytest.raises(DeadlineExceeded):
        await engine.predict(picture(2), top_k=1, timeout_s=0.05, client="c")
    # uvloop's clock is that of the turn's start: under load its timers end a little before the deadline that the engine goes by.
    await until(lambda: len(stand.queue) == 0)
    stand.model.open.set()
    await first
    assert stand.model.ran == [[1]]


async def test_a_full_queue_is_refused_at_once(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "s", EchoModel(), queue_size=1)
    await stand.start()
    engine = ProcessEngine([stand.path], max_pending=64)
    engine.start()
    await until(lambda: engine.status().ready)
    first = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    second = asyncio.create_task(engine.predict(picture(2), top_k=1, timeout_s=30, client="c"))
    await until(lambda: len(stand.queue) == 1)
    with pytest.raises(Overloaded) as refusal:
        await engine.predict(picture(3), top_k=1, timeout_s=30, client="c")
    assert refusal.value.retry_after_s >= 1
    stand.model.open.set()
    await asyncio.gather(first, second)
    await engine.aclose()
    await stand.stop()


async def test_a_wait_predicted_past_the_deadline_is_refused_at_once_with_its_length(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "s", EchoModel(), seconds_per_batch=7.0)
    await stand.start()
    engine = ProcessEngine([stand.path], max_pending=64)
    engine.start()
    await until(lambda: engine.status().ready)
    first = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    with pytest.raises(Overloaded) as refusal:
        await engine.predict(picture(2), top_k=1, timeout_s=5, client="c")
    assert refusal.value.retry_after_s == 7
    stand.model.open.set()
    await first
    await engine.aclose()
    await stand.stop()


async def test_one_worker_may_hold_no_more_than_its_bound(stand: Stand) -> None:
    engine = ProcessEngine([stand.path], max_pending=1)
    engine.start()
    await until(lambda: engine.status().ready)
    first = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    with pytest.raises(Overloaded):
        await engine.predict(picture(2), top_k=1, timeout_s=30, client="c")
    stand.model.open.set()
    await first
    await engine.aclose()


async def test_what_may_displace_nothing_is_refused_where_another_clients_pictures_fill_the_bound(stand: Stand) -> None:
    engine = ProcessEngine([stand.path], max_pending=3)
    engine.start()
    await until(lambda: engine.status().ready)
    flood = [asyncio.create_task(engine.predict(picture(n), top_k=1, timeout_s=30, client="flood")) for n in range(3)]
    await stand.running()
    with pytest.raises(Overloaded):
        await engine.predict(picture(9), top_k=1, timeout_s=30, client="single", may_displace=False)
    stand.model.open.set()
    assert [one.scores[0].class_id for one in await asyncio.gather(*flood)] == [0, 1, 2]
    await engine.aclose()


async def test_what_a_caller_holds_is_freed_at_once_when_the_engine_does_not_answer(stand: Stand, engine: ProcessEngine) -> None:
    pixels = picture(1)

    async def is_late() -> bool:
        try:
            await engine.predict(pixels, top_k=1, timeout_s=0.05, client="c")
        except DeadlineExceeded:  # pytest.raises would hold on to it
            return True
        return False

    async with freed_at_once(pixels):
        assert await is_late()


async def test_a_failed_forward_pass_fails_its_callers_and_the_next_batch_runs(stand: Stand, engine: ProcessEngine) -> None:
    stand.model.open.set()
    stand.model.fails = True
    with pytest.raises(InferenceFailed):
        await engine.predict(picture(1), top_k=1, timeout_s=30, client="c")
    stand.model.fails = False
    assert (await engine.predict(picture(2), top_k=1, timeout_s=30, client="c")).scores[0].class_id == 2


async def test_an_engine_that_goes_fails_its_callers_at_once_and_is_found_again(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "s", EchoModel())
    await stand.start()
    engine = ProcessEngine([stand.path], max_pending=64)
    engine.start()
    await until(lambda: engine.status().ready)
    held = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=300, client="c"))
    await stand.running()
    for connection in tuple(stand.server.connections):
        connection.frames.close()
    with pytest.raises(EngineUnavailable):
        await held
    await until(lambda: engine.status().ready)
    stand.model.open.set()
    assert (await engine.predict(picture(5), top_k=1, timeout_s=30, client="c")).scores[0].class_id == 5
    await engine.aclose()
    await stand.stop()


async def test_without_an_engine_a_prediction_is_refused_and_the_status_says_so(tmp_path: Path) -> None:
    engine = ProcessEngine([tmp_path / "nobody"], max_pending=64)
    engine.start()
    with pytest.raises(EngineUnavailable):
        await engine.predict(picture(1), top_k=1, timeout_s=30, client="c")
    assert engine.status().phase == "starting"
    await engine.aclose()


async def test_a_picture_of_another_size_fails_alone(stand: Stand, engine: ProcessEngine) -> None:
    stand.model.open.set()
    with pytest.raises(InferenceFailed):
        await engine.predict(np.zeros((SIDE, SIDE + 1, 3), np.uint8), top_k=1, timeout_s=30, client="c")
    assert (await engine.predict(picture(3), top_k=1, timeout_s=30, client="c")).scores[0].class_id == 3


def test_the_device_proves_itself_while_nothing_is_asked_and_ends_the_run_when_it_cannot() -> None:
    model = EchoModel()
    batcher = Batcher(FairQueue(1), model, deliver=lambda _: None, metrics=METRICS, seconds_per_batch=0.0, self_test_every_s=0.001)
    ended: list[Exception] = []

    def work() -> None:
        try:
            batcher.run(0)
        except InferenceFailed as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(3):
        assert model.tested.acquire(timeout=30)
    model.broken = True
    thread.join(30)
    assert [str(error) for error in ended] == ["other numbers"]


@pytest.mark.parametrize("fault", ["fails", "gives_nan"])
async def test_a_device_whose_whole_pass_came_to_nothing_must_prove_itself_before_the_next(
    stand: Stand, engine: ProcessEngine, fault: str
) -> None:
    stand.model.open.set()
    assert (await engine.predict(picture(1), top_k=1, timeout_s=30, client="c")).scores[0].class_id == 1
    assert not stand.model.tested.acquire(blocking=False)
    setattr(stand.model, fault, True)
    with pytest.raises(InferenceFailed):
        await engine.predict(picture(2), top_k=1, timeout_s=30, client="c")
    assert await asyncio.to_thread(stand.model.tested.acquire, timeout=10)  # its regular turn is every 30 s


async def test_what_each_lane_runs_can_be_seen_from_outside(stand: Stand, engine: ProcessEngine) -> None:
    assert stand.batcher.passes() == [None]
    call = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
    await stand.running()
    assert stand.batcher.passes() == [ForwardPass(1, 0.0)]
    stand.model.open.set()
    await call
    await until(lambda: stand.batcher.passes() == [None])


async def test_a_worker_knows_of_an_engine_as_soon_as_it_is_there_or_known_not_to_be(stand: Stand, tmp_path: Path) -> None:
    engine = ProcessEngine([stand.path, tmp_path / "nobody"], max_pending=64)
    engine.start()
    await engine.heard(timeout_s=30)
    assert engine.status().ready
    await engine.aclose()


def test_the_first_lane_comes_first_and_only_it_is_ever_alone() -> None:
    ran: list[tuple[int, int, bool]] = []
    first_is_held, second_has_run = threading.Event(), threading.Event()

    class TwoLanes(EchoModel):
        def infer(self, pixels: Sequence[Pixels], *, lane: int, alone: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            ran.append((lane, len(pixels), alone))
            (first_is_held if lane == 0 else second_has_run).set()
            return super().infer(pixels, lane=lane, alone=alone)

    queue, model = FairQueue(64), TwoLanes(max_batch=4, lanes=2)
    batcher = Batcher(queue, model, deliver=lambda _: None, metrics=METRICS, seconds_per_batch=0.0)
    threads = [threading.Thread(target=batcher.run, args=(lane,)) for lane in (1, 0)]
    threads[0].start()
    assert batcher.admit(Entry(0, 0, picture(0), 1, 2**62, "c", lambda *_: None)) is None
    threads[1].start()
    assert first_is_held.wait(30)
    assert batcher.admit(Entry(1, 1, picture(1), 1, 2**62, "c", lambda *_: None)) is None
    assert second_has_run.wait(30)
    model.open.set()
    queue.close()
    for thread in threads:
        thread.join(30)
    assert ran == [(0, 1, True), (1, 1, False)]


def test_the_predicted_wait_counts_whole_batches_before_this_one() -> None:
    queue = FairQueue(64)
    batcher = Batcher(queue, EchoModel(max_batch=4), deliver=lambda _: None, metrics=METRICS, seconds_per_batch=3.0)
    waits = []
    for number in range(9):
        waits.append(batcher.predicted_wait_s())
        assert batcher.admit(Entry(number, number, picture(number), 1, 2**62, "c", lambda *_: None)) is None
    assert waits == [0.0] * 4 + [3.0] * 4 + [6.0]
