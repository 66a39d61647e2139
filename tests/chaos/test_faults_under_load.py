"""Every fault of the soak, one at a time, while honest clients ask: each of them gets a right answer or is told to come back.

Real processes and real signals. What a fault may cost is written down here for each; nothing ever may be lost or wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import psutil
import pytest

from soak.faults import Faults, redis_is_lost
from soak.gate import Gate
from soak.honest import HONEST, Honest
from soak.ledger import Ledger
from soak.pictures import Photograph, photographs
from support.redis_server import redis_server

APPS: Final = 4
PACE: Final = 0.2
SETTINGS: Final = {"LENSGATE_INFERENCE__STUCK_AFTER_S": "2"}
_PAUSE_S: Final = 0.05
_REDIS_IS_BACK_S: Final = 40.0
_SERVED_BEFORE: Final = 8


class Family(NamedTuple):
    """Who runs."""

    engine: psutil.Process
    workers: frozenset[psutil.Process]

    @classmethod
    def of(cls, gate: Gate) -> Family:
        return cls(gate.engine(), frozenset(gate.workers()))


class Town:
    """The service with its clients."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.clients = asyncio.run(gate.register(*(f"app-{number}" for number in range(APPS))))
        self.pictures: list[Photograph] = photographs()

    def suffer(self, fault: str) -> Ledger:
        """One fault under load; what came of it."""
        return asyncio.run(self._suffer(fault))

    async def _suffer(self, fault: str) -> Ledger:
        ledger, stop = Ledger(), asyncio.Event()
        apps = [
            Honest(self.gate.port, f"127.0.3.{number + 1}", one, self.pictures, ledger, keep_alive=number % 2 == 0, random=Random(number))
            for number, one in enumerate(self.clients.values())
        ]
        if self.pictures[0].expected is None:
            await apps[0].learn()
        running = asyncio.gather(*(app.run(stop, pause_s=_PAUSE_S) for app in apps))
        try:
            await self._served(ledger, _SERVED_BEFORE)
            await Faults(self.gate, ledger, self.clients, Random(5), pace=PACE).strike(fault)
            await self._served(ledger, _SERVED_BEFORE)
        finally:
            stop.set()
            await running
        return ledger

    async def _served(self, ledger: Ledger, more: int) -> None:
        wanted = ledger.images + more
        async with asyncio.timeout(60):
            while ledger.images < wanted:  # noqa: ASYNC110  counted by the clients
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with redis_server() as redis, Gate(tmp_path_factory.mktemp("chaos"), redis, compile_model="off", extra=SETTINGS) as gate:
        gate.wait_ready()
        yield Town(gate)


def test_every_fault_of_the_soak_is_tried_here(town: Town) -> None:
    tried = Path(__file__).read_text()
    faults = Faults(town.gate, Ledger(), town.clients, Random())
    assert [name for name in (*faults.deadly, *faults.mild) if f'"{name}"' not in tried] == []


def statuses(ledger: Ledger) -> set[int]:
    return {status for (who, status, _), count in ledger.answers.items() if count and who == HONEST}


def assert_nobody_was_failed(ledger: Ledger) -> None:
    assert ledger.lost.first == []
    assert ledger.wrong.first == []
    assert ledger.cut.count <= ledger.held_by_killed


@pytest.fixture
def strike(town: Town) -> Callable[[str], tuple[Ledger, Family, Family]]:
    def run(fault: str) -> tuple[Ledger, Family, Family]:
        before = Family.of(town.gate)
        ledger = town.suffer(fault)
        assert_nobody_was_failed(ledger)
        return ledger, before, Family.of(town.gate)

    return run


Strike = Callable[[str], tuple[Ledger, Family, Family]]


def test_an_engine_that_is_killed_costs_503_and_nothing_else_is_restarted(strike: Strike) -> None:
    ledger, before, after = strike("engine SIGKILL")
    assert statuses(ledger) == {200, 503}
    assert after.engine != before.engine
    assert after.workers == before.workers
    assert ledger.cut.count == 0


def test_an_engine_that_stands_still_is_replaced_and_costs_503_and_504(strike: Strike) -> None:
    ledger, before, after = strike("engine SIGSTOP")
    assert statuses(ledger) <= {200, 503, 504}
    assert statuses(ledger) & {503, 504}
    assert after.engine != before.engine
    assert after.workers == before.workers


def test_without_the_engines_socket_file_a_new_worker_finds_the_engine_all_the_same(strike: Strike) -> None:
    ledger, before, after = strike("ipc socket deleted, API worker SIGKILL")
    assert after.engine == before.engine
    assert len(after.workers & before.workers) == 1
    assert statuses(ledger) <= {200, 503}


def test_an_api_worker_that_is_killed_costs_what_it_held_and_the_other_goes_on(strike: Strike) -> None:
    ledger, before, after = strike("API worker SIGKILL")
    assert after.engine == before.engine
    assert len(after.workers & before.workers) == 1
    assert len(after.workers) == 2
    # The new one knows of no engine in its first moment.
    assert statuses(ledger) <= {200, 503}


def test_a_decoder_that_is_killed_costs_503_at_most_and_nothing_else_is_restarted(strike: Strike) -> None:
    ledger, before, after = strike("decoder SIGKILL")
    assert after == before
    assert statuses(ledger) <= {200, 503}
    assert sum(count for (who, status, _), count in ledger.answers.items() if (who, status) == (HONEST, 503)) <= 1
    assert ledger.cut.count == 0


@pytest.mark.parametrize("fault", ["Redis gone", "Redis SIGSTOP", "Redis CLIENT PAUSE", "Redis restarted"])
def test_without_its_redis_every_request_is_served(strike: Strike, town: Town, fault: str) -> None:
    lines = len(town.gate.log)
    # A machine that is busy with other things loses it too, for up to 17 s, and what is lost already cannot be taken away.
    deadline_s = time.monotonic() + _REDIS_IS_BACK_S
    while redis_is_lost(town.gate):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    ledger, before, after = strike(fault)
    assert statuses(ledger) == {200}
    assert after == before
    lost = town.gate.wait_for("rate_limit_storage_lost", after=lines, timeout_s=1)
    town.gate.wait_for("rate_limit_storage_back", after=town.gate.log.index(lost), timeout_s=_REDIS_IS_BACK_S)


@pytest.mark.parametrize("fault", ["signing key rotated", "client secret rotated", "database locked", "log not read"])
def test_what_an_operator_or_his_disk_does_costs_no_request(strike: Strike, fault: str) -> None:
    ledger, before, after = strike(fault)
    assert statuses(ledger) == {200}
    assert after == before
    assert ledger.faults == {fault: 1}
