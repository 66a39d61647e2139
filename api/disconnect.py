"""Stops working for a client that has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

WATCH_AFTER_S: Final = 0.05
"""Work that is done sooner is not worth a task that watches its client."""


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel what runs inside when the client disconnects, which is noticed after `WATCH_AFTER_S` at the soonest.

    Args:
        receive: the ASGI channel of a request whose body has been read to its end.

    Raises:
        ClientDisconnect: the client left first.
    """
    loop = asyncio.get_running_loop()
    guard = asyncio.timeout(None)
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        # asyncio.timeout knows how to cancel its own task without losing a cancellation from outside; here the deadline is the disconnect.
        guard.reschedule(loop.time())

    def start_watching() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    try:
        async with guard:
            start = loop.call_later(WATCH_AFTER_S, start_watching)
            try:
                yield
            finally:
                start.cancel()
    except TimeoutError:
        if guard.expired():
            raise ClientDisconnect from None
        raise
    finally:
        if watcher is not None and not watcher.done():
            watcher.cancel()
            await asyncio.wait([watcher])
