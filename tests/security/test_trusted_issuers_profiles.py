"""What an operator may say of a trusted issuer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from security.issuer_profiles import PRESETS, TrustedIssuer
from security.settings import SecuritySettings

PAGE = Path(__file__).parents[2] / "docs" / "trusted-issuers.md"
MINIMAL = {"name": "idp", "issuer": "https://idp.test", "audience": "lensgate", "jwks_url": "https://idp.test/jwks"}


def profile(**changes: object) -> TrustedIssuer:
    return TrustedIssuer.model_validate({**MINIMAL, **changes})


def refused(**changes: object) -> str:
    with pytest.raises(ValidationError) as refusal:
        profile(**changes)
    return str(refusal.value)


def test_none_is_trusted_by_default() -> None:
    assert SecuritySettings().trusted_issuers == ()


def test_the_least_that_can_be_said_is_enough() -> None:
    one = profile()
    assert (one.algorithms, one.tier, one.requires_jti) == (("RS256",), "standard", False)
    assert one.token_types == {"jwt", "at+jwt", "application/jwt", "application/at+jwt"}
    assert one.scope_map == {"predict": "predict", "metrics": "metrics", "introspect": "introspect"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_in_what_is_not_said_and_survives_being_handed_to_a_child(preset: str) -> None:
    one = profile(profile=preset)
    dumped = one.model_dump(mode="json")
    assert PRESETS[preset].items() <= dumped.items()
    assert TrustedIssuer.model_validate(json.loads(json.dumps(dumped))) == one


def test_what_is_said_goes_before_the_preset() -> None:
    one = profile(profile="entra", scope_claim="scp", ignored_headers=[])
    assert (one.scope_claim, one.ignored_headers, one.client_claims) == ("scp", (), ("azp", "appid"))


def test_a_claim_that_is_required_besides_does_not_let_other_kinds_of_token_in() -> None:
    """Keycloak's own `typ` tells its access tokens from the ID tokens that it signs with the same key."""
    assert profile(profile="keycloak", required_claims={"azp": "camera"}).required_claims == {"typ": "Bearer", "azp": "camera"}
    assert profile(profile="keycloak", required_claims={"typ": "Own"}).required_claims == {"typ": "Own"}
    assert profile(required_claims={"azp": "camera"}).required_claims == {"azp": "camera"}


def test_what_the_page_shows_is_what_there_is() -> None:
    page = PAGE.read_text()
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    settings = [SecuritySettings.model_validate({"trusted_issuers": block}) for block in shown]
    assert [one.trusted_issuers[0].profile for one in settings] == ["keycloak", "auth0", "entra"]
    table = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", table)) == set(TrustedIssuer.model_fields)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"surprise": 1}, "Extra inputs"),
        ({"profile": "okta"}, "profile"),
        ({"profile": ["keycloak"]}, "profile"),
        ({"name": ""}, "name"),
        ({"name": "a:b"}, "name"),
        ({"name": "A"}, "name"),
        ({"name": "a" * 33}, "name"),
        ({"name": "client_x"}, "name"),
        ({"issuer": ""}, "issuer"),
        ({"issuer": "https://idp.test\n"}, "issuer"),
        ({"audience": ""}, "audience"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"typ": []}, "typ"),
        ({"ignored_headers": ["jku"]}, "ignored_headers"),
        ({"ignored_headers": ["crit"]}, "ignored_headers"),
        ({"client_claims": []}, "client_claims"),
        ({"scope_map": {"a": "root"}}, "must map to our scopes"),
        ({"scope_map": {f"a{n}": "predict" for n in range(65)}}, "scope_map"),
        ({"tier": "Big One"}, "tier"),
        ({"max_token_lifetime_s": 604_801}, "max_token_lifetime_s"),
        ({"max_token_lifetime_s": 0}, "max_token_lifetime_s"),
        ({"refresh_s": 0}, "refresh_s"),
        ({"refresh_s": float("inf")}, "refresh_s"),
        ({"retry_s": 0.5}, "retry_s"),
        ({"jwks_url": None}, "needs either"),
        ({"jwks_file": "keys.json"}, "needs either"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert reason in refused(**changes)


@pytest.mark.parametrize(
    "url",
    [
        "http://idp.test/jwks",
        "http://127.0.0.1.idp.test/jwks",
        "http://localhost.idp.test/jwks",
        "http://10.0.0.1/jwks",
        "http://[fe80::1]/jwks",
        "ftp://127.0.0.1/jwks",
        "file:///etc/passwd",
        "https:///jwks",
        "https://",
        "idp.test/jwks",
        "",
        "https://user@idp.test/jwks",
        "https://user:password@idp.test/jwks",
        "https://:@idp.test/jwks",
        "https://idp.test/jwks#fragment",
        "https://idp.test/jw ks",
        "https://idp.test/jwks\r\nX: y",
        "https://idp.test:99999/jwks",
        "https://idp.test:a/jwks",
        "https://[::1/jwks",
        "https://idp.test/é",
        "https://idp.test/" + "a" * 2000,
    ],
)
def test_keys_are_fetched_from_https_or_loopback_only(url: str) -> None:
    assert "jwks_url" in refused(jwks_url=url)


@pytest.mark.parametrize(
    "url", ["https://idp.test", "https://idp.test:8443/a/b?c=d", "http://127.0.0.1:8080/jwks", "http://[::1]/jwks", "http://localhost:1/j"]
)
def test_a_safe_address_is_taken(url: str) -> None:
    assert profile(jwks_url=url).jwks_url == url


@pytest.mark.parametrize(("same", "what"), [("name", "name"), ("issuer", "issuer")])
def test_two_profiles_of_one_name_or_issuer_are_refused(same: str, what: str) -> None:
    other = {**MINIMAL, "name": "other", "issuer": "https://other.test", same: MINIMAL[same]}
    with pytest.raises(ValidationError, match=f"the same {what}"):
        SecuritySettings.model_validate({"trusted_issuers": [MINIMAL, other]})


def test_a_tier_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(ValidationError, match="must have 'gold', the tier of 'idp'"):
        SecuritySettings.model_validate({"trusted_issuers": [{**MINIMAL, "tier": "gold"}]})


def test_no_more_than_eight_are_trusted() -> None:
    many = [{**MINIMAL, "name": f"n{n}", "issuer": f"https://{n}.test"} for n in range(9)]
    SecuritySettings.model_validate({"trusted_issuers": many[:8]})
    with pytest.raises(ValidationError, match="trusted_issuers"):
        SecuritySettings.model_validate({"trusted_issuers": many})


@pytest.mark.parametrize("value", [7, "x", [7], None])
def test_what_is_no_profile_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        SecuritySettings.model_validate({"trusted_issuers": [value]})
