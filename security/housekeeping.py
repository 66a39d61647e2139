"""What nobody waits for: the registry forgets what has expired."""

from __future__ import annotations

import asyncio
import random
from typing import Final, Protocol

import structlog

from security.background import survive
from security.errors import RegistryError

PRUNE_EVERY_S: Final = 3600.0
"""Every worker does it, which is harmless; the jitter keeps them from doing it together."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Prunable(Protocol):
    """Whatever keeps rows that expire: the client registry."""

    async def prune(self) -> int:
        """Forget what has expired; return how many rows went."""
        ...


async def prune_regularly(registry: Prunable, *, every_s: float = PRUNE_EVERY_S) -> None:
    """Prune every `every_s` seconds, give or take a half, until cancelled. A failure is logged, and tried again at the next turn."""
    while True:
        await asyncio.sleep(every_s * random.uniform(0.5, 1.5))  # noqa: S311 # spreads work, guards nothing
        await survive(_prune(registry), task="prune the registry")


async def _prune(registry: Prunable) -> None:
    try:
        pruned = await registry.prune()
    except RegistryError as error:
        _log.warning("registry_prune_failed", reason=str(error))
    else:
        _log.info("registry_pruned", rows=pruned)
