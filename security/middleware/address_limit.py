"""The layer that limits how often one address may ask, before anything is done for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from security.client_address import UNKNOWN, TrustedProxies, address_key
from security.errors import RateLimited
from security.limit_storage import Patience, RateLimiter
from security.rate_limits import STATE_KEY, Limit, Quota

PATIENCE_KEY: Final = "limit_patience"
"""Where a request's patience with Redis stands: `scope["state"]["limit_patience"]`."""


class AddressLimitMiddleware:
    """Finds out whose address a request comes from, and counts it. Whatever the path: what does not exist is limited too.

    The address replaces the peer's in `scope["client"]`, for the log and for everything inside. Probes have a bucket of their own, of the
    same size: an address that is limited is not taken for dead. A refusal is raised as `RateLimited`, for the boundary outside to answer.

    Args:
        app: the next layer.
        rates: counts.
        limit: for each address.
        proxies: whose X-Forwarded-For is believed.
        probe_paths: the exact paths of the probes.
    """

    def __init__(self, app: ASGIApp, *, rates: RateLimiter, limit: Limit, proxies: TrustedProxies, probe_paths: Collection[str]) -> None:
        self._app = app
        self._rates = rates
        self._proxies = proxies
        self._quota = Quota("address", limit)
        self._probes = Quota("probes", limit)
        self._probe_paths = frozenset(probe_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            peer, port = scope.get("client") or (UNKNOWN, 0)
            address = self._proxies.resolve(peer, scope["headers"])
            scope["client"] = (address, port)
            state = scope.setdefault("state", {})
            patience = state[PATIENCE_KEY] = Patience()
            quota = self._probes if scope["path"] in self._probe_paths else self._quota
            verdict = await self._rates.take(quota, address_key(address), 1, patience)
            state[STATE_KEY] = [verdict]
            if not verdict.admitted:
                raise RateLimited(verdict.retry_after_s)
        await self._app(scope, receive, send)
