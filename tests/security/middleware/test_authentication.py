from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from security.access import PUBLIC
from security.errors import InsufficientScope, InvalidToken, MissingToken
from security.key_ring import KeyStore
from security.keys import create_key
from security.middleware.authentication import AuthenticationMiddleware
from security.principal import STATE_KEY, Principal
from security.tokens import TokenIssuer, TokenVerifier

NOW = 1_800_000_000.0
ISSUER = "https://gate.test"
ACCESS = {"/livez": PUBLIC, "/predict": "predict", "/metrics": "metrics"}


class Gate:
    """The layer in front of an app that notes what reached it; reading the body is an error."""

    def __init__(self, keys: KeyStore) -> None:
        self.served: list[Scope] = []
        self.refused_tokens: dict[str, str] = {}
        self.sent: list[Message] = []
        self.issuer = TokenIssuer(keys, issuer=ISSUER, audience="lensgate", ttl_s=600)
        verifier = TokenVerifier(keys, issuer=ISSUER, audience="lensgate", clock_skew_s=30)
        self.layer = AuthenticationMiddleware(self.app, access=ACCESS, verifier=verifier, revocations=self, clock=lambda: NOW)

    async def app(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        self.served.append(scope)

    def is_refused(self, principal: Principal) -> str | None:
        return self.refused_tokens.get(principal.token_id)

    def bearer(self, *scopes: str) -> bytes:
        return b"Bearer " + self.issuer.issue("client_a", scopes, NOW).token.encode()

    async def receive(self) -> Message:
        raise AssertionError("the body was read")

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, *authorizations: bytes, path: str = "/predict", **scope: object) -> Scope:
        headers = [(b"host", b"gate.test")] + [(b"authorization", value) for value in authorizations]
        full: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, **scope}
        await self.layer(full, self.receive, self.send)
        return full


@pytest.fixture
def gate(key_store: KeyStore) -> Gate:
    return Gate(key_store)


async def test_a_good_token_passes_and_leaves_who_it_speaks_for_and_how_long_that_took(gate: Gate) -> None:
    scope = await gate.ask(gate.bearer("predict"))
    assert gate.served == [scope]
    assert scope["state"][STATE_KEY].client_id == "client_a"
    assert scope["state"]["auth_ms"] > 0


async def test_the_state_that_stands_in_the_scope_is_kept(gate: Gate) -> None:
    state = {"from": "outside"}
    scope = await gate.ask(gate.bearer("predict"), state=state)
    assert scope["state"] is state
    assert set(state) == {"from", STATE_KEY, "auth_began_s", "auth_ms"}


@pytest.mark.parametrize("scheme", [b"bearer", b"BEARER", b"Bearer  "])
async def test_the_scheme_is_read_as_rfc_9110_writes_it(gate: Gate, scheme: bytes) -> None:
    await gate.ask(scheme + gate.bearer("predict").removeprefix(b"Bearer"))
    assert len(gate.served) == 1


@pytest.mark.parametrize("authorizations", [[], [b"garbage"], [b"Bearer  not a token"]])
async def test_a_public_path_asks_for_nothing_and_looks_at_nothing(gate: Gate, authorizations: list[bytes]) -> None:
    scope = await gate.ask(*authorizations, path="/livez")
    assert gate.served == [scope]
    assert STATE_KEY not in scope.get("state", {})


@pytest.mark.parametrize("path", ["/livez/", "/LIVEZ", "//livez", "/livez/../predict", "", "/", "/nowhere"])
async def test_a_path_that_is_not_exactly_a_public_one_needs_a_token(gate: Gate, path: str) -> None:
    with pytest.raises(MissingToken):
        await gate.ask(path=path)


async def test_an_unknown_path_needs_a_token_but_no_scope(gate: Gate) -> None:
    await gate.ask(gate.bearer(), path="/nowhere")
    assert len(gate.served) == 1


async def test_01_no_credentials_are_a_missing_token(gate: Gate) -> None:
    with pytest.raises(MissingToken):
        await gate.ask()
    assert gate.served == []


@pytest.mark.parametrize("header", [b"Bearer", b"Bearer ", b"bearer    ", b"Bearer \xff", b"Bearer a b", b"Bearer a, Bearer b"])
async def test_02_bearer_with_nothing_or_nonsense_behind_it_is_an_invalid_token(gate: Gate, header: bytes) -> None:
    with pytest.raises(InvalidToken) as refused:
        await gate.ask(header)
    assert refused.value.cause == "malformed"
    assert gate.served == []


@pytest.mark.parametrize("header", [b"", b"Basic YTpi", b"Token abc", b"Bearer\tabc", b"Bearerabc", b"\xff"])
async def test_03_another_scheme_is_a_missing_token(gate: Gate, header: bytes) -> None:
    with pytest.raises(MissingToken):
        await gate.ask(header)


async def test_04_of_two_headers_none_wins(gate: Gate) -> None:
    good = gate.bearer("predict")
    for headers in ([good, good], [good, b"Basic YTpi"], [b"Basic YTpi", good]):
        with pytest.raises(InvalidToken) as refused:
            await gate.ask(*headers)
        assert refused.value.cause == "several_headers"
    assert gate.served == []


async def test_22_a_token_in_the_query_is_no_token(gate: Gate) -> None:
    with pytest.raises(MissingToken):
        await gate.ask(query_string=b"access_token=" + gate.bearer("predict").removeprefix(b"Bearer "))


async def test_23_a_good_token_without_the_scope_is_refused_before_the_body_and_its_client_is_known(gate: Gate) -> None:
    scope: Scope = {"state": {}}
    with pytest.raises(InsufficientScope) as refused:
        await gate.ask(gate.bearer("metrics"), **scope)
    assert refused.value.required == "predict"
    assert scope["state"][STATE_KEY].client_id == "client_a"
    assert gate.served == []


@pytest.mark.parametrize("cause", ["revoked", "disabled"])
async def test_21_and_25_a_token_taken_back_is_refused_with_its_cause(gate: Gate, cause: str) -> None:
    issued = gate.issuer.issue("client_a", ("predict",), NOW)
    gate.refused_tokens[issued.token_id] = cause
    scope: Scope = {"state": {}}
    with pytest.raises(InvalidToken) as refused:
        await gate.ask(b"Bearer " + issued.token.encode(), **scope)
    assert refused.value.cause == cause
    assert set(scope["state"]) == {"auth_began_s", "auth_ms"}


async def test_the_path_is_that_of_the_request_line_whatever_the_host_says(gate: Gate) -> None:
    headers = [(b"host", b"gate.test/livez?")]
    with pytest.raises(MissingToken):
        await gate.ask(headers=headers)


async def test_a_websocket_is_closed_unheard(gate: Gate) -> None:
    await gate.ask(gate.bearer("predict"), type="websocket")
    assert gate.sent == [{"type": "websocket.close", "code": 1008}]
    assert gate.served == []


async def test_lifespan_passes(gate: Gate) -> None:
    scope = {"type": "lifespan"}
    await gate.layer(scope, gate.receive, gate.send)
    assert gate.served == [scope]


async def test_another_services_key_makes_no_good_token(gate: Gate, tmp_path: Path, keys_dir: Path) -> None:
    (tmp_path / "other").mkdir()
    kid = next(keys_dir.iterdir()).name
    (tmp_path / "other" / f"{create_key(tmp_path / 'other')}.pem").rename(tmp_path / "other" / kid)
    forger = Gate(KeyStore(tmp_path / "other", poll_s=1))
    with pytest.raises(InvalidToken) as refused:
        await gate.ask(forger.bearer("predict"))
    assert refused.value.cause == "bad_signature"
