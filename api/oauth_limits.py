"""slowapi's part: its decorators guard the OAuth endpoints and the public pages. What they count is kept where all limits are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import anyio.from_thread
from limits.storage import SlidingWindowCounterSupport, Storage
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from security.client_address import address_key
from security.errors import ClientAuthenticationFailed, RateLimited
from security.limit_storage import Patience, RateLimiter
from security.middleware.address_limit import PATIENCE_KEY
from security.rate_limits import Limit, Quota

FAILURES: Final = "10 per 5 minutes"
"""Failed client authentications from one address for one client. The next one is answered 429."""

_STRATEGY: Final = "sliding-window-counter"
_SCHEME: Final = "lensgate"
_MIN_SHARE: Final = 60
_PATIENCE: Final[ContextVar[Patience]] = ContextVar("patience")

Gate = Callable[[Request], None]


class LoopStorage(Storage, SlidingWindowCounterSupport):
    """The storage that slowapi is given: it is called in a worker thread and asks the event loop's `RateLimiter`.

    So there is one connection to Redis, one bound on waiting for it, and one place that falls back to memory.

    Args:
        uri: `lensgate://`.
        rates: counts.
    """

    STORAGE_SCHEME = [_SCHEME]  # noqa: RUF012 # as `limits` declares it

    def __init__(self, uri: str, *, rates: RateLimiter, **_: Any) -> None:  # noqa: ANN401 # what `limits` may add
        super().__init__(uri)
        self._rates = rates

    @property
    def base_exceptions(self) -> type[Exception]:
        """None of its own: the limiter falls back by itself."""
        return OSError

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Take `amount` units, or none."""
        take = partial(self._rates.take, _quota(limit, expiry), key, amount, _PATIENCE.get())
        return anyio.from_thread.run(take).admitted

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Only for headers that slowapi is not asked to write."""
        raise NotImplementedError(_STRATEGY)

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Nothing clears a limit."""
        raise NotImplementedError(_STRATEGY)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """For another strategy."""
        raise NotImplementedError(_STRATEGY)

    def get(self, key: str) -> int:
        """For another strategy."""
        raise NotImplementedError(_STRATEGY)

    def get_expiry(self, key: str) -> float:
        """For another strategy."""
        raise NotImplementedError(_STRATEGY)

    def check(self) -> bool:
        """Always of use: the limiter falls back by itself."""
        return True

    def reset(self) -> int | None:
        """Nothing resets the limits."""
        raise NotImplementedError(_STRATEGY)

    def clear(self, key: str) -> None:
        """For another strategy."""
        raise NotImplementedError(_STRATEGY)


def _quota(limit: int, window_s: int) -> Quota:
    return Quota("slowapi", Limit(limit, window_s))


class PublicLimits:
    """Limits on what anyone may ask for without a token: the OAuth endpoints and the pages.

    One address may spend a quarter of its limit on each of the two (or 60, where that is more than a quarter). And it may fail ten times
    in five minutes to prove that it is a certain client. Only failures count, after the secret was looked at: who knows the secret is never
    locked out, not even by somebody behind the same address, and guessing 256 bits is hopeless at any speed.

    Args:
        rates: counts.
        address_limit: what one address may do in all.
    """

    def __init__(self, rates: RateLimiter, address_limit: Limit) -> None:
        self._rates = rates
        options: dict[str, Any] = {"rates": rates}
        limiter = Limiter(key_func=_key, strategy=_STRATEGY, storage_uri=f"{_SCHEME}://", storage_options=options)
        limiter.enabled = True  # slowapi would let the environment's RATELIMIT_ENABLED switch it off
        limiter.logger.setLevel(logging.ERROR)  # refusals are in the request log
        share = max(address_limit.amount // 4, min(address_limit.amount, _MIN_SHARE))
        text = f"{share} per {address_limit.window_s} seconds"

        @limiter.shared_limit(text, scope="oauth")
        def oauth(request: Request) -> None: ...

        @limiter.shared_limit(text, scope="page")
        def page(request: Request) -> None: ...

        @limiter.shared_limit(FAILURES, scope="failure")
        def failure(request: Request) -> None: ...

        self._oauth: Gate = oauth
        self._page: Gate = page
        self._failure: Gate = failure

    def guard(self, app: ASGIApp, *, oauth: bool) -> ASGIApp:
        """The app of a route, with the limits before it and the count of failures after it. Refusals are raised as `RateLimited`."""
        gate = self._oauth if oauth else self._page

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            address = address_key(scope["client"][0])
            patience = scope["state"].get(PATIENCE_KEY) or Patience()
            await self._pass(gate, address, patience)
            try:
                await app(scope, receive, send)
            except ClientAuthenticationFailed as error:
                # Hashed: the caller chooses how long an id is, and the key must not be.
                client = hashlib.sha256(error.client_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
                await self._pass(self._failure, f"{address} {client}", patience)
                raise

        return guarded

    async def _pass(self, gate: Gate, key: str, patience: Patience) -> None:
        # A request of slowapi's own: it marks what it has seen in its state, skips a marked one, and takes no limit to an empty path.
        request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "state": {"key": key}})
        token = _PATIENCE.set(patience)
        try:
            await run_in_threadpool(gate, request)
        except RateLimitExceeded as refused:
            item, names = request.state.view_rate_limit
            # Refused again, for when to come back; where the window has just turned, now.
            verdict = await self._rates.take(_quota(item.amount, item.get_expiry()), item.key_for(*names), 1, patience)
            raise RateLimited(max(1, verdict.retry_after_s)) from refused
        finally:
            _PATIENCE.reset(token)


def _key(request: Request) -> str:
    key = request.state.key
    assert isinstance(key, str)
    assert key, "slowapi takes no limit to an empty key"
    return key
