"""What an engine says to an API worker, on a real pair of sockets: in order, whole, from any thread, and without waiting for anybody."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from inference.frames import HEADER
from inference.ipc import Failure, Result, decode_from_engine
from inference.worker.outbox import Outbox
from support.echo_engine import until

SENDERS = 4
EACH = 500


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    engines, workers = socket.socketpair()
    engines.setblocking(False)
    with engines, workers:
        yield engines, workers


@pytest.fixture
async def outbox(pair: tuple[socket.socket, socket.socket]) -> AsyncIterator[Outbox]:
    outbox = Outbox(pair[0].dup())
    yield outbox
    outbox.close()


def result(number: int, *, classes: int = 1) -> Result:
    return Result(number, [number] * classes, [0.5] * classes, 0.0, 1.0, 1)


def received(workers: socket.socket, messages: int) -> list[int]:
    """The ids of so many messages."""
    ids = []
    with workers.makefile("rb") as stream:
        for _ in range(messages):
            (length,) = HEADER.unpack(stream.read(HEADER.size))
            message = decode_from_engine(stream.read(length))
            assert isinstance(message, Result | Failure)
            ids.append(message.id)
    return ids


def fill(outbox: Outbox, first: int = 0) -> int:
    """Send until the system takes no more; the number of the next message."""
    number = first
    while not outbox._kept:
        outbox.send(result(number, classes=100))
        number += 1
    return number


async def test_what_is_sent_together_arrives_in_order_and_at_once(pair: tuple[socket.socket, socket.socket], outbox: Outbox) -> None:
    outbox.send(result(1), Failure(2, "deadline"), result(3))
    # No turn of the event loop in between.
    assert received(pair[1], 3) == [1, 2, 3]


async def test_what_a_worker_does_not_read_yet_is_kept_in_order_and_nobody_waits(
    pair: tuple[socket.socket, socket.socket], outbox: Outbox
) -> None:
    sent = fill(outbox)
    for number in range(sent, sent + 50):
        outbox.send(result(number))
    reading = asyncio.create_task(asyncio.to_thread(received, pair[1], sent + 50))
    assert await reading == list(range(sent + 50))
    await until(lambda: not outbox._kept)
    outbox.send(result(7))
    assert received(pair[1], 1) == [7]


async def test_answers_of_many_threads_do_not_run_into_one_another(pair: tuple[socket.socket, socket.socket], outbox: Outbox) -> None:
    def answer(sender: int) -> None:
        for number in range(EACH):
            outbox.send(result(sender * EACH + number, classes=50))

    reading = asyncio.create_task(asyncio.to_thread(received, pair[1], SENDERS * EACH))
    threads = [threading.Thread(target=answer, args=(sender,)) for sender in range(SENDERS)]
    for thread in threads:
        thread.start()
    ids = await reading
    for thread in threads:
        thread.join()
    assert sorted(ids) == list(range(SENDERS * EACH))
    for sender in range(SENDERS):
        assert [number for number in ids if number // EACH == sender] == list(range(sender * EACH, (sender + 1) * EACH))


async def test_a_worker_that_has_gone_costs_nothing(pair: tuple[socket.socket, socket.socket], outbox: Outbox) -> None:
    fill(outbox)
    pair[1].close()
    outbox.send(result(1))
    await until(lambda: not outbox._kept)
    outbox.send(result(2))
    assert not outbox._kept


@pytest.mark.parametrize("full", [False, True])
async def test_once_it_is_closed_nothing_is_sent_any_more(pair: tuple[socket.socket, socket.socket], *, full: bool) -> None:
    outbox = Outbox(pair[0].dup())
    if full:
        fill(outbox)
    outbox.close()
    pair[0].close()
    outbox.send(result(1))
    await asyncio.sleep(0)  # what was asked of the loop before it was closed
    workers = pair[1]
    workers.settimeout(30)
    arrived = b"".join(iter(lambda: workers.recv(1 << 20), b""))  # to the end: nobody holds the other half open
    assert bool(arrived) == full
