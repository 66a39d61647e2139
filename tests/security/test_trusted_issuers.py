"""Tokens of other issuers in a process of their own, in the shapes that Keycloak, Auth0 and Entra document, before the shipped verifier."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from jose import jws

from security.access import SCOPES
from security.errors import InvalidToken, KeysError
from security.issuer_profiles import TrustedIssuer
from security.key_ring import KeyStore
from security.keys import create_key
from security.principal import MAX_TOKEN_ID, Principal
from security.tokens import TokenIssuer, TokenVerifier
from security.trusted_issuers import TrustedIssuers
from support.identity_provider import PROVIDERS, IdentityProvider

OWN_ISSUER = "https://gate.test"
CLIENTS = {
    "keycloak": "keycloak:camera",
    "auth0": "auth0:cAmErA0client",
    "entra": "entra:4b1d2a34-90aa-4c9b-8a77-1e5c1a2b3c4d",
    "standard": "standard:camera",
}


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def own_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    folder = tmp_path_factory.mktemp("own") / "keys"
    create_key(folder)
    return KeyStore(folder, poll_s=1)


def trust(own_keys: KeyStore, *profiles: dict[str, Any]) -> TrustedIssuers:
    own = TokenVerifier(own_keys, issuer=OWN_ISSUER, audience="lensgate", clock_skew_s=30)
    return TrustedIssuers(own, [TrustedIssuer.model_validate(one) for one in profiles], own_issuer=OWN_ISSUER, clock_skew_s=30)


@asynccontextmanager
async def running(trusted: TrustedIssuers) -> AsyncIterator[TrustedIssuers]:
    """With its keys fetched, as far as that works."""
    for _, keys in trusted._keys:
        await keys.refresh()
    yield trusted


@pytest.fixture
async def trusted(provider: IdentityProvider, own_keys: KeyStore) -> TrustedIssuers:
    """Every provider is trusted, and its keys are known."""
    async with running(trust(own_keys, *(provider.profile(name, tier="partner") for name in PROVIDERS))) as trusted:
        return trusted


def cause_of(trusted: TrustedIssuers, token: str, now: float | None = None) -> str:
    with pytest.raises(InvalidToken) as refused:
        trusted.verify(token, time.time() if now is None else now)
    return refused.value.cause


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_client_of_the_provider_is_known_by_the_providers_name_and_has_the_profiles_tier(
    provider: IdentityProvider, trusted: TrustedIssuers, name: str
) -> None:
    principal = trusted.verify(provider.client_credentials(name), time.time())
    assert (principal.client_id, principal.tier, principal.issuer) == (CLIENTS[name], "partner", provider.issuers[name])
    assert principal.scopes == {"predict"}
    assert principal.token_id.startswith(f"{name}:")


@pytest.mark.parametrize(("name", "kind"), [("auth0", "rfc9068"), ("entra", "v1")])
async def test_the_providers_other_kind_of_access_token_is_good_too(
    provider: IdentityProvider, trusted: TrustedIssuers, name: str, kind: str
) -> None:
    assert trusted.verify(provider.token(name, kind=kind), time.time()).client_id == CLIENTS[name]


@pytest.mark.parametrize(("name", "kind"), [("keycloak", "id"), ("keycloak", "refresh"), ("auth0", "id"), ("entra", "id")])
async def test_18_an_id_or_refresh_token_of_the_provider_is_no_access_token(
    provider: IdentityProvider, trusted: TrustedIssuers, name: str, kind: str
) -> None:
    assert cause_of(trusted, provider.token(name, kind=kind)) in {"wrong_audience", "missing_claim", "not_an_access_token", "wrong_claim"}


@pytest.mark.parametrize(
    ("name", "without"), [("keycloak", ["at_hash"]), ("keycloak", []), ("auth0", ["nonce"]), ("auth0", []), ("entra", [])]
)
async def test_18_an_id_token_is_refused_even_if_it_names_our_audience(
    provider: IdentityProvider, trusted: TrustedIssuers, name: str, without: list[str]
) -> None:
    audience = provider.profile(name)["audience"]
    token = provider.token(name, kind="id", claims={"aud": audience, "scope": "predict"}, without=without)
    assert cause_of(trusted, token) in {"not_an_access_token", "wrong_claim", "missing_claim"}


@pytest.mark.parametrize("claim", ["nonce", "at_hash", "c_hash", "s_hash", "events"])
async def test_18_what_only_other_tokens_carry_is_refused(provider: IdentityProvider, trusted: TrustedIssuers, claim: str) -> None:
    assert cause_of(trusted, provider.token("auth0", claims={claim: "x"})) == "not_an_access_token"


async def test_a_token_that_is_bound_to_its_senders_key_is_refused(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    assert cause_of(trusted, provider.token("auth0", claims={"cnf": {"jkt": "x"}})) == "bound_token"


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ({"claims": {"aud": "another"}}, "wrong_audience"),
        ({"claims": {"aud": []}}, "wrong_audience"),
        ({"without": ["aud"]}, "missing_claim"),
        ({"without": ["exp"]}, "missing_claim"),
        ({"without": ["iat"]}, "missing_claim"),
        ({"without": ["sub"]}, "missing_claim"),
        ({"claims": {"exp": None}}, "bad_claim"),
        ({"claims": {"sub": ["a"]}}, "bad_claim"),
        ({"claims": {"exp": 2**40}}, "bad_lifetime"),
        ({"claims": {"iat": 1_000, "exp": 2_000}}, "expired"),
        ({"header": {"alg": "none"}}, "wrong_algorithm"),
        ({"header": {"alg": "HS256"}}, "wrong_algorithm"),
        ({"header": {"typ": "logout+jwt"}}, "wrong_type"),
        ({"header": {"kid": "another"}}, "unknown_key"),
        ({"header": {"kid": "../../etc/passwd"}}, "unknown_key"),
        ({"header": {"kid": ""}}, "header_incomplete"),
        ({"header": {"kid": "a b"}}, "header_incomplete"),
        ({"header": {"kid": ["a"]}}, "header_not_flat"),
        ({"without": ["kid"]}, "header_incomplete"),
        ({"header": {"crit": "exp"}}, "header_not_allowed"),
        ({"header": {"b64": "false"}}, "header_not_allowed"),
        ({"header": {"zip": "DEF"}}, "header_not_allowed"),
    ],
)
async def test_a_bad_token_is_refused_as_a_bad_one_of_ours_is(
    provider: IdentityProvider, trusted: TrustedIssuers, name: str, order: dict[str, Any], cause: str
) -> None:
    token = provider.token(name, **order)
    assert cause_of(trusted, token) == cause


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
async def test_10_a_token_that_brings_or_names_its_own_key_is_refused_and_nothing_is_asked(
    provider: IdentityProvider, trusted: TrustedIssuers, name: str
) -> None:
    asked = provider.order("asked")
    token = provider.token("entra", header={name: provider.jwks_url("standard")})
    assert cause_of(trusted, token) == "header_not_allowed"
    await asyncio.sleep(0)
    assert provider.order("asked") == asked


async def test_a_type_is_asked_for_unless_the_profile_says_otherwise(provider: IdentityProvider, own_keys: KeyStore) -> None:
    """Amazon Cognito and Okta, for two, leave it out."""
    token = provider.token("auth0", without=["typ"])
    async with running(trust(own_keys, provider.profile("auth0"))) as trusted:
        assert cause_of(trusted, token) == "wrong_type"
    async with running(trust(own_keys, provider.profile("auth0", typ=["", "JWT"]))) as trusted:
        assert trusted.verify(token, time.time()).client_id == CLIENTS["auth0"]


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "jwt", "application/JWT"])
async def test_a_type_is_good_in_any_case_and_with_its_prefix(provider: IdentityProvider, trusted: TrustedIssuers, typ: str) -> None:
    assert trusted.verify(provider.token("auth0", header={"typ": typ}), time.time()).client_id == CLIENTS["auth0"]


async def test_19_a_token_from_the_future_is_refused(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    now = int(time.time())
    assert cause_of(trusted, provider.token("keycloak", claims={"iat": now + 3600, "exp": now + 3900})) == "not_yet_valid"
    assert cause_of(trusted, provider.token("entra", claims={"nbf": now + 3600})) == "not_yet_valid"


async def test_a_token_is_as_strict_about_its_text_as_ours_is(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    token = provider.token("keycloak")
    assert trusted.verify(token, time.time()).client_id == CLIENTS["keycloak"]
    for changed in (token + "=", token + ".", f" {token}", token[:-1], token + "A" * 4096):
        assert cause_of(trusted, changed)


@pytest.mark.parametrize("signer", ["auth0", "entra"])
async def test_11_no_issuer_can_sign_for_another(provider: IdentityProvider, trusted: TrustedIssuers, signer: str) -> None:
    """Neither under its own key's name nor under that of the other's key, although both use RS256."""
    own_kid = provider.order("jwks", provider=signer)["keys"][0]["kid"]
    assert cause_of(trusted, provider.token("keycloak", signed_by=signer, header={"kid": own_kid})) == "unknown_key"
    assert cause_of(trusted, provider.token("keycloak", signed_by=signer)) == "bad_signature"


async def test_05_one_issuers_algorithm_is_not_anothers(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    kid = provider.order("jwks", provider="standard")["keys"][0]["kid"]
    token = provider.token("keycloak", signed_by="standard", header={"kid": kid, "alg": "ES256"})
    assert cause_of(trusted, token) == "unknown_key"
    assert cause_of(trusted, provider.token("keycloak", signed_by="standard", header={"alg": "ES256"})) == "wrong_algorithm"


async def test_our_own_key_does_not_sign_for_a_trusted_issuer(
    provider: IdentityProvider, trusted: TrustedIssuers, own_keys: KeyStore
) -> None:
    key, now = own_keys.ring.signing_key(time.time()), int(time.time())
    claims = {"iss": provider.issuers["standard"], "sub": "a", "aud": "lensgate", "iat": now, "exp": now + 60, "jti": "j", "client_id": "a"}
    token = jws.sign({**claims, "scope": "predict"}, key.jose_key, headers={"typ": "at+jwt", "kid": key.kid}, algorithm="ES256")
    assert cause_of(trusted, token) == "unknown_key"


@pytest.mark.parametrize("issuer", [OWN_ISSUER, "https://nobody.test", "", None, 7])
async def test_17_a_trusted_issuer_does_not_speak_for_us_or_for_a_stranger(
    provider: IdentityProvider, trusted: TrustedIssuers, issuer: object
) -> None:
    """A token that names no trusted issuer is ours to refuse, by our own strict rules."""
    assert cause_of(trusted, provider.token("standard", claims={"iss": issuer})) == "unknown_key"
    assert cause_of(trusted, provider.token("entra", claims={"iss": issuer})) == "header_not_allowed"


async def test_17_an_issuers_verifier_takes_no_token_that_names_another(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    """Even where something has chosen wrongly."""
    verifier = trusted._foreign[provider.issuers["standard"]]
    with pytest.raises(InvalidToken) as refused:
        verifier.verify(provider.token("standard", claims={"iss": provider.issuers["auth0"]}), time.time())
    assert refused.value.cause == "wrong_issuer"


async def test_another_spelling_of_the_issuer_is_another_issuer(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    for issuer in (provider.issuers["standard"] + "/", provider.issuers["standard"].upper(), f" {provider.issuers['standard']}"):
        assert cause_of(trusted, provider.token("standard", claims={"iss": issuer})) == "unknown_key"


async def test_our_own_tokens_are_good_beside_those_of_others(trusted: TrustedIssuers, own_keys: KeyStore) -> None:
    issued = TokenIssuer(own_keys, issuer=OWN_ISSUER, audience="lensgate", ttl_s=600).issue("client_a", ("predict",), time.time())
    for _ in range(2):
        principal = trusted.verify(issued.token, time.time())
        assert principal == Principal("client_a", frozenset({"predict"}), OWN_ISSUER, issued.token_id, issued.expires_at)


async def test_ours_stay_as_strict_as_they_are(trusted: TrustedIssuers, own_keys: KeyStore) -> None:
    key, now = own_keys.ring.signing_key(time.time()), int(time.time())
    claims = {
        "iss": OWN_ISSUER,
        "sub": "a",
        "aud": "lensgate",
        "iat": now,
        "exp": now + 60,
        "jti": "j",
        "client_id": "a",
        "scope": "predict",
    }
    for headers, cause in (({"typ": "JWT"}, "wrong_type"), ({"typ": "at+jwt", "x5t": "a"}, "header_not_allowed")):
        token = jws.sign(claims, key.jose_key, headers={**headers, "kid": key.kid}, algorithm="ES256")
        assert cause_of(trusted, token) == cause


async def test_no_client_of_another_issuer_has_an_id_that_ours_could_have(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    principals = [
        trusted.verify(provider.token("standard", claims={"client_id": "client_ours", "jti": "ours"}), time.time()),
        trusted.verify(provider.token("keycloak", claims={"azp": "client_ours", "jti": "ours"}), time.time()),
        trusted.verify(provider.token("keycloak", claims={"azp": "standard:client_ours", "jti": "standard:ours"}), time.time()),
    ]
    assert len({one.client_id for one in principals} | {"client_ours"}) == 4
    assert len({one.token_id for one in principals} | {"ours"}) == 4


async def test_without_jti_the_tokens_claims_are_its_id(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    first, second = provider.token("auth0"), provider.token("auth0", claims={"extra": 1})
    ids = [trusted.verify(token, time.time()).token_id for token in (first, first, second)]
    assert ids[0] == ids[1] != ids[2]
    assert all(one.startswith("auth0:sha256-") for one in ids)


async def test_a_token_whose_id_is_too_long_to_be_revoked_is_refused(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    longest = 255 - len("keycloak:")
    principal = trusted.verify(provider.token("keycloak", claims={"jti": "j" * longest}), time.time())
    assert len(principal.token_id) == MAX_TOKEN_ID
    assert cause_of(trusted, provider.token("keycloak", claims={"jti": "j" * (longest + 1)})) == "bad_claim"


async def test_a_remembered_token_is_verified_once_and_expires(
    provider: IdentityProvider, trusted: TrustedIssuers, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = provider.token("keycloak")
    first = trusted.verify(token, time.time())
    monkeypatch.setattr("security.foreign_tokens.open_compact_jws", None)
    assert trusted.verify(token, time.time()) is first
    assert cause_of(trusted, token, now=time.time() + 301) == "expired"


@pytest.mark.parametrize(
    ("name", "changes", "scopes"),
    [
        ("keycloak", {}, {"predict"}),
        ("keycloak", {"scope_claim": "realm_access.roles", "scope_map": {"realm-predict": "predict"}}, {"predict"}),
        ("keycloak", {"scope_claim": "realm_access.roles"}, set()),
        ("keycloak", {"scope_claim": "resource_access.lensgate.roles", "scope_map": {"client-predict": "metrics"}}, {"metrics"}),
        ("keycloak", {"scope_claim": "resource_access.nobody.roles"}, set()),
        ("keycloak", {"scope_claim": "scope.deeper"}, set()),
        ("auth0", {"scope_claim": "https://gate.example.com/roles", "scope_map": {"custom-predict": "predict"}}, {"predict"}),
        ("entra", {"scope_map": {"predict": "predict", "other": "introspect"}}, {"predict"}),
        ("entra", {"scope_claim": "scp"}, set()),
    ],
)
async def test_permissions_are_found_where_the_profile_says_and_mapped(
    provider: IdentityProvider, own_keys: KeyStore, name: str, changes: dict[str, Any], scopes: set[str]
) -> None:
    async with running(trust(own_keys, provider.profile(name, **changes))) as trusted:
        assert trusted.verify(provider.token(name), time.time()).scopes == scopes


async def test_only_scopes_of_ours_ever_come_in(provider: IdentityProvider, trusted: TrustedIssuers) -> None:
    token = provider.token("auth0", claims={"scope": "openid predict  admin:all metrics introspect predict PREDICT"})
    assert trusted.verify(token, time.time()).scopes == set(SCOPES)
    assert trusted.verify(provider.token("auth0", without=["scope"]), time.time()).scopes == frozenset()


@pytest.mark.parametrize("value", [7, {"predict": True}, ["predict", 7], True, ["a"] * 257])
async def test_permissions_of_the_wrong_kind_are_refused(provider: IdentityProvider, trusted: TrustedIssuers, value: object) -> None:
    assert cause_of(trusted, provider.token("auth0", claims={"scope": value})) == "bad_claim"


@pytest.mark.parametrize("value", ["", "a" * 256, 7, None, ["a"], "a\nb"])
async def test_a_client_of_the_wrong_kind_is_refused(provider: IdentityProvider, trusted: TrustedIssuers, value: object) -> None:
    """And the next claim that could name one is not tried."""
    assert cause_of(trusted, provider.token("auth0", claims={"azp": value, "client_id": "good"})) == "bad_claim"


async def test_a_provider_that_is_down_is_waited_for_and_ours_are_served_meanwhile(own_keys: KeyStore) -> None:
    with IdentityProvider() as provider:
        profile = provider.profile("keycloak", retry_s=1, refresh_s=1)
        token, port = provider.token("keycloak"), provider.port
    trusted = trust(own_keys, profile)
    fetching = asyncio.create_task(trusted.run())
    try:
        issued = TokenIssuer(own_keys, issuer=OWN_ISSUER, audience="lensgate", ttl_s=600).issue("client_a", ("predict",), time.time())
        assert trusted.verify(issued.token, time.time()).client_id == "client_a"
        assert cause_of(trusted, token) == "unknown_key"
        with IdentityProvider(port) as provider:
            await _until_good(trusted, provider.token("keycloak"))
    finally:
        fetching.cancel()


async def test_a_new_key_of_the_provider_is_taken_up_and_the_old_one_refused(provider: IdentityProvider, own_keys: KeyStore) -> None:
    trusted = trust(own_keys, provider.profile("keycloak", retry_s=1, refresh_s=3600))
    fetching = asyncio.create_task(trusted.run())
    try:
        old = provider.token("keycloak")
        await _until_good(trusted, old)
        provider.order("rotate", provider="keycloak")
        new = provider.token("keycloak")
        trusted.verify(old, time.time())
        assert cause_of(trusted, new) == "unknown_key"
        await _until_good(trusted, new)
        assert cause_of(trusted, old) == "unknown_key"
    finally:
        fetching.cancel()


@pytest.mark.parametrize("mode", ["broken", "garbage", "redirect", "huge"])
async def test_a_provider_that_misbehaves_changes_nothing(provider: IdentityProvider, trusted: TrustedIssuers, mode: str) -> None:
    token = provider.token("auth0")
    provider.order("behave", provider="auth0", mode=mode)
    try:
        for profile, keys in trusted._keys:
            assert await keys.refresh() == (profile.name != "auth0")
        assert not [path for path in provider.order("asked") if "elsewhere" in path]
        assert trusted.verify(token, time.time()).client_id == CLIENTS["auth0"]
    finally:
        provider.order("behave", provider="auth0", mode="ok")


async def test_keys_can_come_from_a_file_alone(provider: IdentityProvider, own_keys: KeyStore, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    profile = provider.profile("entra", jwks_file=str(file), jwks_url=None)
    with pytest.raises(KeysError, match=rf"jwks_file {file} of the trusted issuer 'entra'"):
        await trust(own_keys, profile).load_files()
    file.write_text(json.dumps(provider.order("jwks", provider="entra")))
    trusted = trust(own_keys, profile)
    await trusted.load_files()
    assert trusted.verify(provider.token("entra"), time.time()).client_id == CLIENTS["entra"]


def test_a_profile_that_claims_our_own_issuer_stops_the_start(provider: IdentityProvider, own_keys: KeyStore) -> None:
    with pytest.raises(KeysError, match="our own issuer"):
        trust(own_keys, provider.profile("standard", issuer=OWN_ISSUER))


async def _until_good(trusted: TrustedIssuers, token: str) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(InvalidToken):
                trusted.verify(token, time.time())
                return
            await asyncio.sleep(0.02)  # the fetch is in the background, and nothing tells when it is done
