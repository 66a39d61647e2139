"""Stops working for a client that has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel what runs inside when the client disconnects.

    Args:
        receive: the ASGI channel of a request whose body has been read to its end.

    Raises:
        ClientDisconnect: the client left first.
    """
    guard = asyncio.timeout(None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        # asyncio.timeout knows how to cancel its own task without losing a cancellation from outside; here the deadline is the disconnect.
        guard.reschedule(asyncio.get_running_loop().time())

    watcher: asyncio.Task[None] | None = None
    try:
        async with guard:
            watcher = asyncio.create_task(watch())
            yield
    except TimeoutError:
        if guard.expired():
            raise ClientDisconnect from None
        raise
    finally:
        if watcher is not None and not watcher.done():
            watcher.cancel()
            await asyncio.wait([watcher])
