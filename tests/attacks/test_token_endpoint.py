"""Cases 26 to 43 (38 and 39 are with the limits): what the OAuth endpoints say to everything but a good request."""

from __future__ import annotations

import base64
import time
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest

from support.forged_tokens import Forge
from support.oauth import GRANT, operate, post, revoke, wait_for_status
from support.service import Service

TOKEN: Final = "/oauth2/token"
REVOKE: Final = "/oauth2/revoke"
INTROSPECT: Final = "/oauth2/introspect"
ENDPOINTS: Final = (TOKEN, REVOKE, INTROSPECT)
SECRET: Final = "lgs_hunter2-hunter2-hunter2-hunter2-hunter2-hun"
"""Sent where a secret does not belong: it must be in no answer and in no log."""


def send(gate: Service, path: str = TOKEN, **request: Any) -> httpx.Response:  # noqa: ANN401 # httpx has no type for its own arguments
    return httpx.request(request.pop("method", "POST"), gate.url + path, timeout=30, **request)


def assert_refused(answer: httpx.Response, status: int, error: str) -> None:
    """The status, RFC 6749's shape, no caching, and nothing of what was sent."""
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert set(answer.json()) == {"error", "error_description"}
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    assert SECRET not in answer.text + str(answer.headers)


@pytest.fixture
def stranger() -> dict[str, Any]:
    """Credentials of nobody, new for every test: failures are counted by client."""
    return {"client_id": f"client_{uuid4().hex}", "client_secret": SECRET}


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_026_another_method_than_post_is_405_with_allow(gate: Service, path: str, method: str) -> None:
    answer = send(gate, path, method=method)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert_refused(answer, 405, "invalid_request")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_027_a_json_body_is_400_in_oauths_shape(gate: Service, client: dict[str, Any], path: str) -> None:
    answer = send(gate, path, json=GRANT | {"token": SECRET, "client_secret": SECRET})
    assert_refused(answer, 400, "invalid_request")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded, application/json",
        "application/x-www-form-urlencodedx",
    ],
)
def test_027_a_body_of_another_type_or_of_none_is_400(gate: Service, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    assert_refused(send(gate, content=b"grant_type=client_credentials", headers=headers), 400, "invalid_request")


@pytest.mark.parametrize("form", [{}, {"grant_type": ""}, {"GRANT_TYPE": "client_credentials"}], ids=repr)
def test_028_no_grant_type_is_400(gate: Service, client: dict[str, Any], form: dict[str, str]) -> None:
    assert_refused(post(gate, TOKEN, form | {"x": "1"}, client), 400, "invalid_request")


@pytest.mark.parametrize("path", [REVOKE, INTROSPECT])
def test_028_no_token_to_revoke_or_to_look_at_is_400(gate: Service, client: dict[str, Any], path: str) -> None:
    assert_refused(post(gate, path, {"token_type_hint": "access_token"}, client), 400, "invalid_request")


@pytest.mark.parametrize("grant_type", ["password", "refresh_token", "authorization_code", "Client_Credentials", "client_credentials "])
def test_029_the_password_grant_and_every_other_is_400(gate: Service, client: dict[str, Any], grant_type: str) -> None:
    form = {"grant_type": grant_type, "username": "me", "password": SECRET}
    assert_refused(post(gate, TOKEN, form, client), 400, "unsupported_grant_type")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_030_basic_and_body_together_are_400(gate: Service, client: dict[str, Any], path: str) -> None:
    form = GRANT | {"token": "x", "client_id": client["client_id"], "client_secret": client["client_secret"]}
    assert_refused(post(gate, path, form, client), 400, "invalid_request")
    assert_refused(post(gate, path, GRANT | {"token": "x", "client_id": "client_other"}, client), 400, "invalid_request")


def test_030_two_authorization_headers_are_400(gate: Service, client: dict[str, Any]) -> None:
    basic = base64.b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
    headers = [("Authorization", f"Basic {basic}"), ("Authorization", f"Basic {basic}")]
    assert_refused(send(gate, data=GRANT, headers=headers), 400, "invalid_request")


@pytest.mark.parametrize(
    "form",
    [
        "grant_type=client_credentials&grant_type=client_credentials",
        "grant_type=client_credentials&grant_type=password",
        "grant_type=client_credentials&scope=predict&scope=metrics",
        "grant_type=client_credentials&x=1&x=2",
        "grant_type=client_credentials&grant%5Ftype=password",
    ],
)
def test_031_a_repeated_parameter_is_400(gate: Service, client: dict[str, Any], form: str) -> None:
    auth = (client["client_id"], client["client_secret"])
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert_refused(send(gate, content=form, headers=headers, auth=auth), 400, "invalid_request")


@pytest.mark.parametrize(
    "form",
    ["grant_type=%zz", "grant_type=%ff", "grant_type=client_credentials&scope=%", "&".join(f"p{n}={n}" for n in range(40)), "\u00e9=1"],
)
def test_031_a_form_that_is_none_is_400(gate: Service, client: dict[str, Any], form: str) -> None:
    auth = (client["client_id"], client["client_secret"])
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert_refused(send(gate, content=form.encode(), headers=headers, auth=auth), 400, "invalid_request")


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("where", ["query only", "query too"])
def test_032_a_secret_in_the_query_is_refused_and_in_no_log(gate: Service, path: str, where: str) -> None:
    form = {"client_id": "client_x", "client_secret": SECRET} if where == "query too" else {}
    answer = send(gate, f"{path}?client_id=client_x&client_secret={SECRET}", data=GRANT | {"token": "x"} | form)
    assert_refused(answer, 400, "invalid_request")
    gate.wait_for("request", request_id=answer.headers["x-request-id"])
    assert not any(SECRET in line for line in gate.raw_log)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "credentials",
    [
        "",
        "!!!!",
        "YWJj",  # abc: no colon
        "YTpi YTpi",
        "YTpi=",  # too much padding
        "YTpj\tYTpj",
        base64.b64encode(b"\xff\xfe:x").decode(),  # no UTF-8
        base64.b64encode(b":secret").decode(),  # no id
        base64.b64encode(b"a%zz:b").decode(),
        base64.b64encode(b"x" * 2000 + b":y").decode(),
    ],
    ids=lambda text: text[:12],
)
def test_033_a_basic_header_that_is_none_is_401_with_a_basic_challenge(gate: Service, path: str, credentials: str) -> None:
    answer = send(gate, path, data=GRANT | {"token": "x"}, headers={"Authorization": f"Basic {credentials}".strip()})
    assert_refused(answer, 401, "invalid_client")
    assert answer.headers["www-authenticate"] == 'Basic realm="lensgate"'


def test_033_a_bearer_token_is_no_client_authentication(gate: Service, token: str) -> None:
    answer = send(gate, INTROSPECT, data={"token": token}, headers={"Authorization": f"Bearer {token}"})
    assert_refused(answer, 401, "invalid_client")


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("by", ["basic", "form"])
def test_035_an_unknown_client_and_a_wrong_secret_get_the_same_answer(gate: Service, stranger: dict[str, Any], path: str, by: str) -> None:
    """That both take the same queries and hashes is counted in tests/security/test_clients.py, where they can be seen."""
    known = gate.create_client(f"known {uuid4().hex}") | {"client_secret": SECRET}
    answers = []
    for credentials in (known, stranger):
        form = GRANT | {"token": "x"}
        if by == "form":
            answers.append(post(gate, path, form | {name: credentials[name] for name in ("client_id", "client_secret")}, None))
        else:
            answers.append(post(gate, path, form, credentials))
        assert_refused(answers[-1], 401, "invalid_client")
        assert answers[-1].headers["www-authenticate"] == 'Basic realm="lensgate"'
    assert answers[0].content == answers[1].content
    assert [name for name in answers[0].headers] == [name for name in answers[1].headers]  # noqa: C416 # their order counts too


@pytest.mark.parametrize("secret", ["", "x" * 300, "\u00e9", "a\u0000b", "' OR 1=1 --"], ids=repr)
def test_035_credentials_that_cannot_be_ours_are_401_like_any_other(gate: Service, secret: str) -> None:
    credentials = {"client_id": f"client_{uuid4().hex}\u00e9", "client_secret": secret}
    assert_refused(post(gate, TOKEN, GRANT, credentials), 401, "invalid_client")


@pytest.mark.parametrize(
    "scope", ["metrics", "predict metrics", "everything", "predict  predict", " predict", "predict\t", "predict\u00e9", '"', "PREDICT"]
)
def test_036_a_scope_that_was_not_granted_is_400(gate: Service, client: dict[str, Any], scope: str) -> None:
    assert_refused(post(gate, TOKEN, GRANT | {"scope": scope}, client), 400, "invalid_scope")


def test_037_a_token_is_not_cached_and_comes_without_a_refresh_token(gate: Service, client: dict[str, Any]) -> None:
    answer = post(gate, TOKEN, GRANT, client)
    assert answer.status_code == 200
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    assert answer.headers["content-type"] == "application/json"
    granted = answer.json()
    assert set(granted) == {"access_token", "token_type", "expires_in", "scope"}
    assert (granted["token_type"], granted["expires_in"], granted["scope"]) == ("Bearer", 600, "predict")


def test_037_an_empty_scope_counts_as_none_and_all_are_granted(gate: Service, client: dict[str, Any]) -> None:
    assert post(gate, TOKEN, GRANT | {"scope": ""}, client).json()["scope"] == "predict"


@pytest.mark.parametrize("hint", ["access_token", "refresh_token", "nonsense", ""])
def test_041_revoking_an_unknown_token_is_200(gate: Service, client: dict[str, Any], hint: str) -> None:
    for unknown in ("x", "a.b.c", "\u00e9", SECRET, "x" * 5000):
        answer = post(gate, REVOKE, {"token": unknown, "token_type_hint": hint}, client)
        assert (answer.status_code, answer.content) == (200, b"")


def test_041_revoking_ones_own_token_is_200_twice_and_it_is_refused_within_the_staleness(gate: Service, client: dict[str, Any]) -> None:
    token, sister = gate.token(client), gate.token(client)
    revoke(gate, client, token)
    revoke(gate, client, token)
    assert post(gate, INTROSPECT, {"token": token}, client).json() == {"active": False}, "introspection knows at once"
    wait_for_status(gate, token, 401)
    assert gate.get("/models", sister).status_code == 200


def test_041_revoking_another_clients_token_is_200_and_changes_nothing(
    gate: Service, client: dict[str, Any], second_client: dict[str, Any], second_token: str
) -> None:
    revoke(gate, client, second_token)
    assert post(gate, INTROSPECT, {"token": second_token}, second_client).json()["active"] is True


@pytest.mark.parametrize("path", [REVOKE, INTROSPECT])
def test_041_without_credentials_nothing_is_revoked_or_told(gate: Service, token: str, path: str) -> None:
    answer = post(gate, path, {"token": token}, None)
    assert_refused(answer, 401, "invalid_client")
    assert answer.headers["www-authenticate"] == 'Basic realm="lensgate"'


@pytest.mark.parametrize("unknown", ["x", "a.b.c", SECRET, "x" * 5000])
def test_042_an_unknown_token_is_exactly_inactive(gate: Service, client: dict[str, Any], unknown: str) -> None:
    answer = post(gate, INTROSPECT, {"token": unknown}, client)
    assert (answer.status_code, answer.content) == (200, b'{"active":false}')
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")


def test_042_ones_own_token_is_shown_whole(gate: Service, client: dict[str, Any]) -> None:
    began = int(time.time())
    answer = post(gate, INTROSPECT, {"token": gate.token(client), "token_type_hint": "access_token"}, client)
    shown = answer.json()
    assert set(shown) == {"active", "scope", "client_id", "sub", "exp", "iat", "iss", "aud", "jti", "token_type"}
    assert (shown["active"], shown["scope"], shown["token_type"]) == (True, "predict", "Bearer")
    assert shown["client_id"] == shown["sub"] == client["client_id"]
    assert (shown["iss"], shown["aud"]) == (gate.url, "lensgate")
    assert began <= shown["iat"] <= time.time()
    assert shown["exp"] == shown["iat"] + 600


def test_042_another_clients_token_is_shown_only_to_the_scope_introspect(
    gate: Service, client: dict[str, Any], second_client: dict[str, Any], second_token: str
) -> None:
    assert post(gate, INTROSPECT, {"token": second_token}, client).content == b'{"active":false}'
    auditor = gate.create_client("auditor", "introspect")
    assert post(gate, INTROSPECT, {"token": second_token}, auditor).json()["client_id"] == second_client["client_id"]


def test_042_expired_forged_and_disabled_clients_tokens_are_inactive(gate: Service, client: dict[str, Any]) -> None:
    auditor = gate.create_client("second auditor", "introspect")
    forge = Forge(gate.folder / "keys", gate.url, client["client_id"])
    now = int(time.time())
    good, expired = forge.sign(), forge.sign(claims=forge.claims(iat=now - 600, exp=now - 1))
    assert post(gate, INTROSPECT, {"token": good}, auditor).json()["active"] is True
    assert post(gate, INTROSPECT, {"token": expired}, auditor).content == b'{"active":false}'
    assert post(gate, INTROSPECT, {"token": forge.sign(forge.header(typ="JWT"))}, auditor).content == b'{"active":false}'
    disabled = gate.create_client("disabled for introspection")
    token = gate.token(disabled)
    operate(gate, "clients", "disable", disabled["client_id"])
    assert post(gate, INTROSPECT, {"token": token}, auditor).content == b'{"active":false}'


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "content",
    [
        f"client_secret={SECRET}",
        f"client_secret={SECRET}&client_secret={SECRET}&grant_type={SECRET}",
        f"grant_type={SECRET}&scope={SECRET}&client_id={SECRET}&client_secret={SECRET}&token={SECRET}",
        f"%zz={SECRET}",
        f"{SECRET}",
        f"client_secret={SECRET}&pad={'x' * 9000}",
    ],
    ids=range(6),
)
def test_043_no_refusal_echoes_a_secret_and_no_log_holds_one(gate: Service, path: str, content: str) -> None:
    answer = send(gate, path, content=content, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code in {400, 401, 413}
    assert_refused(answer, answer.status_code, answer.json()["error"])
    gate.wait_for("request", request_id=answer.headers["x-request-id"])
    assert not any(SECRET in line for line in gate.raw_log)
