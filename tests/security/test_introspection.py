"""Introspection and revocation, with the real registry in both databases and real keys."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from security import clients
from security.client_records import CreatedClient
from security.clients import ClientRegistry
from security.errors import OAuthError, TooManyRevocations
from security.introspection import introspect
from security.key_ring import KeyStore
from security.token_revocation import revoke
from security.tokens import MAX_TOKEN_LIFETIME_S, TokenIssuer, TokenVerifier

ISSUER: Final = "https://gate.test"
INACTIVE: Final = {"active": False}


class Desk:
    """The two endpoints, without the HTTP framework."""

    def __init__(self, registry: ClientRegistry, keys: KeyStore, clock: SimpleNamespace) -> None:
        self.registry = registry
        self._clock = clock
        self._issuer = TokenIssuer(keys, issuer=ISSUER, audience="lensgate", ttl_s=600)
        self._verifier = TokenVerifier(keys, issuer=ISSUER, audience="lensgate", clock_skew_s=30)

    def token(self, client: CreatedClient) -> str:
        return self._issuer.issue(client.client_id, client.scopes, self._clock.now).token

    async def introspect(self, client: CreatedClient, issuer: str = ISSUER, **form: str) -> dict[str, object]:
        asked_by, members = await introspect(self.registry, self._verifier, issuer=issuer, now=self._clock.now, **_request(client, form))
        assert asked_by.client_id == client.client_id
        return members

    async def revoke(self, client: CreatedClient, issuer: str = ISSUER, **form: str) -> str | None:
        asked_by, token_id = await revoke(self.registry, self._verifier, issuer=issuer, now=self._clock.now, **_request(client, form))
        assert asked_by.client_id == client.client_id
        return token_id


def _request(client: CreatedClient, form: dict[str, str]) -> dict[str, Any]:
    basic = base64.b64encode(f"{client.client_id}:{client.client_secret}".encode())
    headers = [(b"authorization", b"Basic " + basic), (b"content-type", b"application/x-www-form-urlencoded")]
    return {"headers": headers, "query": b"", "body": urlencode(form).encode()}


@pytest.fixture
def desk(registry: ClientRegistry, key_store: KeyStore, clock: SimpleNamespace) -> Desk:
    return Desk(registry, key_store, clock)


@pytest.fixture
async def camera(registry: ClientRegistry) -> CreatedClient:
    return await registry.create("camera", ["predict"])


@pytest.fixture
async def other(registry: ClientRegistry) -> CreatedClient:
    return await registry.create("other", ["predict"])


async def test_a_client_sees_all_of_its_own_token(desk: Desk, camera: CreatedClient, clock: SimpleNamespace) -> None:
    shown = await desk.introspect(camera, token=desk.token(camera))
    assert shown.pop("jti")
    assert shown == {
        "active": True,
        "token_type": "Bearer",
        "scope": "predict",
        "client_id": camera.client_id,
        "sub": camera.client_id,
        "iss": ISSUER,
        "aud": "lensgate",
        "iat": int(clock.now),
        "exp": int(clock.now) + 600,
    }


async def test_the_token_of_another_is_shown_to_the_scope_introspect_only(desk: Desk, camera: CreatedClient, other: CreatedClient) -> None:
    auditor = await desk.registry.create("auditor", ["introspect"])
    token = desk.token(other)
    assert await desk.introspect(camera, token=token) == INACTIVE
    assert (await desk.introspect(auditor, token=token))["client_id"] == other.client_id


async def test_a_revoked_token_is_inactive_at_once(desk: Desk, camera: CreatedClient) -> None:
    token, sister = desk.token(camera), desk.token(camera)
    token_id = (await desk.introspect(camera, token=token))["jti"]
    assert await desk.revoke(camera, token=token) == token_id
    assert await desk.revoke(camera, token=token) == token_id
    assert await desk.introspect(camera, token=token) == INACTIVE
    assert (await desk.introspect(camera, token=sister))["active"] is True


@pytest.mark.parametrize("end", ["disable", "delete"])
async def test_the_token_of_a_client_that_is_gone_is_inactive_at_once(desk: Desk, camera: CreatedClient, end: str) -> None:
    auditor = await desk.registry.create("auditor", ["introspect"])
    token = desk.token(camera)
    await getattr(desk.registry, end)("camera")
    assert await desk.introspect(auditor, token=token) == INACTIVE


async def test_an_expired_token_is_inactive_and_revoking_it_writes_nothing(
    desk: Desk, camera: CreatedClient, clock: SimpleNamespace
) -> None:
    token = desk.token(camera)
    clock.now += 600
    assert await desk.introspect(camera, token=token) == INACTIVE
    assert await desk.revoke(camera, token=token) is None
    assert (await desk.registry.snapshot()).revoked_tokens == frozenset()


async def test_a_client_cannot_revoke_the_token_of_another_even_with_the_scope_introspect(desk: Desk, other: CreatedClient) -> None:
    auditor = await desk.registry.create("auditor", ["introspect"])
    token = desk.token(other)
    assert await desk.revoke(auditor, token=token) is None
    assert (await desk.introspect(other, token=token))["active"] is True


async def test_the_token_of_another_issuer_is_neither_shown_nor_revoked(desk: Desk, camera: CreatedClient) -> None:
    token = desk.token(camera)
    assert await desk.introspect(camera, issuer="https://other.test", token=token) == INACTIVE
    assert await desk.revoke(camera, issuer="https://other.test", token=token) is None


async def test_a_hint_of_any_kind_changes_nothing(desk: Desk, camera: CreatedClient) -> None:
    for hint in ("access_token", "refresh_token", "nonsense"):
        token = desk.token(camera)
        assert (await desk.introspect(camera, token=token, token_type_hint=hint))["active"] is True
        assert await desk.revoke(camera, token=token, token_type_hint=hint)


@pytest.mark.parametrize("act", ["introspect", "revoke"])
async def test_a_request_without_a_token_is_invalid(desk: Desk, camera: CreatedClient, act: str) -> None:
    with pytest.raises(OAuthError, match="token is missing") as refusal:
        await getattr(desk, act)(camera)
    assert refusal.value.code == "invalid_request"


@pytest.mark.parametrize("act", ["introspect", "revoke"])
async def test_nobody_is_told_anything_without_being_known(desk: Desk, camera: CreatedClient, act: str) -> None:
    stranger = CreatedClient(camera.client_id, "lgs_wrong", "camera", ("predict",), "standard")
    with pytest.raises(OAuthError) as refusal:
        await getattr(desk, act)(stranger, token=desk.token(camera))
    assert refusal.value.code == "invalid_client"


async def test_a_client_with_too_many_revoked_tokens_is_told_to_come_again(
    desk: Desk, camera: CreatedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_REVOKED_PER_CLIENT", 1)
    await desk.revoke(camera, token=desk.token(camera))
    with pytest.raises(TooManyRevocations) as refusal:
        await desk.revoke(camera, token=desk.token(camera))
    assert refusal.value.retry_after_s >= 1


async def test_a_revocation_is_forgotten_once_the_token_has_expired(desk: Desk, camera: CreatedClient, clock: SimpleNamespace) -> None:
    await desk.revoke(camera, token=desk.token(camera))
    assert await desk.registry.prune() == 0
    clock.now += 601 + clients.PRUNE_AFTER_S
    assert await desk.registry.prune() == 1


async def test_is_refused_asks_for_this_token_and_this_client_only(registry: ClientRegistry, camera: CreatedClient) -> None:
    assert not await registry.is_refused("token-1", camera.client_id)
    await registry.revoke("token-1", "operator", 2_000_000_000 + MAX_TOKEN_LIFETIME_S)
    assert await registry.is_refused("token-1", camera.client_id)
    assert not await registry.is_refused("token-2", camera.client_id)
