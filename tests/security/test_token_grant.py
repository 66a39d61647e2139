from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import urlencode

import pytest

from security.client_records import CreatedClient
from security.clients import ClientRegistry
from security.database import Database
from security.errors import OAuthError, RegistryUnavailable
from security.key_ring import KeyStore
from security.token_grant import TokenResponse, grant
from security.tokens import TokenIssuer, TokenVerifier

NOW = 1_800_000_000.0
ISSUER = "https://gate.test"


@pytest.fixture
async def client(registry: ClientRegistry) -> CreatedClient:
    return await registry.create("camera", ["predict", "metrics"])


@pytest.fixture
def issuer(key_store: KeyStore) -> TokenIssuer:
    return TokenIssuer(key_store, issuer=ISSUER, audience="lensgate", ttl_s=600)


async def ask(registry: ClientRegistry, issuer: TokenIssuer, credentials: tuple[str, str] | None, **form: str) -> TokenResponse:
    """One token request, with HTTP Basic where credentials are given."""
    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    if credentials is not None:
        headers.append((b"authorization", b"Basic " + base64.b64encode(":".join(credentials).encode())))
    # A generator, since ASGI promises no more than an iterable.
    return await grant(registry, issuer, headers=(header for header in headers), query=b"", body=urlencode(form).encode(), now=NOW)


async def refusal(registry: ClientRegistry, issuer: TokenIssuer, credentials: tuple[str, str] | None, **form: str) -> tuple[str, str]:
    with pytest.raises(OAuthError) as refused:
        await ask(registry, issuer, credentials, **form)
    return refused.value.code, str(refused.value)


async def test_37_a_client_gets_a_token_of_rfc_6749s_shape(
    registry: ClientRegistry, issuer: TokenIssuer, key_store: KeyStore, client: CreatedClient
) -> None:
    response = await ask(registry, issuer, (client.client_id, client.client_secret), grant_type="client_credentials")
    assert response.body() == {"access_token": response.access_token, "token_type": "Bearer", "expires_in": 600, "scope": "predict metrics"}
    principal = TokenVerifier(key_store, issuer=ISSUER, audience="lensgate", clock_skew_s=0).verify(response.access_token, NOW)
    assert (principal.client_id, principal.token_id) == (response.client_id, response.token_id) == (client.client_id, principal.token_id)
    assert principal.scopes == {"predict", "metrics"}
    assert response.access_token not in repr(response)


async def test_credentials_in_the_body_do_as_well(registry: ClientRegistry, issuer: TokenIssuer, client: CreatedClient) -> None:
    response = await ask(
        registry, issuer, None, grant_type="client_credentials", client_id=client.client_id, client_secret=client.client_secret
    )
    assert response.client_id == client.client_id


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("", "predict metrics"),
        ("metrics", "metrics"),
        ("metrics predict", "predict metrics"),
        ("predict predict", "predict"),
    ],
)
async def test_a_client_may_ask_for_fewer_scopes(
    registry: ClientRegistry, issuer: TokenIssuer, client: CreatedClient, asked: str, granted: str
) -> None:
    credentials = (client.client_id, client.client_secret)
    assert (await ask(registry, issuer, credentials, grant_type="client_credentials", scope=asked)).scope == granted


@pytest.mark.parametrize("scope", ["introspect", "predict introspect", "admin", "predict  metrics", " ", "predict ", 'a"', "é", "Predict"])
async def test_36_a_scope_not_granted_is_refused(registry: ClientRegistry, issuer: TokenIssuer, client: CreatedClient, scope: str) -> None:
    credentials = (client.client_id, client.client_secret)
    code, description = await refusal(registry, issuer, credentials, grant_type="client_credentials", scope=scope)
    assert code == "invalid_scope"
    assert scope.strip() == "" or scope not in description


async def test_28_no_grant_type_is_an_invalid_request(registry: ClientRegistry, issuer: TokenIssuer, client: CreatedClient) -> None:
    credentials = (client.client_id, client.client_secret)
    assert (await refusal(registry, issuer, credentials))[0] == "invalid_request"


@pytest.mark.parametrize("grant_type", ["password", "refresh_token", "authorization_code", "CLIENT_CREDENTIALS"])
async def test_29_another_grant_type_is_unsupported(
    registry: ClientRegistry, issuer: TokenIssuer, client: CreatedClient, grant_type: str
) -> None:
    credentials = (client.client_id, client.client_secret)
    assert (await refusal(registry, issuer, credentials, grant_type=grant_type))[0] == "unsupported_grant_type"


async def test_35_unknown_client_wrong_secret_and_disabled_client_are_told_the_same(
    registry: ClientRegistry, issuer: TokenIssuer, client: CreatedClient
) -> None:
    disabled = await registry.create("disabled", ["predict"])
    await registry.disable("disabled")
    told = [
        await refusal(registry, issuer, credentials, grant_type="client_credentials")
        for credentials in [
            ("client_nobody", client.client_secret),
            (client.client_id, "lgs_wrong"),
            (disabled.client_id, disabled.client_secret),
        ]
    ]
    assert told == [("invalid_client", "Client authentication failed.")] * 3


async def test_a_failure_by_body_is_told_the_same(registry: ClientRegistry, issuer: TokenIssuer, client: CreatedClient) -> None:
    told = await refusal(registry, issuer, None, grant_type="client_credentials", client_id=client.client_id, client_secret="wrong")
    assert told == ("invalid_client", "Client authentication failed.")


async def test_without_the_database_the_answer_is_unavailable(tmp_path: Path, issuer: TokenIssuer) -> None:
    database = Database(f"postgresql+asyncpg://lensgate@/lensgate?host={tmp_path}")
    with pytest.raises(RegistryUnavailable):
        await ask(ClientRegistry(database), issuer, ("a", "b"), grant_type="client_credentials")
    await database.aclose()
