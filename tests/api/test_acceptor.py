"""Several workers take connections from one port in turn. Real sockets and a real event loop, which here is all workers' own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from api import acceptor
from api.acceptor import Acceptor
from support.connection_counts import connection_counts

WAIT_S = 10.0
EVEN = 4
"""By how many connections workers differ that have few of them."""


class Port:
    """A port, its workers, and their clients. A worker that is not `started` takes nothing."""

    def __init__(self, workers: int) -> None:
        self.counts = connection_counts(workers)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.taken: list[list[socket.socket]] = [[] for _ in range(workers)]
        self.acceptors: dict[int, Acceptor] = {}
        self.clients: list[socket.socket] = []
        self.changed = asyncio.Event()

    def start(self, *workers: int) -> None:
        for worker in workers:
            self.acceptors[worker] = Acceptor(self.listener.dup(), self.counts, worker, partial(self._serve, worker))

    async def _serve(self, worker: int, connection: socket.socket) -> None:
        self.taken[worker].append(connection)
        self.changed.set()

    async def close(self, worker: int) -> None:
        await self.acceptors.pop(worker).close(WAIT_S)

    def lose(self, worker: int, count: int) -> None:
        """So many of a worker's connections end."""
        for _ in range(count):
            self.taken[worker].pop().close()
            self.acceptors[worker].count(-1)

    def connect(self, count: int) -> None:
        """So many clients come before any worker can look."""
        self.clients += [socket.create_connection(self.listener.getsockname(), timeout=WAIT_S) for _ in range(count)]

    async def spread(self, total: int) -> list[int]:
        """How many connections each worker has, once all are taken."""
        async with asyncio.timeout(WAIT_S):
            while sum(map(len, self.taken)) < total:
                self.changed.clear()
                await self.changed.wait()
        return [len(connections) for connections in self.taken]

    async def miss(self, count: int) -> None:
        """The second of two workers has so many connections and is halted: the first waits for it, and then takes ten by itself."""
        self.start(0)
        self.counts.set(1, count)
        self.connect(10)
        assert await self.spread(10) == [10, 0]

    async def aclose(self) -> None:
        for worker in list(self.acceptors):
            await self.close(worker)
        for connection in (self.listener, *self.clients, *(one for connections in self.taken for one in connections)):
            connection.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def port(workers: int) -> AsyncIterator[Port]:
    made = Port(workers)
    try:
        yield made
    finally:
        await made.aclose()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(scenario())


def test_clients_that_come_at_once_are_spread_evenly() -> None:
    async def scenario() -> None:
        async with port(4) as one:
            one.start(0, 1, 2, 3)
            one.connect(18)
            spread = await one.spread(18)
            assert max(spread) - min(spread) <= EVEN

    run(scenario)


def test_of_many_connections_a_sixteenth_more_is_even_enough() -> None:
    async def scenario() -> None:
        async with port(2) as one:
            one.start(0, 1)
            one.connect(320)
            few, many = sorted(await one.spread(320))
            assert EVEN < many - few <= EVEN + 10  # the less even, the less has one waited for the other

    run(scenario)


def test_new_ones_go_to_whoever_has_lost_some_until_it_has_as_many() -> None:
    async def scenario() -> None:
        async with port(3) as one:
            one.start(0, 1, 2)
            one.connect(15)
            spread = await one.spread(15)
            fewest = spread.index(min(spread))
            one.lose(fewest, spread[fewest])
            one.connect(spread[fewest])
            assert (await one.spread(15))[fewest] >= max(spread) - EVEN

    run(scenario)


def test_a_single_worker_takes_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_PATIENCE_S", 2 * WAIT_S)
        async with port(2) as one:  # the second is the place of the one that will renew it
            one.start(0)
            one.connect(200)
            assert await one.spread(200) == [200, 0]

    run(scenario)


def test_those_that_do_not_come_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_PATIENCE_S", WAIT_S / 10)
        monkeypatch.setattr(acceptor, "_ABSENCE_S", 2 * WAIT_S)
        async with port(3) as one:
            one.start(0)
            for worker, count in ((1, 0), (2, 1)):  # they are there, and halted, and missed at different times
                one.counts.set(worker, count)
            one.connect(30)
            began_s = time.process_time()
            assert await one.spread(30) == [30, 0, 0]
            assert time.process_time() - began_s < WAIT_S / 20  # of the WAIT_S / 5 that it waited

    run(scenario)


def test_one_that_did_not_come_has_its_turn_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_ABSENCE_S", 0.2)
        async with port(2) as one:
            await one.miss(0)
            await asyncio.sleep(0.3)
            one.start(1)
            one.connect(10)
            assert (await one.spread(20))[1] >= 10 - EVEN

    run(scenario)


def test_one_that_stood_still_for_a_moment_has_its_turn_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_ABSENCE_S", 2 * WAIT_S)
        async with port(2) as one:
            await one.miss(1)
            one.start(1)  # with none
            one.connect(10)
            assert (await one.spread(20))[1] >= 10 - EVEN

    run(scenario)


def test_one_that_is_at_it_is_waited_for_on_and_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_PATIENCE_S", 0.05)
        async with port(2) as one:
            one.start(0)
            one.connect(20)
            assert await one.spread(20) == [20, 0]
            one.counts.set(1, 0)
            one.connect(1)
            for count in range(1, 14):  # it takes others, which come before
                await asyncio.sleep(0.02)
                one.counts.set(1, count)
            assert await one.spread(20) == [20, 0]
            one.start(1)
            assert await one.spread(21) == [20, 1]

    run(scenario)


def test_the_dead_and_the_closed_have_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_PATIENCE_S", 2 * WAIT_S)
        async with port(3) as one:
            one.start(0, 1)
            one.counts.set(2, 0)
            one.counts.close(2)  # as the supervisor says of a dead one
            one.connect(6)
            assert sorted(await one.spread(6)) in ([0, 3, 3], [0, 2, 4])
            first = len(one.taken[0])
            closed = one.acceptors[1]
            await one.close(1)
            closed.count(-1)  # its last connections end
            one.connect(4)
            assert await one.spread(10) == [first + 4, 6 - first, 0]

    run(scenario)


def test_what_has_connected_when_the_port_closes_is_taken() -> None:
    async def scenario() -> None:
        async with port(2) as one:
            one.start(0, 1)
            one.listener.close()
            await asyncio.sleep(0)
            one.clients += [socket.create_connection(one.acceptors[0]._listener.getsockname()) for _ in range(5)]
            await asyncio.gather(one.close(0), one.close(1))
            assert sum(await one.spread(5)) == 5
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(one.clients[0].getpeername())

    run(scenario)


def test_out_of_open_files_it_says_so_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_RETRY_S", 0.2)
        async with port(1) as one:
            one.start(0)
            accept = socket.socket.accept
            errors = [errno.ECONNABORTED, errno.EMFILE, errno.ENFILE]

            def fail(self: socket.socket) -> tuple[socket.socket, object]:
                if errors:
                    number = errors.pop(0)
                    raise OSError(number, os.strerror(number))
                return accept(self)

            monkeypatch.setattr(socket.socket, "accept", fail)
            one.connect(3)
            with capture_logs() as log:
                await until(lambda: one.counts.open() == {})  # nobody shall wait for it
                assert await one.spread(3) == [3]
                assert one.counts.open() == {0: 3}
            assert [(line["event"], line["reason"]) for line in log] == [
                ("accept_failed", "Too many open files"),
                ("accept_failed", "Too many open files in system"),
            ]

    run(scenario)
