"""Cases 1 to 25: what a protected route says to every token but a good one.

Forged tokens are signed with the gate's own key, so that what a test names is the only thing that is wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import socket
import time
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from support.forged_tokens import GONE, Forge, b64, es256, flip_trailing_bit
from support.oauth import GRANT, operate, post, revoke, wait_for_status
from support.service import Service

ROUTE = "/models"


@pytest.fixture(scope="module")
def forge(gate: Service, client: dict[str, Any]) -> Forge:
    forge = Forge(gate.folder / "keys", gate.url, client["client_id"])
    assert gate.get(ROUTE, forge.sign()).status_code == 200, "a forged token with nothing wrong must be good"
    return forge


def ask(gate: Service, headers: Iterable[tuple[str, str]] = (), path: str = ROUTE) -> httpx.Response:
    return httpx.get(gate.url + path, headers=list(headers), timeout=30)


def cause(gate: Service, answer: httpx.Response) -> object:
    """Why the log says that this request was refused."""
    return gate.wait_for("request", request_id=answer.headers["x-request-id"])["cause"]


def assert_invalid(gate: Service, token: str, expected_cause: str) -> None:
    """401 `invalid_token` in problem+json, with RFC 6750's challenge, nothing of the inside, and the right reason in the log."""
    answer = gate.get(ROUTE, token)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith('Bearer realm="lensgate", error="invalid_token"')
    assert set(answer.json()) == {"type", "title", "status", "detail", "request_id", "code"}
    assert answer.json()["detail"] == "The access token is not valid."
    assert cause(gate, answer) == expected_cause


def test_001_no_token_is_401_with_a_challenge_that_names_no_error(gate: Service) -> None:
    answer = ask(gate)
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
    assert answer.headers["www-authenticate"] == 'Bearer realm="lensgate"'


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer  "])
def test_002_a_bearer_with_nothing_behind_it_is_401(gate: Service, value: str) -> None:
    # Not httpx, which refuses to send a header that ends in a space.
    connection = http.client.HTTPConnection(gate.url.removeprefix("http://"), timeout=30)
    connection.request("GET", ROUTE, headers={"Authorization": value})
    answer = connection.getresponse()
    connection.close()
    assert (answer.status, answer.getheader("content-type")) == (401, "application/problem+json")


def test_003_the_basic_scheme_is_401_with_a_bearer_challenge(gate: Service, client: dict[str, Any]) -> None:
    answer = httpx.get(gate.url + ROUTE, auth=(client["client_id"], client["client_secret"]), timeout=30)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="lensgate"')


@pytest.mark.parametrize("good_first", [True, False])
def test_004_of_two_authorization_headers_neither_wins(gate: Service, token: str, good_first: bool) -> None:
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer x.y.z")]
    assert ask(gate, headers if good_first else headers[::-1]).status_code in {400, 401}
    assert ask(gate, [headers[0], headers[0]]).status_code in {400, 401}
    assert ask(gate, [("Authorization", f"Bearer {token}, Bearer {token}")]).status_code in {400, 401}


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
def test_005_alg_none_is_401(gate: Service, forge: Forge, algorithm: str) -> None:
    header = forge.header(alg=algorithm)
    assert_invalid(gate, forge.sign(header), "wrong_algorithm")
    assert_invalid(gate, forge.sign(header, by=lambda _: b""), "malformed")


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_006_hs256_signed_with_our_public_key_is_401(gate: Service, forge: Forge, encoding: Encoding) -> None:
    secret = forge.public(encoding)
    for key in (secret, secret.strip(), b""):
        token = forge.sign(forge.header(alg="HS256"), by=lambda signed, key=key: hmac.digest(key, signed, hashlib.sha256))  # type: ignore[misc]
        assert_invalid(gate, token, "wrong_algorithm")


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_007_a_header_nested_1200_deep_is_401(gate: Service, forge: Forge, opening: bytes, closing: bytes) -> None:
    nested = opening * 1200 + b"1" + closing * 1200
    shallow = opening * 70 + b"1" + closing * 70
    assert_invalid(gate, forge.sign(nested[:2600]), "header_too_long")
    assert_invalid(gate, forge.sign(b'{"alg":"ES256","kid":"k","cty":' + shallow[:400] + b"}"), "header_not_flat")
    longest = ask(gate, [("Authorization", f"Bearer {forge.sign(nested)}")])
    assert longest.status_code == 401


def test_007_claims_nested_1200_deep_are_401(gate: Service, forge: Forge) -> None:
    claims = json.dumps(forge.claims())[:-1].encode() + b',"deep":' + b"[" * 1200 + b"]" * 1200 + b"}"
    answer = gate.get(ROUTE, forge.sign(claims=claims))
    assert answer.status_code == 401


def test_008_a_header_over_512_bytes_is_401(gate: Service, forge: Forge) -> None:
    room = 512 - len(json.dumps(forge.header(cty="")))
    assert gate.get(ROUTE, forge.sign(forge.header(cty="x" * room))).status_code == 200
    assert_invalid(gate, forge.sign(forge.header(cty="x" * (room + 1))), "header_too_long")


def test_008_a_token_over_4_kib_is_401(gate: Service, forge: Forge) -> None:
    assert_invalid(gate, forge.sign(claims=forge.claims(padding="x" * 3000)), "too_long")


def test_009_crit_is_401(gate: Service, forge: Forge) -> None:
    assert_invalid(gate, forge.sign(forge.header(crit=["exp"])), "header_not_flat")
    assert_invalid(gate, forge.sign(forge.header(crit="exp")), "header_not_allowed")


@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_010_a_header_that_names_where_its_key_is_is_401_and_nobody_is_called(gate: Service, forge: Forge, name: str) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
        assert_invalid(gate, forge.sign(forge.header(**{name: url}), by=es256(stranger)), "header_not_allowed")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_010_a_header_that_brings_its_own_key_is_401(gate: Service, forge: Forge) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    numbers = stranger.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(numbers.x.to_bytes(32, "big")), "y": b64(numbers.y.to_bytes(32, "big"))}
    assert_invalid(gate, forge.sign(forge.header(jwk=jwk), by=es256(stranger)), "header_not_flat")
    assert_invalid(gate, forge.sign(forge.header(x5c="MIIB"), by=es256(stranger)), "header_not_allowed")


@pytest.mark.parametrize("kid", ["20200101T000000Z-AAAAAAAA", "x"])
def test_011_an_unknown_kid_is_401_and_no_other_key_is_tried(gate: Service, forge: Forge, kid: str) -> None:
    assert_invalid(gate, forge.sign(forge.header(kid=kid)), "unknown_key")


def test_011_a_token_without_a_kid_is_401(gate: Service, forge: Forge) -> None:
    assert_invalid(gate, forge.sign(forge.header(kid=GONE)), "header_incomplete")


@pytest.mark.parametrize(
    ("kid", "expected_cause"),
    [
        (["x"], "header_not_flat"),
        ({"x": "y"}, "header_not_flat"),
        ("../../etc/passwd", "header_incomplete"),
        ("", "header_incomplete"),
        (None, "header_not_allowed"),
        (7, "header_not_allowed"),
        ("x\u0000", "header_incomplete"),
    ],
    ids=repr,
)
def test_012_a_kid_that_is_no_name_is_401(gate: Service, forge: Forge, kid: object, expected_cause: str) -> None:
    assert_invalid(gate, forge.sign(forge.header(kid=kid)), expected_cause)


@pytest.mark.parametrize("claim", ["exp", "iat", "jti", "client_id", "sub", "iss"])
def test_013_no_exp_is_401_and_so_is_every_other_claim_that_must_be_there(gate: Service, forge: Forge, claim: str) -> None:
    assert_invalid(gate, forge.sign(claims=forge.claims(**{claim: GONE})), "missing_claim")


@pytest.mark.parametrize(
    "expiry", [b"null", b"[1]", b"1e400", b"NaN", b"Infinity", b"true", b'"9999999999"', b"9999999999.5", b"-1", b"{}"]
)
def test_015_a_signed_exp_that_is_no_whole_number_is_401(gate: Service, forge: Forge, expiry: bytes) -> None:
    claims = json.dumps(forge.claims(exp="HERE")).encode().replace(b'"HERE"', expiry)
    answer = gate.get(ROUTE, forge.sign(claims=claims))
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert cause(gate, answer) in {"bad_claim", "malformed"}


def test_015_an_expired_token_and_one_that_lives_too_long_are_401(gate: Service, forge: Forge) -> None:
    now = int(time.time())
    assert_invalid(gate, forge.sign(claims=forge.claims(iat=now - 600, exp=now)), "expired")
    assert_invalid(gate, forge.sign(claims=forge.claims(exp=now + 10 * 86_400)), "bad_lifetime")
    assert_invalid(gate, forge.sign(claims=forge.claims(exp=10**30)), "bad_claim")


def test_016_no_aud_is_401(gate: Service, forge: Forge) -> None:
    assert_invalid(gate, forge.sign(claims=forge.claims(aud=GONE)), "missing_claim")


@pytest.mark.parametrize("audience", ["other", ["other"], [], "", "Lensgate", "lensgate "])
def test_016_another_aud_is_401(gate: Service, forge: Forge, audience: object) -> None:
    assert_invalid(gate, forge.sign(claims=forge.claims(aud=audience)), "wrong_audience")


def test_016_an_aud_list_with_us_in_it_is_200(gate: Service, forge: Forge) -> None:
    assert gate.get(ROUTE, forge.sign(claims=forge.claims(aud=["other", "lensgate"]))).status_code == 200


@pytest.mark.parametrize("suffix", ["/", ".evil.example", "\n"])
def test_017_a_wrong_iss_is_401(gate: Service, forge: Forge, suffix: str) -> None:
    answer = gate.get(ROUTE, forge.sign(claims=forge.claims(iss=gate.url + suffix)))
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert_invalid(gate, forge.sign(claims=forge.claims(iss="https://issuer.example")), "wrong_issuer")


@pytest.mark.parametrize("kind", ["JWT", "id_token+jwt", "dpop+jwt", "", "at", GONE])
def test_018_another_kind_of_token_is_401(gate: Service, forge: Forge, kind: object) -> None:
    assert_invalid(gate, forge.sign(forge.header(typ=kind)), "wrong_type")


def test_019_an_iat_an_hour_ahead_is_401(gate: Service, forge: Forge) -> None:
    ahead = int(time.time()) + 3600
    assert_invalid(gate, forge.sign(claims=forge.claims(iat=ahead, exp=ahead + 300)), "not_yet_valid")


def test_021_a_revoked_token_stays_refused_however_it_is_spelt(gate: Service, client: dict[str, Any]) -> None:
    token = gate.token(client)
    assert gate.get(ROUTE, token).status_code == 200
    revoke(gate, client, token)
    wait_until_refused(gate, token, "revoked")
    header, payload, signature = token.split(".")
    assert_invalid(gate, f"{header}.{payload}.{flip_trailing_bit(signature)}", "malformed")
    for other in (token + "=", token + "A", f" {token}", token.replace(".", "..", 1)):
        assert gate.get(ROUTE, other).status_code == 401


def test_021_a_good_token_has_one_spelling_only(gate: Service, token: str) -> None:
    header, payload, signature = token.split(".")
    assert_invalid(gate, f"{header}.{payload}.{flip_trailing_bit(signature)}", "malformed")


@pytest.mark.parametrize("name", ["access_token", "token", "jwt", "authorization"])
def test_022_a_token_in_the_query_is_401_and_its_value_is_in_no_log(gate: Service, client: dict[str, Any], name: str) -> None:
    token = gate.token(client)
    answer = ask(gate, path=f"{ROUTE}?{name}={token}")
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
    gate.wait_for("request", request_id=answer.headers["x-request-id"])
    assert not any(part in line for line in gate.raw_log for part in token.split("."))


def test_023_a_good_token_without_the_scope_is_403(gate: Service, metrics_client: dict[str, Any]) -> None:
    answer = gate.get(ROUTE, gate.token(metrics_client))
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert answer.headers["www-authenticate"] == 'Bearer realm="lensgate", error="insufficient_scope", scope="predict"'


@pytest.mark.parametrize("scope", ["", "PREDICT", "predict,metrics", GONE])
def test_023_a_scope_that_only_looks_alike_does_not_count(gate: Service, forge: Forge, scope: object) -> None:
    assert gate.get(ROUTE, forge.sign(claims=forge.claims(scope=scope))).status_code == 403


def test_025_a_client_disabled_after_the_issue_is_401_within_the_staleness_and_good_again_when_enabled(gate: Service) -> None:
    client = gate.create_client("to be disabled")
    token = gate.token(client)
    assert gate.get(ROUTE, token).status_code == 200
    operate(gate, "clients", "disable", client["client_id"])
    wait_until_refused(gate, token, "disabled")
    answer = post(gate, "/oauth2/token", GRANT, client)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    operate(gate, "clients", "enable", client["client_id"])
    assert gate.token(client)
    wait_for_status(gate, token, 200)


def test_025_a_token_revoked_by_its_id_is_401_within_the_staleness_and_its_sister_is_not(gate: Service, client: dict[str, Any]) -> None:
    token, sister = gate.token(client), gate.token(client)
    answer = gate.get(ROUTE, token)
    token_id = gate.wait_for("request", request_id=answer.headers["x-request-id"])["token_id"]
    said = operate(gate, "tokens", "revoke", token_id)
    assert token_id in said
    assert "2 s" in said
    wait_until_refused(gate, token, "revoked")
    assert gate.get(ROUTE, sister).status_code == 200


def wait_until_refused(gate: Service, token: str, why: str) -> None:
    wait_for_status(gate, token, 401)
    assert_invalid(gate, token, why)
