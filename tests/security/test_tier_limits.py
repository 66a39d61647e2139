"""Tiers, and the layer that holds a client to its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from starlette.types import Message, Receive, Scope, Send

from security.errors import RateLimited, TooManyInFlight
from security.limit_storage import RateLimiter
from security.limit_windows import SharedWindows
from security.middleware.client_limit import ClientLimitMiddleware, take_images
from security.principal import Principal
from security.rate_limits import STATE_KEY
from security.tiers import Tiers, TierSettings, check_tiers

TIERS = {
    "standard": TierSettings(images="600/minute", in_flight=2),
    "slow": TierSettings(images="5/hour", in_flight=9),
    "gold": TierSettings(images="50/second", in_flight=64),
}


class Source:
    def tier_of(self, principal: Principal) -> str:
        return principal.tier or "standard"


def asked_by(client_id: str = "client_a", tier: str | None = None) -> Scope:
    principal = Principal(client_id, frozenset({"predict"}), "issuer", "jti", 1, tier)
    return {"type": "http", "path": "/predict", "headers": [], "state": {"principal": principal}}


async def receive() -> Message:
    raise AssertionError("the body was read")


async def send(message: Message) -> None:
    raise AssertionError("an answer was sent")


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    return


def layer(windows: SharedWindows, app: Any = nothing) -> ClientLimitMiddleware:  # noqa: ANN401 # any ASGI app
    return ClientLimitMiddleware(app, rates=RateLimiter(windows), tiers=Tiers(TIERS), source=Source())


async def passed(limit: ClientLimitMiddleware, scope: Scope) -> bool:
    try:
        await limit(scope, receive, send)
    except RateLimited:
        return False
    return True


async def test_each_tier_has_its_own_limit(windows: SharedWindows) -> None:
    limit = layer(windows)
    assert [await passed(limit, asked_by(tier="slow")) for _ in range(7)] == [True] * 5 + [False] * 2
    assert await passed(limit, asked_by())


async def test_clients_of_one_tier_do_not_share_a_bucket(windows: SharedWindows) -> None:
    limit = layer(windows)
    for client in ("client_a", "client_b", "x" * 5000, "x" * 5001):
        assert [await passed(limit, asked_by(client, "slow")) for _ in range(6)] == [True] * 5 + [False]


async def test_a_tier_that_is_not_there_has_the_strictest_limits_and_the_log_says_so_once(windows: SharedWindows) -> None:
    limit = layer(windows)
    with structlog.testing.capture_logs() as log:
        assert [await passed(limit, asked_by(tier="gone")) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [(line["event"], line["tier"]) for line in log] == [("tier_unknown", "gone")]
    assert Tiers(TIERS).get("gone").in_flight == 2


async def test_one_more_in_flight_is_refused_and_costs_no_unit(windows: SharedWindows) -> None:
    leave = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await leave.wait()

    limit = layer(windows, wait)
    held = [asyncio.create_task(limit(asked_by(), receive, send)) for _ in range(2)]
    await asyncio.sleep(0)
    refused = asked_by()
    with pytest.raises(TooManyInFlight):
        await limit(refused, receive, send)
    assert STATE_KEY not in refused["state"]
    other = asyncio.create_task(limit(asked_by("client_b"), receive, send))
    held[0].cancel()  # one of them leaves, and another may come
    await asyncio.wait({held[0]})
    held.append(asyncio.create_task(limit(asked_by(), receive, send)))
    leave.set()
    await asyncio.gather(other, *held[1:])
    assert limit._in_flight == {}


async def test_a_failure_inside_gives_the_place_back(windows: SharedWindows) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError

    limit = layer(windows, fail)
    for _ in range(5):
        with pytest.raises(RuntimeError):
            await limit(asked_by(), receive, send)
    assert limit._in_flight == {}


async def test_a_batch_takes_its_other_pictures_all_or_none_and_tells_what_is_left(windows: SharedWindows) -> None:
    rates, tiers = RateLimiter(windows), Tiers(TIERS)
    limit = ClientLimitMiddleware(nothing, rates=rates, tiers=tiers, source=Source())
    scope = asked_by(tier="slow")
    await limit(scope, receive, send)
    await take_images(scope, rates, Source(), tiers, 1)
    with pytest.raises(RateLimited):
        await take_images(scope, rates, Source(), tiers, 4)
    await take_images(scope, rates, Source(), tiers, 3)
    assert [(verdict.quota.name, verdict.remaining) for verdict in scope["state"][STATE_KEY]] == [("images", 0)]


async def test_a_batch_of_the_whole_limit_passes_and_a_larger_one_is_told_that_it_never_will(windows: SharedWindows) -> None:
    rates, tiers = RateLimiter(windows), Tiers(TIERS)
    limit = ClientLimitMiddleware(nothing, rates=rates, tiers=tiers, source=Source())
    scope = asked_by(tier="slow")
    await limit(scope, receive, send)
    with pytest.raises(RateLimited, match="at most 5 images in 3600 seconds, so a batch of 6 can never pass"):
        await take_images(scope, rates, Source(), tiers, 5)
    await take_images(scope, rates, Source(), tiers, 4)  # what was refused took nothing


async def test_what_is_public_is_not_counted_for_any_client(windows: SharedWindows) -> None:
    scope: Scope = {"type": "http", "path": "/livez", "headers": [], "state": {}}
    await layer(windows)(scope, receive, send)
    assert scope["state"] == {}


@pytest.mark.parametrize("names", [[], ["gold"], ["standard", "Gold"], ["standard", ""], ["standard", "x" * 33]])
def test_tiers_that_clients_cannot_have_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="tier"):
        check_tiers(dict.fromkeys(names, TIERS["gold"]))


@pytest.mark.parametrize("settings", [{"images": "lots", "in_flight": 1}, {"images": "1/minute", "in_flight": 0}, {"images": "1/minute"}])
def test_a_tier_says_both_of_its_limits(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        TierSettings.model_validate(settings)
