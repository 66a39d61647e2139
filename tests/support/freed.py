"""Memory that is let go of by whoever used it, not by the garbage collector, which may be seconds away."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def freed_at_once(held: object) -> AsyncIterator[None]:
    """Fails where the block leaves anything behind that holds on to `held`."""
    gc.disable()
    try:
        before = sys.getrefcount(held)
        yield
        await asyncio.sleep(0)  # the event loop lets go of what woke us
        assert sys.getrefcount(held) == before
    finally:
        gc.enable()
