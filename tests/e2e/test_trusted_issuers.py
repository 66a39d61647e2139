"""A client app with a token of its company's identity provider uses the service, with no account here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from support.identity_provider import PROVIDERS, IdentityProvider
from support.service import PACKAGED, Service


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider) -> Iterator[Service]:
    """A service that trusts four providers; `ghost` is not there, and `keycloak` hangs until a test lets it answer."""
    ghost = provider.profile("auth0", name="ghost", issuer="https://ghost.test", jwks_url="http://127.0.0.1:9/jwks")
    profiles = [*(provider.profile(name, retry_s=1, tier="partner") for name in PROVIDERS), ghost]
    provider.order("behave", provider="keycloak", mode="hang")
    tiers = {"standard": {"images": "600/minute", "in_flight": 16}, "partner": {"images": "7000/minute", "in_flight": 8}}
    environment = {
        "LENSGATE_SECURITY__TRUSTED_ISSUERS": json.dumps(profiles),
        "LENSGATE_SECURITY__TIERS": json.dumps(tiers),
    }
    with Service(tmp_path_factory.mktemp("trusting"), PACKAGED | environment) as service:
        service.wait_ready()
        for name in set(PROVIDERS) - {"keycloak"}:
            service.wait_for("trusted_keys_loaded", issuer_name=name)
        yield service


def wait_until_good(service: Service, token: str) -> None:
    deadline_s = time.monotonic() + 20
    while service.get("/models", token).status_code != 200:
        assert time.monotonic() < deadline_s


def test_a_provider_that_is_gone_or_hangs_keeps_nobody_else_waiting(service: Service, provider: IdentityProvider) -> None:
    """The service is ready, serves our own clients, and takes the provider's once it answers."""
    token = provider.client_credentials("keycloak")
    assert service.get("/livez").status_code == 200
    assert service.get("/models", service.token(service.create_client("ours"))).status_code == 200
    refused = service.get("/models", token)
    assert refused.status_code == 401
    assert refused.json()["code"] == "invalid_token"
    assert service.wait_for("trusted_keys_unavailable", issuer_name="keycloak")["reason"] == "the provider did not answer within 5 s"
    assert service.wait_for("trusted_keys_unavailable", issuer_name="ghost")["level"] == "error"
    provider.order("behave", provider="keycloak", mode="ok")
    wait_until_good(service, token)


@pytest.mark.parametrize("name", ["auth0", "entra", "standard"])
def test_a_clients_token_of_the_provider_gets_a_picture_classified(
    service: Service, provider: IdentityProvider, name: str, photographs_by_name: dict[str, bytes]
) -> None:
    token = provider.client_credentials(name)
    assert service.get("/models", token).status_code == 200
    answer = service.predict(photographs_by_name["coffee.png"], token)
    assert (answer.status_code, answer.json()["label"]) == (200, "espresso")
    line = service.wait_for("request", request_id=answer.headers["x-request-id"])
    assert line["client_id"].startswith(f"{name}:")
    assert line["token_id"].startswith(f"{name}:")


def test_the_tier_of_the_profile_is_the_tier_of_its_clients(service: Service, provider: IdentityProvider) -> None:
    """And a client of ours has the standard one, with the same service."""
    for token, quota in (
        (provider.client_credentials("auth0"), "7000"),
        (service.token(service.create_client("of the standard tier")), "600"),
    ):
        assert quota in service.predict(b"no picture", token).headers["ratelimit-policy"]


def test_23_without_a_permission_that_is_mapped_it_is_403(service: Service, provider: IdentityProvider) -> None:
    token = provider.client_credentials("auth0", scope="admin:all")
    for answer in (service.get("/models", token), service.predict(b"", token)):
        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


def test_18_an_id_token_of_the_provider_is_401(service: Service, provider: IdentityProvider) -> None:
    answer = service.get("/models", provider.token("entra", kind="id"))
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert service.wait_for("request", request_id=answer.headers["x-request-id"])["cause"] == "missing_claim"


def test_a_token_of_another_is_none_of_the_introspection_endpoints_business(service: Service, provider: IdentityProvider) -> None:
    client = service.create_client("curious", "introspect")
    answer = httpx.post(
        f"{service.url}/oauth2/introspect",
        data={"token": provider.client_credentials("standard")},
        auth=(client["client_id"], client["client_secret"]),
        timeout=30,
    )
    assert answer.json() == {"active": False}


def test_a_new_key_of_the_provider_is_taken_up_while_serving(service: Service, provider: IdentityProvider) -> None:
    old = provider.client_credentials("standard")
    assert service.get("/models", old).status_code == 200
    provider.order("rotate", provider="standard")
    new = provider.client_credentials("standard")
    assert service.get("/models", new).status_code == 401
    wait_until_good(service, new)
    assert service.get("/models", old).status_code == 401


def test_an_operator_can_revoke_one_token_of_another_issuer(service: Service, provider: IdentityProvider) -> None:
    """By the id that the log shows."""
    token, other = provider.client_credentials("entra"), provider.client_credentials("entra")
    answer = service.get("/models", token)
    token_id = service.wait_for("request", request_id=answer.headers["x-request-id"])["token_id"]
    command = [sys.executable, "-m", "api.cli", "tokens", "revoke", token_id]
    subprocess.run(command, cwd=service.folder, env=service.environment, capture_output=True, timeout=100, check=True)
    deadline_s = time.monotonic() + 20
    while service.get("/models", token).status_code != 401:
        assert time.monotonic() < deadline_s
    assert service.get("/models", other).status_code == 200


def test_no_token_stands_in_the_log(service: Service, provider: IdentityProvider) -> None:
    token = provider.client_credentials("auth0")
    assert service.get("/models", token).status_code == 200
    assert token.rpartition(".")[2] not in "".join(service.raw_log)
