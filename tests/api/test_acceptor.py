"""Several workers take connections from one port in turn. Real sockets and a real event loop, which here is all workers' own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from api import acceptor
from api.acceptor import Acceptor
from api.connection_counts import ConnectionCounts
from api.worker_memory import make_connection_memory

WAIT_S = 10.0


class Port:
    """A port, its workers, and their clients. A worker that is not `started` takes nothing."""

    def __init__(self, workers: int) -> None:
        file = make_connection_memory(workers)
        self.counts = ConnectionCounts(file)
        os.close(file)
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

    async def aclose(self) -> None:
        for one in self.acceptors.values():
            await one.close(WAIT_S)
        for connection in (self.listener, *self.clients, *(one for connections in self.taken for one in connections)):
            connection.close()


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
            assert sorted(await one.spread(18)) == [4, 4, 5, 5]

    run(scenario)


def test_of_many_connections_a_sixteenth_more_is_even_enough() -> None:
    async def scenario() -> None:
        async with port(2) as one:
            one.start(0, 1)
            one.connect(320)
            few, many = sorted(await one.spread(320))
            assert many - few <= 11

    run(scenario)


def test_new_ones_go_to_whoever_has_lost_some_until_it_has_as_many() -> None:
    async def scenario() -> None:
        async with port(3) as one:
            one.start(0, 1, 2)
            one.connect(15)
            assert await one.spread(15) == [5, 5, 5]
            one.lose(1, 4)
            one.connect(4)
            assert await one.spread(15) == [5, 5, 5]

    run(scenario)


def test_a_single_worker_takes_all_at_once() -> None:
    async def scenario() -> None:
        async with port(2) as one:  # the second is the place of the one that will renew it
            one.start(0)
            one.connect(200)
            assert await one.spread(200) == [200, 0]

    run(scenario)


def test_one_that_does_not_come_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_PATIENCE_S", WAIT_S / 10)  # thirty times that would be too long
        async with port(2) as one:
            one.start(0)
            one.counts.set(1, 0)  # it is there, and halted
            one.connect(30)
            assert await one.spread(30) == [30, 0]

    run(scenario)


def test_one_that_did_not_come_has_its_turn_again_when_it_goes_on() -> None:
    async def scenario() -> None:
        async with port(2) as one:
            one.start(0)
            one.counts.set(1, 0)
            one.connect(10)
            assert await one.spread(10) == [10, 0]
            one.start(1)
            one.acceptors[1].count(1)
            one.connect(9)
            assert await one.spread(19) == [10, 9]

    run(scenario)


def test_the_dead_and_the_closed_have_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_PATIENCE_S", 2 * WAIT_S)
        async with port(3) as one:
            one.start(0, 1)
            one.counts.set(2, 0)
            one.counts.close(2)  # as the supervisor says of a dead one
            one.connect(6)
            assert await one.spread(6) == [3, 3, 0]
            await one.acceptors[1].close(WAIT_S)
            one.acceptors[1].count(-1)  # its last connections end
            one.connect(4)
            assert await one.spread(10) == [7, 3, 0]

    run(scenario)


def test_what_has_connected_when_the_port_closes_is_taken() -> None:
    async def scenario() -> None:
        async with port(2) as one:
            one.start(0, 1)
            one.listener.close()
            await asyncio.sleep(0)
            one.clients += [socket.create_connection(one.acceptors[0]._listener.getsockname()) for _ in range(5)]
            await asyncio.gather(one.acceptors[0].close(WAIT_S), one.acceptors[1].close(WAIT_S))
            assert sum(await one.spread(5)) == 5
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(one.clients[0].getpeername())

    run(scenario)


def test_out_of_open_files_it_says_so_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(acceptor, "_RETRY_S", 0.05)
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
                assert await one.spread(3) == [3]
            assert [(line["event"], line["reason"]) for line in log] == [
                ("accept_failed", "Too many open files"),
                ("accept_failed", "Too many open files in system"),
            ]

    run(scenario)
