"""The memory between an API worker and an engine, handed over on a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from inference.errors import Overloaded
from inference.ipc import FrameProtocol, Predict
from inference.picture_memory import PictureSlots, ReceivedPictures
from inference.process_engine import ProcessEngine
from inference.types import Pixels
from inference.worker.listener import Listener
from inference.worker.outbox import Outbox
from support.echo_engine import SIDE, Stand, connected, picture, until

MAX_PICTURES = 4
PICTURE_BYTES = SIDE * SIDE * 3


@pytest.fixture
def slots() -> Iterator[PictureSlots]:
    slots = PictureSlots(MAX_PICTURES)
    slots.reserve(PICTURE_BYTES)
    yield slots
    slots.close()


@pytest.fixture
async def received(slots: PictureSlots) -> AsyncIterator[ReceivedPictures]:
    received = await handed_over(slots.hand_over)
    yield received
    received.close()


async def handed_over(pass_on: Callable[[socket.socket], object]) -> ReceivedPictures:
    """What an engine receives on a connection on which a worker has done that."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        pass_on(ours)
        return await ReceivedPictures.received(theirs)


def noise(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


async def test_each_picture_is_read_where_it_was_put_and_cannot_be_written_there(slots: PictureSlots, received: ReceivedPictures) -> None:
    offsets = [slots.put(number, noise(number)) for number in range(MAX_PICTURES)]
    assert slots.full
    for number, offset in enumerate(offsets):
        there = received.picture(offset, SIDE)
        assert np.array_equal(there, noise(number))
        assert not there.flags.writeable


async def test_a_place_is_used_again_when_it_is_free_and_not_before(slots: PictureSlots, received: ReceivedPictures) -> None:
    first, second = slots.put(1, noise(1)), slots.put(2, noise(2))
    slots.free(1)
    assert slots.put(3, noise(3)) == first
    assert slots.put(4, noise(4)) not in (first, second)
    assert np.array_equal(received.picture(second, SIDE), noise(2))


async def test_a_picture_in_use_outlives_the_connection_on_both_sides(slots: PictureSlots, received: ReceivedPictures) -> None:
    there = received.picture(slots.put(1, noise(1)), SIDE)
    other = PictureSlots(1)
    other.reserve(PICTURE_BYTES)
    from_other = await handed_over(other.hand_over)
    seen = from_other.picture(other.put(1, noise(5)), SIDE)
    from_other.close()
    other.close()
    del from_other, other
    gc.collect()
    assert np.array_equal(seen, noise(5))
    assert np.array_equal(there, noise(1))


@pytest.mark.parametrize("offset", [-1, -PICTURE_BYTES, MAX_PICTURES * 4096 - 1, 2**40])
async def test_a_picture_outside_the_memory_is_refused(slots: PictureSlots, received: ReceivedPictures, offset: int) -> None:
    slots.put(1, noise(1))
    with pytest.raises(ValueError, match="outside"):
        received.picture(offset, SIDE)


async def test_before_there_is_room_there_is_no_picture_to_read() -> None:
    slots = PictureSlots(MAX_PICTURES)
    received = await handed_over(slots.hand_over)
    with pytest.raises(ValueError, match="outside"):
        received.picture(0, SIDE)
    slots.reserve(PICTURE_BYTES)
    assert not received.picture(0, SIDE).any()
    received.close()
    slots.close()


def test_a_limit_on_the_size_of_files_holds_only_when_it_is_a_hard_one() -> None:
    # In a process of its own: a hard limit cannot be taken back.
    subprocess.run([sys.executable, "-c", LIMITED], check=True)


LIMITED = """
import resource
from inference.picture_memory import PictureSlots

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
PictureSlots(4).reserve(10_000)
assert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, hard)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    PictureSlots(4).reserve(10_000)
except OSError:
    pass
else:
    raise AssertionError
"""


async def test_memory_that_its_worker_could_cut_short_is_refused() -> None:
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    with pytest.raises(ValueError, match="sealed"):
        await handed_over(lambda worker: socket.send_fds(worker, [b"\0"], [unsealed]))
    os.close(unsealed)


async def test_a_descriptor_that_is_no_memory_is_refused_and_closed() -> None:
    reading, writing = os.pipe()
    with pytest.raises(ValueError, match="sealed"):
        await handed_over(lambda worker: socket.send_fds(worker, [b"\0"], [writing]))
    os.close(writing)
    assert os.read(reading, 1) == b""  # no writer is left
    os.close(reading)


async def test_a_worker_that_runs_out_of_descriptors_finds_its_engine_when_it_has_some_again(stand: Stand) -> None:
    stand.model.open.set()
    engine = ProcessEngine([stand.path], max_pending=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        engine.start()
        await engine.heard(timeout_s=30)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not engine.status().ready
    await until(lambda: engine.status().ready)
    await engine.aclose()


async def test_a_hello_that_brings_no_memory_is_refused_and_the_next_worker_is_served(stand: Stand) -> None:
    stand.model.open.set()
    reader, writer = await asyncio.open_unix_connection(str(stand.path))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(30):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()
    async with connected(stand.path, max_pending=4) as engine:
        assert (await engine.predict(picture(3), top_k=1, timeout_s=30, client="c")).scores[0].class_id == 3


async def test_an_engine_without_a_descriptor_for_its_answers_leaves_nothing_behind_and_is_asked_again(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, duplicate, failures = _shared_pictures(), socket.socket.dup, 0

    def dup(connection: socket.socket) -> socket.socket:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return duplicate(connection)

    monkeypatch.setattr(socket.socket, "dup", dup)
    stand.model.open.set()
    async with connected(stand.path, max_pending=4) as engine:
        assert failures == 2
        assert (await engine.predict(picture(3), top_k=1, timeout_s=30, client="c")).scores[0].class_id == 3
        assert _shared_pictures() <= before + 4  # each side's own, and that of its map
    await until(lambda: _shared_pictures() <= before)


async def test_an_engine_that_ends_while_a_worker_connects_closes_its_connection(tmp_path: Path) -> None:
    before, connecting = _shared_pictures(), asyncio.Event()

    def protocol(pictures: ReceivedPictures, outbox: Outbox) -> FrameProtocol:
        connecting.set()
        return FrameProtocol(lambda _: None, lambda: None)

    listener = Listener(tmp_path / "engine", protocol)
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    with connection, contextlib.closing(PictureSlots(1)) as slots:
        await asyncio.get_running_loop().sock_connect(connection, str(tmp_path / "engine"))
        slots.hand_over(connection)
        await connecting.wait()
        listener.close()
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), 30) == b""
    await until(lambda: _shared_pictures() <= before)


def _shared_pictures() -> int:
    """How many descriptors of such memory this process has open, without those that only wait for the garbage collector."""
    gc.collect()
    files = Path("/proc/self/fd").iterdir()
    return sum("lensgate-pictures" in str(file.readlink()) for file in files if file.is_symlink())  # the folder's own is gone by now


async def test_a_message_about_a_picture_outside_the_memory_fails_alone(stand: Stand) -> None:
    stand.model.open.set()
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    with connection:
        await loop.sock_connect(connection, str(stand.path))
        slots = PictureSlots(1)
        slots.reserve(PICTURE_BYTES)
        slots.hand_over(connection)
        offset = slots.put(1, picture(7))
        encoder = msgspec.msgpack.Encoder()
        for message in (Predict(1, 4096 * 4096, 1, 2**62, "c"), Predict(2, offset, 1, 2**62, "c")):
            encoded = encoder.encode(message)
            await loop.sock_sendall(connection, len(encoded).to_bytes(4, "little") + encoded)
        answers: list[list[object]] = []
        while len(answers) < 3:
            size = int.from_bytes(await _exactly(connection, 4), "little")
            answers.append(msgspec.msgpack.decode(await _exactly(connection, size)))
        slots.close()
    assert [answer[:3] for answer in answers[1:]] == [["failure", 1, "failed"], ["result", 2, [7]]]


async def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, size - len(data)), 30)
    return data


async def test_the_place_of_a_caller_who_left_is_not_used_again_while_a_lane_reads_it(stand: Stand) -> None:
    async with connected(stand.path, max_pending=1) as engine:  # two places
        left = asyncio.create_task(engine.predict(picture(1), top_k=1, timeout_s=30, client="c"))
        await stand.running()
        left.cancel()
        second = asyncio.create_task(engine.predict(picture(2), top_k=1, timeout_s=30, client="c"))
        await until(lambda: len(stand.queue) == 1)
        second.cancel()
        await until(lambda: len(stand.queue) == 0)
        # The engine has said that it will not run the second; of the first it has said nothing yet.
        answered = asyncio.create_task(_predict_when_there_is_a_place(engine, 3))
        await until(lambda: len(stand.queue) == 1)
        with pytest.raises(Overloaded):
            await engine.predict(picture(4), top_k=1, timeout_s=30, client="d")
        stand.model.open.set()
        assert await answered == 3
        assert stand.model.ran == [[1], [3]]


async def _predict_when_there_is_a_place(engine: ProcessEngine, number: int) -> int:
    async with asyncio.timeout(30):
        while True:
            try:
                return (await engine.predict(picture(number), top_k=1, timeout_s=30, client="c")).scores[0].class_id
            except Overloaded:
                await asyncio.sleep(0)


async def test_after_ten_thousand_pictures_of_callers_who_mostly_leave_no_place_is_lost(stand: Stand) -> None:
    stand.model.open.set()
    async with connected(stand.path, max_pending=8) as engine:

        async def caller(client: int) -> None:
            for turn in range(625):
                call = asyncio.create_task(engine.predict(picture(client), top_k=1, timeout_s=30, client=str(client)))
                for _ in range(turn % 5):
                    await asyncio.sleep(0)
                if turn % 4:
                    call.cancel()
                await asyncio.gather(call, return_exceptions=True)

        await asyncio.gather(*map(caller, range(16)))
        assert await asyncio.gather(*(_predict_when_there_is_a_place(engine, number) for number in range(8))) == list(range(8))
