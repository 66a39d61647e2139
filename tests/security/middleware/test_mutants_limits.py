"""What a mutation run over the limits and the CORS layers found that no other unit test asserts: see docs/proof.md."""

from __future__ import annotations

import hashlib

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from security.client_address import UNKNOWN, TrustedProxies, parse_network
from security.errors import PreflightRefused, RateLimited
from security.limit_storage import Patience, RateLimiter
from security.middleware.address_limit import PATIENCE_KEY, AddressLimitMiddleware
from security.middleware.client_limit import ClientLimitMiddleware
from security.middleware.cors import CorsHeadersMiddleware, PreflightMiddleware
from security.principal import STATE_KEY as PRINCIPAL_KEY
from security.principal import Principal
from security.rate_limits import STATE_KEY, Limit, Quota, Verdict
from security.tiers import Tiers, TierSettings

ORIGIN = b"https://app.example"
_ALLOWED_HEADERS = b"Authorization, Content-Type, X-Request-ID, traceparent, tracestate, Accept, Accept-Language, Content-Language"


class Channel:
    """What lies inside a layer, and the two ends of the channel outside it."""

    def __init__(self) -> None:
        self.called: list[tuple[Scope, Receive, Send]] = []
        self.sent: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.called.append((scope, receive, send))

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def through(self, layer: ASGIApp, scope: Scope) -> None:
        await layer(scope, self.receive, self.send)


class Rates(RateLimiter):
    """Counts nothing, and notes what it was asked."""

    def __init__(self, *, admits: bool = True) -> None:
        # Without its own: nothing is counted.
        self.admits = admits
        self.asked: list[tuple[Quota, str, int, Patience | None]] = []

    async def take(self, quota: Quota, key: str, cost: int = 1, patience: Patience | None = None) -> Verdict:
        self.asked.append((quota, key, cost, patience))
        return Verdict(quota, self.admits, 4, 5, 0 if self.admits else 7)


class Source:
    """Everybody has one tier."""

    def tier_of(self, principal: Principal) -> str:
        return "standard"


@pytest.fixture
def channel() -> Channel:
    return Channel()


def _address_limit(channel: Channel, rates: Rates) -> AddressLimitMiddleware:
    proxies = TrustedProxies([parse_network("10.0.0.0/8")])
    return AddressLimitMiddleware(channel, rates=rates, limit=Limit(5, 60), proxies=proxies, probe_paths=["/livez"])


def _request(path: str = "/any", **more: object) -> Scope:
    return {"type": "http", "method": "GET", "path": path, "headers": [(b"x-forwarded-for", b"2001:db8::7")], **more}


async def test_an_address_is_counted_once_by_its_site_and_put_in_the_peers_place(channel: Channel) -> None:
    rates = Rates()
    scope = _request(client=("10.0.0.1", 4711))
    await channel.through(_address_limit(channel, rates), scope)
    [(quota, key, cost, patience)] = rates.asked
    assert (quota.name, quota.limit, key, cost) == ("address", Limit(5, 60), "2001:db8::/64", 1)
    assert scope["client"] == ("2001:db8::7", 4711)
    assert scope["state"][STATE_KEY] == [Verdict(quota, True, 4, 5, 0)]
    assert patience is scope["state"][PATIENCE_KEY]
    assert isinstance(patience, Patience)
    assert channel.called == [(scope, channel.receive, channel.send)]


async def test_probes_are_counted_apart_with_the_same_limit(channel: Channel) -> None:
    rates = Rates()
    await channel.through(_address_limit(channel, rates), _request("/livez", client=("192.0.2.1", 1)))
    assert [(quota.name, quota.limit, key) for quota, key, _, _ in rates.asked] == [("probes", Limit(5, 60), "192.0.2.1")]


async def test_a_peer_without_an_address_is_counted_too(channel: Channel) -> None:
    rates = Rates()
    scope = _request(client=None)
    await channel.through(_address_limit(channel, rates), scope)
    assert [key for _, key, _, _ in rates.asked] == [UNKNOWN]
    assert scope["client"] == (UNKNOWN, 0)


async def test_what_outer_layers_left_in_the_state_stays(channel: Channel) -> None:
    scope = _request(client=("192.0.2.1", 1), state={"record": 1})
    await channel.through(_address_limit(channel, Rates()), scope)
    assert scope["state"]["record"] == 1


async def test_a_refused_address_goes_no_further_and_is_told_when_to_come_back(channel: Channel) -> None:
    scope = _request(client=("192.0.2.1", 1))
    with pytest.raises(RateLimited) as refused:
        await channel.through(_address_limit(channel, Rates(admits=False)), scope)
    assert refused.value.retry_after_s == 7
    assert channel.called == []
    assert [verdict.admitted for verdict in scope["state"][STATE_KEY]] == [False]


def _client_limit(channel: Channel, rates: Rates) -> ClientLimitMiddleware:
    tiers = Tiers({"standard": TierSettings(images="5/minute", in_flight=1)})
    return ClientLimitMiddleware(channel, rates=rates, tiers=tiers, source=Source())


def _asked_by(client_id: str, **state: object) -> Scope:
    principal = Principal(client_id, frozenset(), "https://gate.test", "id", 2_000_000_000)
    return {"type": "http", "path": "/predict", "headers": [], "state": {PRINCIPAL_KEY: principal, **state}}


async def test_a_client_is_counted_with_the_requests_patience_and_in_front_of_its_address(channel: Channel) -> None:
    rates, patience = Rates(), Patience()
    address = Verdict(Quota("address", Limit(9, 60)), True, 8, 1, 0)
    scope = _asked_by("client", **{PATIENCE_KEY: patience, STATE_KEY: [address]})
    await channel.through(_client_limit(channel, rates), scope)
    [(quota, key, cost, given)] = rates.asked
    assert (quota.name, quota.limit, key, cost) == ("images", Limit(5, 60), "standard/client", 1)
    assert given is patience
    assert scope["state"][STATE_KEY] == [Verdict(quota, True, 4, 5, 0), address]
    assert channel.called == [(scope, channel.receive, channel.send)]


async def test_a_refused_client_is_told_when_to_come_back(channel: Channel) -> None:
    with pytest.raises(RateLimited) as refused:
        await channel.through(_client_limit(channel, Rates(admits=False)), _asked_by("client"))
    assert refused.value.retry_after_s == 7
    assert channel.called == []


@pytest.mark.parametrize("length", [127, 128, 129, 300])
async def test_a_long_client_id_is_counted_under_its_hash(channel: Channel, length: int) -> None:
    rates = Rates()
    await channel.through(_client_limit(channel, rates), _asked_by("c" * length))
    expected = "c" * length if length <= 128 else hashlib.sha256(b"c" * length).hexdigest()
    assert [key for _, key, _, _ in rates.asked] == [f"standard/{expected}"]


async def test_every_layer_passes_on_what_is_no_http_as_it_is(channel: Channel) -> None:
    scope: Scope = {"type": "lifespan"}
    for layer in (
        _address_limit(channel, Rates()),
        _client_limit(channel, Rates()),
        CorsHeadersMiddleware(channel, origins=[ORIGIN.decode()]),
        PreflightMiddleware(channel, origins=[ORIGIN.decode()]),
    ):
        await channel.through(layer, scope)
        assert channel.called.pop() == (scope, channel.receive, channel.send)
    assert scope == {"type": "lifespan"}


async def test_the_cors_headers_stand_on_answers_without_headers_too(channel: Channel) -> None:
    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        await channel(scope, receive, send)
        await send({"type": "http.response.start", "status": 204})

    scope = _request()
    await channel.through(CorsHeadersMiddleware(bare, origins=[ORIGIN.decode()]), scope)
    assert channel.called[0][:2] == (scope, channel.receive)
    assert channel.sent == [{"type": "http.response.start", "status": 204, "headers": [(b"vary", b"Origin")]}]


def _preflight(**headers: bytes) -> Scope:
    named = [(b"access-control-request-" + name.encode(), value) for name, value in headers.items()]
    return {"type": "http", "method": "OPTIONS", "path": "/predict", "headers": [(b"origin", ORIGIN), *named]}


async def test_a_preflight_is_answered_to_the_letter(channel: Channel) -> None:
    await channel.through(PreflightMiddleware(channel, origins=[ORIGIN.decode()]), _preflight(method=b"POST", headers=b"authorization"))
    headers = [
        (b"access-control-allow-methods", b"GET, HEAD, POST"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", b"600"),
    ]
    start = {"type": "http.response.start", "status": 204, "headers": headers}
    assert channel.sent == [start, {"type": "http.response.body", "body": b""}]


@pytest.mark.parametrize(
    ("scope", "origin", "sentence"),
    [
        (_preflight(method=b"GET"), "https://other.example", "This origin is not allowed."),
        (_preflight(method=b"PUT"), ORIGIN.decode(), "This method is not allowed across origins."),
        (_preflight(method=b"GET", headers=b"x-evil"), ORIGIN.decode(), "A header is not allowed across origins."),
    ],
)
async def test_a_refused_preflight_is_told_why(channel: Channel, scope: Scope, origin: str, sentence: str) -> None:
    with pytest.raises(PreflightRefused) as refused:
        await channel.through(PreflightMiddleware(channel, origins=[origin]), scope)
    assert str(refused.value) == sentence
    assert channel.called == []
    assert channel.sent == []


@pytest.mark.parametrize(
    ("lines", "allowed"),
    [
        ([b"authorization", b"content-type"], True),
        ([b"authorization, content-type,x-request-id,"], True),
        ([b"XauthorizationX"], False),
        ([b"\x0bauthorization"], False),
    ],
)
async def test_the_headers_of_a_preflight_are_compared_to_the_letter(channel: Channel, lines: list[bytes], allowed: bool) -> None:
    scope = _preflight(method=b"GET")
    scope["headers"] += [(b"access-control-request-headers", line) for line in lines]
    layer = PreflightMiddleware(channel, origins=[ORIGIN.decode()])
    if allowed:
        await channel.through(layer, scope)
        assert channel.sent[0]["status"] == 204
    else:
        with pytest.raises(PreflightRefused):
            await channel.through(layer, scope)


async def test_an_allowed_page_may_read_these_headers(channel: Channel) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {**_request(), "headers": [(b"origin", ORIGIN)]}
    await channel.through(CorsHeadersMiddleware(answer, origins=[ORIGIN.decode()]), scope)
    exposed = b"X-Request-ID, traceparent, Server-Timing, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate"
    assert (b"access-control-expose-headers", exposed) in channel.sent[0]["headers"]


@pytest.mark.parametrize(("length", "allowed"), [(1024, True), (1025, False)])
async def test_a_preflight_asks_for_headers_in_at_most_a_kilobyte(channel: Channel, length: int, allowed: bool) -> None:
    scope = _preflight(method=b"GET", headers=b"authorization".ljust(length, b","))
    layer = PreflightMiddleware(channel, origins=[ORIGIN.decode()])
    if allowed:
        await channel.through(layer, scope)
        assert channel.sent[0]["status"] == 204
    else:
        with pytest.raises(PreflightRefused):
            await channel.through(layer, scope)
