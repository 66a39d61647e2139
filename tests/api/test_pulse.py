"""The beats between a child and the supervisor, on a real pipe."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from api import pulse as module
from api.pulse import Pulse, PulseMonitor

BEAT_S = 0.05


@pytest.fixture(autouse=True)
def _short_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", BEAT_S)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ours, its = os.pipe()
    yield ours, its
    os.close(its)


async def test_one_that_serves_may_miss_as_many_beats_as_it_may_and_no_more(pipe: tuple[int, int]) -> None:
    ours, its = pipe
    monitor, pulse = PulseMonitor(ours, stuck_after_s=4 * BEAT_S), Pulse(its)
    pulse.beat(serving=True)
    await asyncio.wait_for(monitor.serving.wait(), 30)
    beating = asyncio.create_task(pulse.beat_regularly(lambda: True))
    silent = asyncio.create_task(monitor.until_silent())
    await asyncio.sleep(20 * BEAT_S)
    assert not silent.done()
    beating.cancel()
    await asyncio.wait_for(silent, 30)
    monitor.close()


async def test_one_that_starts_has_far_more_time(pipe: tuple[int, int]) -> None:
    ours, its = pipe
    monitor, pulse = PulseMonitor(ours, stuck_after_s=2 * BEAT_S), Pulse(its)
    pulse.beat(serving=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(monitor.until_silent(), 20 * BEAT_S)
    assert not monitor.serving.is_set()
    monitor.close()


async def test_time_in_which_the_supervisor_itself_stood_still_is_no_silence(pipe: tuple[int, int]) -> None:
    ours, its = pipe
    monitor, pulse = PulseMonitor(ours, stuck_after_s=4 * BEAT_S), Pulse(its)
    pulse.beat(serving=True)
    await asyncio.wait_for(monitor.serving.wait(), 30)
    silent = asyncio.create_task(monitor.until_silent())
    for _ in range(3):
        await asyncio.sleep(BEAT_S)
        time.sleep(8 * BEAT_S)  # noqa: ASYNC251 # the whole process stands still, for twice as long as the child may be silent
    assert not silent.done()
    silent.cancel()
    monitor.close()


async def test_a_pipe_that_nobody_reads_holds_nobody_up(pipe: tuple[int, int]) -> None:
    ours, its = pipe
    pulse = Pulse(its)
    for _ in range(100_000):
        pulse.beat(serving=True)
    os.close(ours)
    pulse.beat(serving=True)


async def test_the_end_of_the_child_is_no_beat() -> None:
    ours, its = os.pipe()
    monitor = PulseMonitor(ours, stuck_after_s=1)
    os.close(its)
    await asyncio.sleep(2 * BEAT_S)
    assert not monitor.serving.is_set()
    monitor.close()
