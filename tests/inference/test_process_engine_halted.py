"""What an API worker holds for an engine that is there but no longer reads (SIGSTOP, a swapped-out machine)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from inference.errors import DeadlineExceeded, Overloaded
from inference.ipc import StatusChanged
from inference.process_engine import ProcessEngine
from inference.types import EngineStatus, ModelInfo, Pixels, Preprocessing

SIDE = 224
MAX_PENDING = 8
READY = EngineStatus(
    phase="ready",
    models=(
        ModelInfo(
            name="halted",
            version="1",
            digest="sha256:00",
            precision="fp32",
            device="cpu",
            preprocessing=Preprocessing(resize_px=SIDE, crop_px=SIDE, interpolation="bilinear"),
            labels=("a", "b"),
        ),
    ),
)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ProcessEngine]:
    path = str(tmp_path / "s")
    message = msgspec.msgpack.encode(StatusChanged(READY))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        engine = ProcessEngine([Path(path)], max_pending=MAX_PENDING)
        engine.start()
        halted, _ = await asyncio.get_running_loop().sock_accept(listener)
        # It says that it is ready, and reads nothing from then on.
        halted.sendall(struct.pack("<I", len(message)) + message)
        await _until(lambda: engine.status().ready)
        yield engine
        halted.close()
        await _until(lambda: not engine.status().ready)
    await engine.aclose()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the condition is of the wire
            await asyncio.sleep(0.001)


def _pixels() -> Pixels:
    return np.zeros((SIDE, SIDE, 3), np.uint8)


async def test_callers_who_keep_leaving_a_halted_engine_are_refused_before_their_pictures_fill_the_memory(engine: ProcessEngine) -> None:
    accepted = 0
    refused = False
    while not refused and accepted < 100 * MAX_PENDING:
        try:
            await engine.predict(_pixels(), top_k=1, timeout_s=0.001, client="c")
        except DeadlineExceeded:
            accepted += 1
        except Overloaded:
            refused = True
    assert refused
    assert accepted == 2 * MAX_PENDING


async def test_a_worker_that_starts_beside_a_halted_engine_does_not_wait_for_its_first_word_for_ever(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        engine = ProcessEngine([tmp_path / "s"], max_pending=MAX_PENDING)
        engine.start()
        async with asyncio.timeout(30):
            await engine.heard(timeout_s=0.05)
        assert not engine.status().ready
        await engine.aclose()
