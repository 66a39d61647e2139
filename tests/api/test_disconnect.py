from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from api.disconnect import WATCH_AFTER_S, UntilDisconnect


class Channel:
    """An ASGI receive channel: `leave()` is the client going away."""

    def __init__(self) -> None:
        self._left = asyncio.Event()
        self.watched = asyncio.Event()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> dict[str, Any]:
        self.watched.set()
        await self._left.wait()
        return {"type": "http.disconnect"}


def _other_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_work_that_ends_first_goes_through_and_leaves_no_task() -> None:
    channel = Channel()
    async with UntilDisconnect(channel.receive):
        await channel.watched.wait()

    assert _other_tasks() == set()


async def test_for_quick_work_nobody_watches() -> None:
    channel = Channel()
    async with UntilDisconnect(channel.receive):
        await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(channel.watched.wait(), 2 * WATCH_AFTER_S)


async def test_a_request_that_took_long_is_freed_at_once_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        channel = Channel()
        async with UntilDisconnect(channel.receive):
            await channel.watched.wait()
        watched = weakref.ref(channel)
        del channel
        await asyncio.sleep(0)
        assert watched() is None
    finally:
        gc.enable()


async def test_a_client_that_leaves_cancels_the_work() -> None:
    channel, endless = Channel(), asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with UntilDisconnect(channel.receive):
            channel.leave()
            await endless

    with pytest.raises(ClientDisconnect):
        await work()

    assert endless.cancelled()
    assert _other_tasks() == set()


async def test_an_error_of_the_work_goes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        async with UntilDisconnect(Channel().receive):
            raise ZeroDivisionError

    assert _other_tasks() == set()


async def test_a_timeout_of_the_work_is_not_taken_for_a_disconnect() -> None:
    with pytest.raises(TimeoutError):
        async with UntilDisconnect(Channel().receive):
            raise TimeoutError


async def test_a_cancellation_from_outside_stays_one() -> None:
    channel = Channel()

    async def work() -> None:
        async with UntilDisconnect(channel.receive):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await channel.watched.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert _other_tasks() == set()
