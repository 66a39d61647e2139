"""Where limits are counted: in Redis where that is set and answers, in the memory that this service's workers share otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import structlog

from security.background import survive
from security.limit_windows import SharedWindows
from security.rate_limits import MEMORY, Quota, Verdict, Window, judge
from security.redis_windows import RedisWindows, StorageLost

PENALTY_S: Final = 0.05
"""The most that one request ever waits for Redis, over all its limits."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 16.0
_STEADY_S: Final = 30.0
"""A Redis that is lost again sooner than this is looked for less often each time, so that a slow one does not cost every request."""
_PROBE_TIMEOUT_S: Final = 1.0

_REFUSALS: Final = frozenset({"AuthenticationError", "AuthenticationWrongNumberOfArgsError", "AuthorizationError", "NoPermissionError"})
"""redis-py's names of what no waiting helps against. By name, because the package is optional."""
_REFUSED: Final = "Redis refuses the user or the password of LENSGATE_SECURITY__RATE_LIMIT_STORAGE"
_GONE: Final = "does Redis run, and is LENSGATE_SECURITY__RATE_LIMIT_STORAGE its address?"

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(slots=True)
class Patience:
    """What is left of the time that one request may wait for Redis."""

    left_s: float = PENALTY_S


@dataclass(slots=True)
class StorageHealth:
    """How the shared storage is doing."""

    active: bool = False
    """True while limits are counted locally although Redis is set."""
    fallbacks: int = 0
    """How often a limit was counted locally because Redis was not there."""


class RateLimiter:
    """Takes units from quotas. The event loop is never blocked, and no request waits longer than `PENALTY_S` for Redis.

    When Redis fails or is too slow, limits are counted locally at once, by all workers of this service that miss it together, until `run`
    finds Redis well again. They go on from what Redis last told any of them of a key; beyond that each replica lets up to the limit
    through once more.

    Args:
        local: the memory that all workers share.
        url: `memory://`, `redis://...` or `rediss://...`.
        on_fallback: called whenever a limit is counted locally because Redis is not there, for a metric.
    """

    def __init__(self, local: SharedWindows, url: str = MEMORY, *, on_fallback: Callable[[], object] = lambda: None) -> None:
        self.health = StorageHealth()
        self._on_fallback = on_fallback
        self._local = local
        self._redis = None if url == MEMORY else RedisWindows(url)
        parts = urlsplit(url)
        self._server = f"{parts.hostname}:{parts.port or 6379}"
        self._redis_answers = False
        self._lost = asyncio.Event()
        self._pause_s = _FIRST_PAUSE_S
        self._back_at_s = -_STEADY_S

    async def take(self, quota: Quota, key: str, cost: int = 1, patience: Patience | None = None) -> Verdict:
        """Take `cost` units of `quota` for `key`: all of them or none.

        Args:
            quota: the limit.
            key: whose units; never empty.
            cost: how many; 0 only looks.
            patience: the request's; one of its own by default.
        """
        name = quota.prefix + key
        if self._redis is not None:
            shared = await self._take_shared(self._redis, name, quota, cost, patience or Patience())
            if shared is not None:
                verdict = judge(quota, shared[1], admitted=shared[0], cost=cost)
                self._local.remember(name, quota.window_s, quota.amount - verdict.remaining)
                return verdict
            self.health.fallbacks += 1
            self._on_fallback()
        admitted, window = self._local.take(name, quota.amount, quota.window_s, cost)
        return judge(quota, window, admitted=admitted, cost=cost)

    async def _take_shared(self, redis: RedisWindows, name: str, quota: Quota, cost: int, patience: Patience) -> tuple[bool, Window] | None:
        if not self._redis_answers or patience.left_s <= 0:
            return None
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            return await redis.take(name, quota.amount, quota.window_s, cost, patience.left_s)
        except StorageLost as lost:
            self._lose(lost)
            return None
        finally:
            patience.left_s -= loop.time() - began_s

    async def start(self) -> None:
        """Find Redis, where it is set. Without it the service starts all the same, with local limits, and says so."""
        if self._redis is not None:
            await self._probe(self._redis)

    async def run(self) -> None:
        """Look for a lost Redis until cancelled, so that no request has to: soon at first, and at least every 17 s."""
        while self._redis is not None:
            await self._lost.wait()
            await asyncio.sleep(self._pause_s)
            await survive(self._probe(self._redis), task="look for Redis")

    async def aclose(self) -> None:
        """Let go of Redis."""
        if self._redis is not None:
            await self._redis.aclose()

    async def _probe(self, redis: RedisWindows) -> None:
        try:
            await redis.connect(_PROBE_TIMEOUT_S)
        except StorageLost as lost:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._declare_lost(lost)
            return
        self._redis_answers = True
        self._lost.clear()
        self._back_at_s = asyncio.get_running_loop().time()
        if self.health.active:
            self.health.active = False
            _log.warning("rate_limit_storage_back", fallbacks=self.health.fallbacks)

    def _lose(self, lost: StorageLost) -> None:
        if not self._redis_answers:
            return  # another request was first
        self._redis_answers = False
        steady = asyncio.get_running_loop().time() - self._back_at_s >= _STEADY_S
        self._pause_s = _FIRST_PAUSE_S if steady else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._declare_lost(lost)

    def _declare_lost(self, lost: StorageLost) -> None:
        self._lost.set()
        if not self.health.active:
            self.health.active = True
            # Its own text may hold the URL, and that a password.
            cause = type(lost.__cause__).__name__
            _log.error(
                "rate_limit_storage_lost",
                server=self._server,
                cause=cause,
                hint=_REFUSED if cause in _REFUSALS else _GONE,
                effect="limits are counted by this service alone until Redis answers again",
            )
