from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jose import jws

from security.errors import InvalidToken
from security.key_files import Algorithm, key_files
from security.key_ring import KeyStore
from security.keys import create_key
from security.principal import Principal
from security.tokens import TokenIssuer, TokenVerifier

NOW = 1_800_000_000.0
ISSUER = "https://gate.test"
AUDIENCE = "lensgate"
SKEW_S = 30
ABSENT = object()


def issuer_of(store: KeyStore) -> TokenIssuer:
    return TokenIssuer(store, issuer=ISSUER, audience=AUDIENCE, ttl_s=600)


def verifier_of(store: KeyStore) -> TokenVerifier:
    return TokenVerifier(store, issuer=ISSUER, audience=AUDIENCE, clock_skew_s=SKEW_S)


def token_with(store: KeyStore, **changes: object) -> str:
    """A token signed by our own key, with some claims changed or left out."""
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "sub": "client_a",
        "aud": AUDIENCE,
        "exp": int(NOW) + 600,
        "iat": int(NOW),
        "jti": "a-token",
        "client_id": "client_a",
        "scope": "predict metrics",
    }
    claims.update(changes)
    claims = {name: value for name, value in claims.items() if value is not ABSENT}
    key = store.ring.signing_key(NOW)
    signed: str = jws.sign(claims, key.jose_key, headers={"typ": "at+jwt", "kid": key.kid}, algorithm=key.algorithm)
    return signed


def cause_of(store: KeyStore, token: str, now: float = NOW) -> str:
    with pytest.raises(InvalidToken) as refused:
        verifier_of(store).verify(token, now)
    return refused.value.cause


def part(token: str, index: int) -> dict[str, Any]:
    segment = token.split(".")[index]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return decoded


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_an_issued_token_verifies_as_its_client(tmp_path: Path, algorithm: Algorithm) -> None:
    create_key(tmp_path, algorithm=algorithm)
    store = KeyStore(tmp_path, poll_s=1)
    issued = issuer_of(store).issue("client_a", ("predict", "metrics"), NOW)
    assert verifier_of(store).verify(issued.token, NOW) == Principal(
        client_id="client_a",
        scopes=frozenset({"predict", "metrics"}),
        issuer=ISSUER,
        token_id=issued.token_id,
        expires_at=issued.expires_at,
    )


def test_an_issued_token_is_what_rfc_9068_asks_for(key_store: KeyStore) -> None:
    issued = issuer_of(key_store).issue("client_a", ("predict",), NOW + 0.9)
    assert part(issued.token, 0) == {"alg": "ES256", "typ": "at+jwt", "kid": key_store.ring.signing_key(NOW).kid}
    assert part(issued.token, 1) == {
        "iss": ISSUER,
        "sub": "client_a",
        "aud": AUDIENCE,
        "exp": int(NOW) + 600,
        "iat": int(NOW),
        "jti": issued.token_id,
        "client_id": "client_a",
        "scope": "predict",
    }
    assert (issued.expires_in_s, issued.expires_at) == (600, int(NOW) + 600)


def test_no_two_tokens_have_one_id(key_store: KeyStore) -> None:
    issuer = issuer_of(key_store)
    assert len({issuer.issue("client_a", ("predict",), NOW).token_id for _ in range(100)}) == 100


def test_a_token_is_shown_in_no_representation(key_store: KeyStore) -> None:
    issued = issuer_of(key_store).issue("client_a", ("predict",), NOW)
    assert issued.token not in repr(issued)


def test_the_long_name_of_the_type_is_accepted(key_store: KeyStore) -> None:
    key = key_store.ring.signing_key(NOW)
    claims = part(token_with(key_store), 1)
    token = jws.sign(claims, key.jose_key, headers={"typ": "application/at+jwt", "kid": key.kid}, algorithm="ES256")
    assert verifier_of(key_store).verify(token, NOW).client_id == "client_a"


@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "exp", "iat", "jti", "client_id"])
def test_13_and_16_a_token_without_a_required_claim_is_refused(key_store: KeyStore, claim: str) -> None:
    assert cause_of(key_store, token_with(key_store, **{claim: ABSENT})) == "missing_claim"


@pytest.mark.parametrize("value", [None, 1, True, "", [], {}, ["a"], "a" * 256, "a\nb", "a\x00", "\x1b[31m", "\ud800", "\u202e"])
@pytest.mark.parametrize("claim", ["iss", "sub", "jti", "client_id"])
def test_a_name_of_the_wrong_kind_is_refused(key_store: KeyStore, claim: str, value: object) -> None:
    assert cause_of(key_store, token_with(key_store, **{claim: value})) == "bad_claim"


@pytest.mark.parametrize("value", [None, "1800000600", [1], {}, True, 1_800_000_600.5, -1, 2**53, 10**400])
@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
def test_15_a_time_of_the_wrong_kind_is_refused(key_store: KeyStore, claim: str, value: object) -> None:
    assert cause_of(key_store, token_with(key_store, **{claim: value})) == "bad_claim"


def test_a_token_expires_at_its_second_with_no_grace(key_store: KeyStore) -> None:
    token = token_with(key_store)
    assert verifier_of(key_store).verify(token, NOW + 599.9).token_id == "a-token"
    assert cause_of(key_store, token, NOW + 600) == "expired"


def test_a_remembered_token_expires_too(key_store: KeyStore) -> None:
    verifier, token = verifier_of(key_store), token_with(key_store)
    verifier.verify(token, NOW)
    with pytest.raises(InvalidToken) as refused:
        verifier.verify(token, NOW + 600)
    assert refused.value.cause == "expired"


@pytest.mark.parametrize(("claim", "ahead_s"), [("iat", SKEW_S + 1), ("iat", 3600), ("nbf", SKEW_S + 1)])
def test_19_a_token_from_the_future_is_refused(key_store: KeyStore, claim: str, ahead_s: int) -> None:
    token = token_with(key_store, **{claim: int(NOW) + ahead_s, "exp": int(NOW) + 7200})
    assert cause_of(key_store, token) == "not_yet_valid"


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_clock_ahead_by_no_more_than_the_skew_is_forgiven(key_store: KeyStore, claim: str) -> None:
    assert verifier_of(key_store).verify(token_with(key_store, **{claim: int(NOW) + SKEW_S}), NOW).token_id == "a-token"


@pytest.mark.parametrize("lifetime_s", [0, -1, 86_401, 2**40])
def test_a_lifetime_out_of_bounds_is_refused(key_store: KeyStore, lifetime_s: int) -> None:
    assert cause_of(key_store, token_with(key_store, exp=int(NOW) + lifetime_s)) == "bad_lifetime"


def test_17_another_issuer_is_refused(key_store: KeyStore) -> None:
    for issuer in ("https://gate.test/", "https://GATE.test", "https://other.test"):
        assert cause_of(key_store, token_with(key_store, iss=issuer)) == "wrong_issuer"


def test_16_a_list_of_audiences_with_us_in_it_is_accepted(key_store: KeyStore) -> None:
    assert verifier_of(key_store).verify(token_with(key_store, aud=["other", AUDIENCE]), NOW).token_id == "a-token"


@pytest.mark.parametrize(
    ("audience", "cause"),
    [
        ("other", "wrong_audience"),
        ("lensgate2", "wrong_audience"),
        ([], "wrong_audience"),
        (["other"], "wrong_audience"),
        (None, "bad_claim"),
        (1, "bad_claim"),
        ({"lensgate": 1}, "bad_claim"),
        ([AUDIENCE, 1], "bad_claim"),
        ([[AUDIENCE]], "bad_claim"),
        ([AUDIENCE] * 33, "bad_claim"),
    ],
)
def test_16_another_audience_is_refused(key_store: KeyStore, audience: object, cause: str) -> None:
    assert cause_of(key_store, token_with(key_store, aud=audience)) == cause


@pytest.mark.parametrize("scope", [ABSENT, ""])
def test_a_token_without_scopes_may_do_nothing(key_store: KeyStore, scope: object) -> None:
    assert verifier_of(key_store).verify(token_with(key_store, scope=scope), NOW).scopes == frozenset()


@pytest.mark.parametrize(
    "scope",
    [None, 1, ["predict"], " ", "predict ", " predict", "predict  metrics", "a\tb", 'a"b', "a\\b", "é", " ".join(["a"] * 65), "a" * 65],
)
def test_a_malformed_scope_is_refused(key_store: KeyStore, scope: object) -> None:
    assert cause_of(key_store, token_with(key_store, scope=scope)) == "bad_claim"


async def test_a_remembered_token_is_refused_once_its_key_is_gone(key_store: KeyStore, keys_dir: Path) -> None:
    verifier, token = verifier_of(key_store), token_with(key_store)
    verifier.verify(token, NOW)
    key_files(keys_dir)[0].unlink()
    create_key(keys_dir)
    await key_store.refresh()
    with pytest.raises(InvalidToken) as refused:
        verifier.verify(token, NOW)
    assert refused.value.cause == "unknown_key"


async def test_120_rotating_the_keys_refuses_no_token(key_store: KeyStore, keys_dir: Path) -> None:
    verifier, issuer = verifier_of(key_store), issuer_of(key_store)
    tokens, kids = [], set()
    create_key(keys_dir, created_at=NOW)
    for second in range(12):
        if second == 1:
            await key_store.refresh()
        issued = issuer.issue("client_a", ("predict",), NOW + second)
        kids.add(part(issued.token, 0)["kid"])
        tokens.append(issued.token)
        assert [verifier.verify(token, NOW + second).client_id for token in tokens] == ["client_a"] * len(tokens)
    assert len(kids) == 2


def test_a_remembered_token_is_verified_once(key_store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, token = verifier_of(key_store), token_with(key_store)
    first = verifier.verify(token, NOW)
    monkeypatch.setattr("security.tokens.open_compact_jws", None)
    assert verifier.verify(token, NOW + 1) is first


def test_no_more_than_1024_tokens_are_remembered_and_the_oldest_goes_first(key_store: KeyStore) -> None:
    verifier, issuer = verifier_of(key_store), issuer_of(key_store)
    tokens = [issuer.issue("client_a", ("predict",), NOW).token for _ in range(1025)]
    for token in tokens:
        verifier.verify(token, NOW)
    assert list(verifier._remembered) == tokens[1:]


def test_a_refused_token_is_not_remembered(key_store: KeyStore) -> None:
    verifier = verifier_of(key_store)
    for token in (token_with(key_store, exp=ABSENT), token_with(key_store, iat=int(NOW) - 900, exp=int(NOW) - 1)):
        with pytest.raises(InvalidToken):
            verifier.verify(token, NOW)
    assert verifier._remembered == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(claim=st.sampled_from(["iss", "sub", "aud", "exp", "iat", "jti", "client_id", "scope", "nbf"]), value=json_values)
def test_whatever_a_claim_holds_the_answer_is_a_principal_or_invalid_token(shared_key_store: KeyStore, claim: str, value: object) -> None:
    try:
        principal = verifier_of(shared_key_store).verify(token_with(shared_key_store, **{claim: value}), NOW)
    except InvalidToken:
        return
    assert principal.issuer == ISSUER
    assert NOW < principal.expires_at <= NOW + 86_400 + SKEW_S
