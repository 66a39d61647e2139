"""One turn of what runs beside the requests. Whatever goes wrong in it is logged, and there is another turn."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import structlog

T = TypeVar("T")

_log: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


async def survive(turn: Awaitable[T], *, task: str) -> T | None:
    """What the turn returns, or None where it has failed in a way that it does not know itself.

    Nobody waits for a loop in the background: ended by a driver's bug, or by a machine that has no thread left for a moment, it would be
    silent, and revocations, keys and limits would stay for ever as they were.

    Args:
        turn: one round of the loop. It deals with the failures that are to be expected.
        task: what the loop does, for the log.
    """
    try:
        return await turn
    except Exception:  # noqa: BLE001 # whatever it is, there is another turn
        _log.exception("background_task_failed", task=task)
        return None
