"""What an engine says to an API worker, on a real pair of sockets: in order, whole, from any thread, and without waiting for anybody."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from inference.frames import HEADER, frame
from inference.ipc import Failure, Result, decode_from_engine
from inference.worker.outbox import Outbox
from inference.worker.queue import Entry, FairQueue, Reply
from inference.worker.server import EngineServer
from support.echo_engine import picture, until

SENDERS = 4
EACH = 500


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    engines, workers = socket.socketpair()
    engines.setblocking(False)
    engines.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that many a message goes in pieces
    workers.settimeout(30)
    with engines, workers:
        yield engines, workers


class CountedOutbox(Outbox):
    """Counts how often the event loop has told it that there is room."""

    told = 0

    def _send_kept(self) -> None:
        self.told += 1
        super()._send_kept()


@pytest.fixture
async def outbox(pair: tuple[socket.socket, socket.socket]) -> AsyncIterator[CountedOutbox]:
    outbox = CountedOutbox(pair[0].dup())
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


def fill(outbox: Outbox) -> int:
    """Send until the system takes no more; the number of the next message."""
    number = 0
    while not outbox._kept:
        outbox.send(result(number, classes=100))
        number += 1
    return number


@pytest.fixture(autouse=True)
async def nothing_fails_on_the_loop() -> AsyncIterator[None]:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    yield
    assert failures == []


async def test_what_is_sent_together_arrives_in_order_and_at_once(pair: tuple[socket.socket, socket.socket], outbox: Outbox) -> None:
    outbox.send(result(1), Failure(2, "deadline"), result(3))
    # No turn of the event loop in between.
    assert received(pair[1], 3) == [1, 2, 3]


async def test_what_a_worker_does_not_read_yet_is_kept_in_order_and_nobody_waits(
    pair: tuple[socket.socket, socket.socket], outbox: CountedOutbox
) -> None:
    def send_and_read() -> list[int]:
        sent = fill(outbox)
        for number in range(sent, sent + 50):
            outbox.send(result(number))
        return received(pair[1], sent + 50)

    # The event loop has nothing else to do meanwhile: it must be woken.
    ids = await asyncio.to_thread(send_and_read)
    assert ids == list(range(len(ids)))
    await until(lambda: not outbox._kept)
    told = outbox.told
    for _ in range(10):
        await asyncio.sleep(0)
    assert outbox.told == told  # else the loop would be woken for ever
    outbox.send(result(7))
    assert received(pair[1], 1) == [7]


async def test_answers_of_many_threads_do_not_run_into_one_another(pair: tuple[socket.socket, socket.socket], outbox: Outbox) -> None:
    def answer(sender: int) -> None:
        for number in range(EACH):
            outbox.send(result(sender * EACH + number, classes=1 if number % 3 else 2000))

    reading = asyncio.create_task(asyncio.to_thread(received, pair[1], SENDERS * EACH))
    threads = [threading.Thread(target=answer, args=(sender,)) for sender in range(SENDERS)]
    for thread in threads:
        thread.start()
    ids = await reading
    for thread in threads:
        thread.join()
    assert sorted(ids) == list(range(SENDERS * EACH))
    for sender in range(SENDERS):
        first = sender * EACH
        assert [number for number in ids if first <= number < first + EACH] == list(range(first, first + EACH))


async def test_what_another_thread_says_in_the_middle_of_an_answer_comes_after_it(
    pair: tuple[socket.socket, socket.socket], outbox: Outbox
) -> None:
    class Interrupted:
        """A connection that takes ten bytes, and has another thread come before anything follows."""

        def send(self, data: bytes) -> int:
            outbox._connection = connection  # type: ignore[misc]
            sent = connection.send(data[:10])
            other.start()
            other.join(0.1)  # which cannot be, unless it goes before
            return sent

    connection, other = outbox._connection, threading.Thread(target=outbox.send, args=(result(2),))
    outbox._connection = Interrupted()  # type: ignore[assignment, misc]
    outbox.send(result(1))
    assert await asyncio.to_thread(received, pair[1], 2) == [1, 2]
    other.join()


async def test_an_answer_that_is_cut_off_ends_the_connection(outbox: Outbox, pair: tuple[socket.socket, socket.socket]) -> None:
    class Exhausted:
        """A connection for which the system has no memory any more."""

        def send(self, data: bytes) -> int:
            raise OSError(errno.ENOBUFS, "No buffer space available")

        def __getattr__(self, name: str) -> object:
            return getattr(connection, name)

    connection = outbox._connection
    outbox._connection = Exhausted()  # type: ignore[assignment, misc]
    outbox.send(result(1))
    assert pair[1].recv(1) == b""


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
    sent = fill(outbox) if full else 0
    outbox.close()
    outbox.close()
    pair[0].close()
    outbox.send(result(sent))
    assert not outbox._kept
    await asyncio.sleep(0)  # for what the loop was asked before
    workers = pair[1]
    arrived = b"".join(iter(lambda: workers.recv(1 << 20), b""))  # to the end: nobody holds the other half open
    assert arrived == b"".join(frame(result(number, classes=100)) for number in range(sent))[: len(arrived)]
    assert bool(arrived) == full


async def test_a_batch_is_answered_by_one_message_for_each_worker() -> None:
    answered: dict[str, list[tuple[object, ...]]] = {"a": [], "b": []}

    def entry(number: int, worker: str) -> Entry:
        return Entry(number, number, picture(0), 1, 2**62, "c", replies[worker])

    def reply_of(worker: str) -> Reply:
        return lambda *answers: answered[worker].append(answers)

    replies = {worker: reply_of(worker) for worker in answered}
    EngineServer(FairQueue(1)).deliver([(entry(number, "ab"[number % 2]), result(number)) for number in range(4)])
    assert answered == {"a": [(result(0), result(2))], "b": [(result(1), result(3))]}
