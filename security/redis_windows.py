"""Sliding windows in Redis, shared by workers and replicas: the scripts and keys of `limits`, asked for many requests at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from limits.aio.storage import RedisStorage

from security.rate_limits import Window

_KEY_PREFIX: Final = "lensgate"
_MAX_BATCH: Final = 256
"""The most requests in one pipeline: Redis answers that many in under 5 ms."""
_GRACE_S: Final = 0.002
_SOCKET_TIMEOUT_S: Final = 1.0
"""A backstop; every wait has a shorter deadline of its own."""
_TAKE_AND_READ: Final = """
local function take(KEYS, ARGV)
%s
end
local function read(KEYS, ARGV)
%s
end
return {take(KEYS, ARGV), read(KEYS, {ARGV[2]})}
"""
"""Two scripts as one, each with the keys and arguments that it expects: half as much to say and to hear."""


class StorageLost(Exception):
    """Redis could not be asked in time; the cause is chained."""


@dataclass(slots=True)
class _Asked:
    keys: tuple[str, str]
    limit: int
    width_s: int
    cost: int
    deadline_s: float
    answer: asyncio.Future[tuple[bool, Window]]


class RedisWindows:
    """One connection, work-conserving: what is asked while Redis answers goes out together with the next pipeline.

    The library would take two round trips for each limit of each request. The scripts are the library's own, made one; `connect` loads it,
    and a Redis that has forgotten it counts as lost, which brings `connect` about.

    Args:
        url: `redis://` or `rediss://`.

    Raises:
        limits.errors.ConfigurationError: the package `redis` is not installed.
    """

    def __init__(self, url: str) -> None:
        # Here, because the package is optional.
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),  # redis-py would try ten times
            "socket_timeout": _SOCKET_TIMEOUT_S,
            "socket_connect_timeout": _SOCKET_TIMEOUT_S,
        }
        self._bridge: Any = RedisStorage(f"async+{url}", implementation="redispy", key_prefix=_KEY_PREFIX, **options).bridge
        scripts = (self._bridge.SCRIPT_ACQUIRE_SLIDING_WINDOW, self._bridge.SCRIPT_SLIDING_WINDOW)
        self._script = _TAKE_AND_READ % tuple(script.decode() for script in scripts)
        self._script_sha = ""
        self._errors = (RedisError, OSError, TimeoutError, ValueError)
        self._waiting: list[_Asked] = []
        self._asking: asyncio.Task[None] | None = None

    async def connect(self, timeout_s: float) -> None:
        """Load the script and run it once, so that an answer means that limits can be counted.

        Raises:
            StorageLost: not within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                client = self._bridge.get_connection()
                await client.connection_pool.disconnect()  # what was being said when Redis was lost is not listened to again
                self._script_sha = await client.script_load(self._script)
                await self._ask([self._asked("probe", 1, 1, 1, timeout_s)])
        except self._errors as error:
            raise StorageLost from error

    async def take(self, key: str, limit: int, width_s: int, cost: int, timeout_s: float) -> tuple[bool, Window]:
        """Take `cost` units unless that would be more than `limit` in `width_s` seconds, and read the window.

        Raises:
            StorageLost: not within `timeout_s`, or Redis is not of use.
        """
        asked = self._asked(key, limit, width_s, cost, timeout_s)
        self._waiting.append(asked)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all(), name="ask redis")
        return await asked.answer

    def _asked(self, key: str, limit: int, width_s: int, cost: int, timeout_s: float) -> _Asked:
        loop = asyncio.get_running_loop()
        # Braces: both keys live on one node of a cluster.
        current = self._bridge.prefixed_key(f"{{{key}}}")
        return _Asked((f"{current}/-1", current), limit, width_s, cost, loop.time() + timeout_s, loop.create_future())

    async def _ask_all(self) -> None:
        batch: list[_Asked] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
                answers = await self._ask_until(batch, min(asked.deadline_s for asked in batch))
                for asked, answer in zip(batch, answers, strict=True):
                    if not asked.answer.done():  # its request may have gone
                        asked.answer.set_result(answer)
        except self._errors as error:
            self._fail(batch, error)
        finally:
            self._asking = None
            self._fail(batch, None)

    async def _ask_until(self, batch: list[_Asked], deadline_s: float) -> list[tuple[bool, Window]]:
        asking = asyncio.create_task(self._ask(batch))
        try:
            left_s = deadline_s - _GRACE_S - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait({asking}, timeout=max(0.0, left_s))
            if not done:
                # Where the loop itself was busy, the answer is there already and only has to be read.
                done, _ = await asyncio.wait({asking}, timeout=_GRACE_S)
            if not done:
                raise TimeoutError
            return asking.result()
        finally:
            asking.cancel()  # redis-py then closes the connection: no late answer can meet another question

    def _fail(self, batch: list[_Asked], cause: Exception | None) -> None:
        waiting, self._waiting = self._waiting, []
        for asked in batch + waiting:
            if not asked.answer.done():
                lost = StorageLost()
                lost.__cause__ = cause
                asked.answer.set_exception(lost)

    async def _ask(self, batch: list[_Asked]) -> list[tuple[bool, Window]]:
        pipeline = self._bridge.get_connection().pipeline(transaction=False)
        for asked in batch:
            pipeline.evalsha(self._script_sha, 2, *asked.keys, asked.limit, asked.width_s, asked.cost)
        return [(bool(taken), _window(window)) for taken, window in await pipeline.execute()]

    async def aclose(self) -> None:
        """Close the connection."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._bridge.get_connection().aclose()


def _window(read: list[Any]) -> Window:
    previous_count, previous_ttl_ms, current_count, current_ttl_ms = read
    return Window(
        int(previous_count or 0),
        max(0, int(previous_ttl_ms)) / 1000,
        int(current_count or 0),
        max(0, int(current_ttl_ms)) / 1000,
    )
