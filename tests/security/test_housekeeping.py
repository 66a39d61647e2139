from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from security.errors import RegistryUnavailable
from security.housekeeping import prune_regularly


async def test_the_registry_is_pruned_again_and_again_and_outlives_a_failure() -> None:
    pruned_thrice = asyncio.Event()
    turns = 0

    class FlakyRegistry:
        async def prune(self) -> int:
            nonlocal turns
            turns += 1
            if turns == 2:
                raise RegistryUnavailable
            if turns == 3:
                pruned_thrice.set()
            return 7

    with capture_logs() as events:
        task = asyncio.create_task(prune_regularly(FlakyRegistry(), every_s=0.001))
        async with asyncio.timeout(20):
            await pruned_thrice.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [(event["event"], event["log_level"]) for event in events[:2]] == [
        ("registry_pruned", "info"),
        ("registry_prune_failed", "warning"),
    ]
    assert events[0]["rows"] == 7


async def test_nothing_is_pruned_before_half_the_interval() -> None:
    class Untouched:
        async def prune(self) -> int:
            raise AssertionError("too early")

    task = asyncio.create_task(prune_regularly(Untouched(), every_s=3600))
    _, pending = await asyncio.wait([task], timeout=0.05)
    assert pending
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
