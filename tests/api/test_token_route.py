from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from security.errors import RegistryUnavailable

if TYPE_CHECKING:
    from api.conftest import Gate

GRANT = {"grant_type": "client_credentials"}


def test_a_client_gets_a_token_by_basic_and_can_use_it(gate: Gate) -> None:
    client = gate.clients["camera"]
    response = gate.http.post("/oauth2/token", data=GRANT, auth=(client.client_id, client.client_secret))

    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"access_token", "token_type", "expires_in", "scope"}
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 600, "predict")
    assert (response.headers["cache-control"], response.headers["pragma"]) == ("no-store", "no-cache")
    assert gate.http.get("/models", headers={"Authorization": f"Bearer {answer['access_token']}"}).status_code == 200


def test_a_client_gets_a_token_by_form(gate: Gate) -> None:
    client = gate.clients["camera"]
    form = GRANT | {"client_id": client.client_id, "client_secret": client.client_secret, "scope": "predict"}

    assert gate.http.post("/oauth2/token", data=form).json()["scope"] == "predict"


def test_the_log_says_which_client_got_which_token(gate: Gate) -> None:
    client = gate.clients["camera"]
    response = gate.http.post("/oauth2/token", data=GRANT, auth=(client.client_id, client.client_secret))

    line = gate.log.request(response)
    assert (line["client_id"], line["route"]) == (client.client_id, "/oauth2/token")
    payload = response.json()["access_token"].split(".")[1]
    assert f'"jti":"{line["token_id"]}"' in base64.urlsafe_b64decode(payload + "==").decode().replace(" ", "")


def test_attack_26_get_is_405_in_oauths_shape(gate: Gate) -> None:
    response = gate.http.get("/oauth2/token")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"] == "invalid_request"
    assert set(response.json()) == {"error", "error_description"}


def test_attack_27_a_json_body_is_400_invalid_request(gate: Gate) -> None:
    response = gate.http.post("/oauth2/token", json=GRANT)

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("form", "error"),
    [({}, "invalid_request"), ({"grant_type": "password"}, "unsupported_grant_type"), (GRANT | {"scope": "metrics"}, "invalid_scope")],
)
def test_a_request_that_cannot_be_granted_is_400(gate: Gate, form: dict[str, str], error: str) -> None:
    client = gate.clients["camera"]
    response = gate.http.post("/oauth2/token", data=form | {"x": "1"}, auth=(client.client_id, client.client_secret))

    assert (response.status_code, response.json()["error"]) == (400, error)


def test_a_wrong_secret_by_basic_is_401_with_a_basic_challenge(gate: Gate) -> None:
    response = gate.http.post("/oauth2/token", data=GRANT, auth=(gate.clients["camera"].client_id, "wrong"))

    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")
    assert response.headers["www-authenticate"] == 'Basic realm="lensgate"'
    assert (response.headers["cache-control"], response.headers["pragma"]) == ("no-store", "no-cache")


def test_a_wrong_secret_by_form_is_401_with_a_basic_challenge_too(gate: Gate) -> None:
    response = gate.http.post("/oauth2/token", data=GRANT | {"client_id": gate.clients["camera"].client_id, "client_secret": "wrong"})

    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")
    assert response.headers["www-authenticate"] == 'Basic realm="lensgate"'


def test_attack_35_an_unknown_client_and_a_wrong_secret_get_the_same_answer(gate: Gate) -> None:
    wrong = gate.http.post("/oauth2/token", data=GRANT, auth=(gate.clients["camera"].client_id, "wrong"))
    unknown = gate.http.post("/oauth2/token", data=GRANT, auth=("client_unknown", "wrong"))

    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)


def test_a_form_that_is_too_large_is_413_in_oauths_shape(gate: Gate) -> None:
    response = gate.http.post("/oauth2/token", data={"grant_type": "x" * 10_000})

    assert (response.status_code, response.json()["error"]) == (413, "invalid_request")
    assert response.headers["connection"] == "close"


def test_a_registry_that_does_not_answer_is_503_temporarily_unavailable(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: str) -> None:
        raise RegistryUnavailable

    monkeypatch.setattr(gate.services.registry, "authenticate", fail)
    response = gate.http.post("/oauth2/token", data=GRANT, auth=("a", "b"))

    assert (response.status_code, response.json()["error"]) == (503, "temporarily_unavailable")
    assert int(response.headers["retry-after"]) >= 1


def test_a_client_that_is_disabled_has_its_tokens_refused_after_the_next_poll(gate: Gate) -> None:
    token = gate.token("scraper")
    services, client_id = gate.services, gate.clients["scraper"].client_id
    gate.run(services.registry.disable(client_id))
    gate.run(services.revocations.refresh())
    try:
        response = gate.http.get("/nowhere", headers={"Authorization": f"Bearer {token}"})
        assert (response.status_code, response.json()["code"]) == (401, "invalid_token")
        assert "disabled" in gate.log.request(response)["cause"]
    finally:
        gate.run(services.registry.enable(client_id))
        gate.run(services.revocations.refresh())


def test_the_key_set_shows_public_members_only(gate: Gate) -> None:
    [key] = gate.http.get("/.well-known/jwks.json").json()["keys"]

    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
