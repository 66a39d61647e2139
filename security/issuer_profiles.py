"""What the operator says of an outside identity provider whose access tokens we accept: one profile each in `TRUSTED_ISSUERS`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from security.access import SCOPES
from security.client_records import STANDARD_TIER

MAX_TRUSTED_ISSUERS: Final = 8
"""Each costs a request to its provider every few minutes, from every worker."""

# As in security.key_files, which brings cryptography along: the supervisor reads its settings without it.
Algorithm = Literal["ES256", "RS256"]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x20\x7f]+$")]
_TokenType = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9.+-]*$")]
_URL: Final = re.compile(r"https?://[\x21-\x7e]{1,2000}")

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "generic": {},
    # `typ` in the claims is Keycloak's own word for the kind of token: an ID token has "ID", a refresh token "Refresh".
    "keycloak": {"client_claims": ["azp"], "required_claims": {"typ": "Bearer"}},
    # `azp` in Auth0's own profile, `client_id` in its RFC 9068 profile; its ID tokens have neither.
    "auth0": {"client_claims": ["azp", "client_id"]},
    # `azp` in v2.0 tokens, `appid` in v1.0 ones; ID tokens have neither. `roles` is what an app was granted itself.
    "entra": {"typ": ["JWT"], "ignored_headers": ["x5t"], "client_claims": ["azp", "appid"], "scope_claim": "roles"},
    "rfc9068": {"typ": ["at+jwt"], "client_claims": ["client_id"], "requires_jti": True},
}
"""The defaults that go with `profile`. Whatever a profile says itself goes before them; claims that it requires are required besides."""


class TrustedIssuer(BaseModel):
    """An outside identity provider, what its access tokens look like, and what they are worth here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="What it is called here: in logs, and before its clients' ids.")
    profile: Literal["generic", "keycloak", "auth0", "entra", "rfc9068"] = Field(default="generic", description="Whose defaults to take.")
    issuer: _Text = Field(description="Its `iss`, character for character.")
    audience: _Text = Field(description="The `aud` that stands for this service at the provider.")
    jwks_url: str | None = Field(default=None, description="Where its keys are: https, or http on loopback. This or `jwks_file`.")
    jwks_file: Path | None = Field(default=None, description="A file with its keys (RFC 7517), read again every `refresh_s`.")
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256",), min_length=1, description="What it may sign with.")
    typ: tuple[_TokenType, ...] = Field(
        default=("JWT", "at+jwt"),
        min_length=1,
        max_length=8,
        description="The header's `typ`, in any case; an empty one: it may be absent.",
    )
    ignored_headers: tuple[Literal["x5t", "x5t#S256"], ...] = Field(default=(), description="Header parameters that are not looked at.")
    required_claims: dict[_Text, _Text] = Field(default={}, max_length=8, description="Claims that must have exactly this text.")
    client_claims: tuple[_Text, ...] = Field(
        default=("azp", "appid", "client_id"), min_length=1, max_length=8, description="Where the client's id is: the first that is there."
    )
    scope_claim: _Text = Field(default="scope", description="Where the permissions are: a text or a list; a.b is b inside a.")
    scope_map: dict[_Text, str] = Field(
        default={scope: scope for scope in SCOPES}, max_length=64, description="The provider's permission → our scope; others are dropped."
    )
    requires_jti: bool = Field(default=False, description="Refuse a token without `jti`. Without it, a hash of the claims is the id.")
    tier: str = Field(default=STANDARD_TIER, pattern=r"^[a-z0-9_-]{1,32}$", description="The tier of its clients.")
    max_token_lifetime_s: int = Field(default=86_400, ge=60, le=604_800, description="The longest life of a token, in seconds.")
    refresh_s: float = Field(default=300, ge=1, le=86_400, description="How often the keys are fetched again, in seconds.")
    retry_s: float = Field(
        default=10, ge=1, le=300, description="The least time between two fetches, in seconds: after a failure or an unknown key."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_the_presets_defaults(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        preset = values.get("profile")
        defaults = PRESETS.get(preset if isinstance(preset, str) else "generic", {})
        merged = {**defaults, **values}
        required = values.get("required_claims")
        if isinstance(required, dict):
            # Asking for one claim more must not let other kinds of token in.
            merged["required_claims"] = {**defaults.get("required_claims", {}), **required}
        return merged

    @field_validator("jwks_url")
    @classmethod
    def _is_safe_to_fetch(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or not _URL.fullmatch(value) or parts.username is not None or parts.password is not None or "#" in value:
            raise ValueError("must be an https URL without user, password or fragment")
        if parts.scheme != "https" and not _is_loopback(host):
            raise ValueError("must be https: http is for loopback only")
        return value

    @field_validator("scope_map")
    @classmethod
    def _maps_to_our_scopes(cls, value: dict[str, str]) -> dict[str, str]:
        if not set(value.values()) <= set(SCOPES):
            raise ValueError(f"must map to our scopes: {', '.join(SCOPES)}")
        return value

    @model_validator(mode="after")
    def _has_one_source_of_keys(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("needs either jwks_url or jwks_file")
        return self

    @property
    def token_types(self) -> frozenset[str]:
        """The accepted values of the header's `typ` in lower case, with and without the prefix that RFC 7515 section 4.1.9 lets fall."""
        names = {name.lower() for name in self.typ}
        return frozenset(names | {f"application/{name}" for name in names if name})


def check_distinct(issuers: tuple[TrustedIssuer, ...]) -> tuple[TrustedIssuer, ...]:
    """Refuse two profiles of one name or one issuer: which of them a token means must never be a question."""
    for what, seen in (("name", {one.name for one in issuers}), ("issuer", {one.issuer for one in issuers})):
        if len(seen) != len(issuers):
            raise ValueError(f"two profiles have the same {what}")
    return issuers


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
