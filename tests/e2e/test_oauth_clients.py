"""Ordinary OAuth libraries get a token and call `/predict`, with no code that is special to Lensgate, from the server's own metadata."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from authlib.integrations.httpx_client import OAuth2Client
from oauthlib.oauth2 import BackendApplicationClient, InvalidClientError
from requests_oauthlib import OAuth2Session

from support.oauth import GRANT, operate
from support.service import Service

PICTURE = "chelsea.png"


@pytest.fixture(scope="module")
def client(service: Service) -> dict[str, Any]:
    return service.create_client("oauth library")


@pytest.fixture
def token_endpoint(service: Service) -> str:
    return str(service.get("/.well-known/oauth-authorization-server").json()["token_endpoint"])


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_authlib_gets_a_token_and_classifies_a_picture(
    service: Service, client: dict[str, Any], token_endpoint: str, photographs_by_name: dict[str, bytes], method: str
) -> None:
    with OAuth2Client(
        client["client_id"], client["client_secret"], token_endpoint_auth_method=method, scope="predict", timeout=60
    ) as session:
        session.fetch_token(token_endpoint, grant_type="client_credentials")
        answer = session.post(f"{service.url}/predict", content=photographs_by_name[PICTURE], headers={"Content-Type": "image/png"})
    assert (answer.status_code, "cat" in answer.json()["label"]) == (200, True)


def test_authlib_revokes_and_introspects_its_token(service: Service, client: dict[str, Any], token_endpoint: str) -> None:
    with OAuth2Client(client["client_id"], client["client_secret"], timeout=60) as session:
        token = session.fetch_token(token_endpoint, grant_type="client_credentials")["access_token"]
        assert session.introspect_token(f"{service.url}/oauth2/introspect", token=token).json()["active"] is True
        assert session.revoke_token(f"{service.url}/oauth2/revoke", token=token).status_code == 200
        assert session.introspect_token(f"{service.url}/oauth2/introspect", token=token).json() == {"active": False}


@pytest.fixture
def plain_http_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http is refused by oauthlib, on loopback too, unless it is told."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.mark.parametrize("in_form", [False, True])
def test_requests_oauthlib_gets_a_token_and_classifies_a_picture(
    plain_http_on_loopback: None,
    service: Service,
    client: dict[str, Any],
    token_endpoint: str,
    photographs_by_name: dict[str, bytes],
    in_form: bool,
) -> None:
    with OAuth2Session(client=BackendApplicationClient(client["client_id"])) as session:
        if in_form:
            session.fetch_token(
                token_endpoint, client_id=client["client_id"], client_secret=client["client_secret"], include_client_id=True
            )
        else:
            session.fetch_token(token_endpoint, auth=(client["client_id"], client["client_secret"]))
        answer = session.post(
            f"{service.url}/predict", data=photographs_by_name[PICTURE], headers={"Content-Type": "image/png"}, timeout=60
        )
    assert (answer.status_code, "cat" in answer.json()["label"]) == (200, True)


def test_requests_oauthlib_understands_a_refusal(plain_http_on_loopback: None, client: dict[str, Any], token_endpoint: str) -> None:
    with OAuth2Session(client=BackendApplicationClient(client["client_id"])) as session, pytest.raises(InvalidClientError):
        session.fetch_token(token_endpoint, auth=(client["client_id"], "wrong"))


def test_two_secrets_work_while_one_replaces_the_other(service: Service, token_endpoint: str) -> None:
    old = service.create_client("rotates its secret")
    new = json.loads(operate(service, "clients", "rotate-secret", old["client_id"], "--overlap-s", "3600", "--json"))
    for secret in (old["client_secret"], new["client_secret"]):
        assert httpx.post(token_endpoint, data=GRANT, auth=(old["client_id"], secret), timeout=30).status_code == 200
    newest = json.loads(operate(service, "clients", "rotate-secret", old["client_id"], "--overlap-s", "0", "--json"))
    statuses = [
        httpx.post(token_endpoint, data=GRANT, auth=(old["client_id"], one["client_secret"]), timeout=30).status_code
        for one in (old, new, newest)
    ]
    assert statuses == [401, 401, 200]


def test_the_metadata_names_every_endpoint_and_they_answer(service: Service, client: dict[str, Any]) -> None:
    metadata = service.get("/.well-known/oauth-authorization-server").json()
    assert (metadata["issuer"], metadata["response_types_supported"]) == (service.url, [])
    assert metadata["grant_types_supported"] == ["client_credentials"]
    assert metadata["scopes_supported"] == ["predict", "metrics", "introspect"]
    assert metadata["token_endpoint_auth_methods_supported"] == ["client_secret_basic", "client_secret_post"]
    auth = (client["client_id"], client["client_secret"])
    token = httpx.post(metadata["token_endpoint"], data=GRANT, auth=auth, timeout=30).json()["access_token"]
    assert httpx.post(metadata["introspection_endpoint"], data={"token": token}, auth=auth, timeout=30).json()["active"] is True
    assert httpx.post(metadata["revocation_endpoint"], data={"token": token}, auth=auth, timeout=30).status_code == 200
    keys = httpx.get(metadata["jwks_uri"], timeout=30)
    assert [set(key) for key in keys.json()["keys"]] == [{"kty", "crv", "x", "y", "kid", "use", "alg"}]
    assert keys.headers["cache-control"] == "public, max-age=4"
