"""The layer that limits what one client may ask for, by its tier, before a byte of the body is read."""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from security.errors import RateLimited, TooManyInFlight
from security.limit_storage import Patience, RateLimiter
from security.middleware.address_limit import PATIENCE_KEY
from security.principal import STATE_KEY as PRINCIPAL_KEY
from security.principal import Principal
from security.rate_limits import STATE_KEY
from security.tiers import Tier, Tiers

TIER_KEY: Final = "tier"
"""Where the name of the client's tier stands: `scope["state"]["tier"]`."""

_LONGEST_PLAIN_KEY: Final = 128


class TierSource(Protocol):
    """Whatever knows which tier a client has."""

    def tier_of(self, principal: Principal) -> str:
        """Its name."""
        ...


class ClientLimitMiddleware:
    """One unit of the client's quota for every request, and a cap on how many of its requests are served at once.

    A client is limited as one, whatever tokens it holds and whatever path it asks for. Requests in flight are counted by each worker
    process for itself: the cap bounds what one client can hold of this process. Refusals are raised, for the boundary outside to answer:
    `TooManyInFlight`, which costs no unit, and `RateLimited`. A request without a principal, for what is public, is let through.

    Args:
        app: the next layer.
        rates: counts.
        tiers: what each tier allows.
        source: knows who has which.
    """

    def __init__(self, app: ASGIApp, *, rates: RateLimiter, tiers: Tiers, source: TierSource) -> None:
        self._app = app
        self._rates = rates
        self._tiers = tiers
        self._source = source
        self._in_flight: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        principal = scope["state"].get(PRINCIPAL_KEY) if scope["type"] == "http" else None
        if not isinstance(principal, Principal):
            await self._app(scope, receive, send)
            return
        tier = self._tiers.get(self._source.tier_of(principal))
        scope["state"][TIER_KEY] = tier.name
        client = principal.client_id
        count = self._in_flight.get(client, 0)
        if count >= tier.in_flight:
            raise TooManyInFlight
        self._in_flight[client] = count + 1
        try:
            await _take(scope, self._rates, tier, client, 1)
            await self._app(scope, receive, send)
        finally:
            left = self._in_flight[client] - 1
            if left:
                self._in_flight[client] = left
            else:
                del self._in_flight[client]


async def take_images(scope: Scope, rates: RateLimiter, source: TierSource, tiers: Tiers, count: int) -> None:
    """Take `count` more pictures than the one that the layer took from the quota of the client that asks: all of them or none.

    Raises:
        RateLimited: they are more than is left of it, or, as its message then says, than it will ever be.
    """
    principal = scope["state"][PRINCIPAL_KEY]
    assert isinstance(principal, Principal)
    tier = tiers.get(source.tier_of(principal))
    try:
        await _take(scope, rates, tier, principal.client_id, count)
    except RateLimited as refused:
        images, quota = count + 1, tier.quota
        if images <= quota.amount:
            raise
        most = f"This client may send at most {quota.amount} images in {quota.window_s} seconds"
        raise RateLimited(refused.retry_after_s, f"{most}, so a batch of {images} can never pass: send smaller ones.") from None


async def _take(scope: Scope, rates: RateLimiter, tier: Tier, client_id: str, count: int) -> None:
    state = scope["state"]
    verdict = await rates.take(tier.quota, f"{tier.name}/{_key(client_id)}", count, state.get(PATIENCE_KEY) or Patience())
    # In front of the address's verdict, and in the place of what was told for the first picture.
    state[STATE_KEY] = [verdict, *[other for other in state.get(STATE_KEY, ()) if other.quota.name != tier.quota.name]]
    if not verdict.admitted:
        raise RateLimited(verdict.retry_after_s)


def _key(client_id: str) -> str:
    # The ids of other issuers can be of any length, and a key must not be.
    return client_id if len(client_id) <= _LONGEST_PLAIN_KEY else hashlib.sha256(client_id.encode()).hexdigest()
