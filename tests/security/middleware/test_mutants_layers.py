"""What a mutation run over the layers found that no other test asserts: see docs/proof.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from starlette.types import Message, Receive, Scope, Send

from security.errors import BodyTooLarge, InvalidToken
from security.middleware.authentication import AuthenticationMiddleware
from security.middleware.body_limit import BodyLimitMiddleware
from security.principal import Principal

PRINCIPAL = Principal("client", frozenset({"predict"}), "https://gate.test", "id", 2_000_000_000)


class Inside:
    """What lies inside a layer, and the two ends of the channel outside it."""

    def __init__(self) -> None:
        self.called: list[tuple[Scope, Receive, Send]] = []
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.called.append((scope, receive, send))

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        pass

    def verify(self, token: str, now: float) -> Principal:
        self.asked.append(token)
        return PRINCIPAL

    def is_refused(self, principal: Principal) -> str | None:
        return None


@pytest.fixture
def inside() -> Inside:
    return Inside()


def _authentication(inside: Inside) -> AuthenticationMiddleware:
    return AuthenticationMiddleware(inside, access={"/predict": "predict"}, verifier=inside, revocations=inside)


def _asking(authorization: bytes) -> Scope:
    return {"type": "http", "path": "/predict", "headers": [(b"authorization", authorization)]}


async def test_both_layers_pass_on_what_is_no_http_as_it_is(inside: Inside) -> None:
    for layer in (BodyLimitMiddleware(inside, max_body_bytes=9), _authentication(inside)):
        scope: Scope = {"type": "lifespan"}
        await layer(scope, inside.receive, inside.send)
        assert inside.called.pop() == (scope, inside.receive, inside.send)


async def test_authentication_hands_on_the_same_channel(inside: Inside) -> None:
    scope = _asking(b"Bearer token")
    await _authentication(inside)(scope, inside.receive, inside.send)
    assert inside.called == [(scope, inside.receive, inside.send)]


@pytest.mark.parametrize("token", ["XtokenX", "\ttoken\t", "\x0btoken\x0b", "\xa0token\xa0"])
async def test_nothing_but_spaces_is_taken_off_a_token(inside: Inside, token: str) -> None:
    """RFC 6750 section 2.1; the verifier then refuses what is no token68."""
    await _authentication(inside)(_asking(b"Bearer  " + token.encode("latin-1") + b" "), inside.receive, inside.send)
    assert inside.asked == [token]


async def test_the_time_that_authentication_took_is_told_in_milliseconds(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[float] = (5.0 + 0.25 * number for number in count())
    monkeypatch.setattr("security.middleware.authentication.time.perf_counter", lambda: next(ticks))
    scope = _asking(b"Bearer token")
    await _authentication(inside)(scope, inside.receive, inside.send)
    assert scope["state"]["auth_ms"] == 250.0


async def test_the_time_is_told_of_a_refused_token_too(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "is_refused", lambda _: "revoked")
    scope = _asking(b"Bearer token")
    with pytest.raises(InvalidToken):
        await _authentication(inside)(scope, inside.receive, inside.send)
    assert scope["state"]["auth_ms"] >= 0


@pytest.mark.parametrize(("length", "accepted"), [(b"9", True), (b"0" * 17 + b"9", True), (b"0" * 18 + b"9", False), (b"10", False)])
async def test_a_content_length_has_at_most_eighteen_digits(inside: Inside, length: bytes, accepted: bool) -> None:
    scope: Scope = {"type": "http", "path": "/", "headers": [(b"content-length", length)]}
    layer = BodyLimitMiddleware(inside, max_body_bytes=9)
    if accepted:
        await layer(scope, inside.receive, inside.send)
    else:
        with pytest.raises(BodyTooLarge):
            await layer(scope, inside.receive, inside.send)
    assert bool(inside.called) == accepted
