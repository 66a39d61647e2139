"""The client credentials grant (RFC 6749 section 4.4), without the HTTP framework around it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Protocol

from security.client_auth import ClientCredentials, RawHeaders, parse_form, presented_credentials, required_parameter
from security.client_records import AuthenticatedClient
from security.errors import ClientAuthenticationFailed, OAuthError
from security.tokens import IssuedToken

_BEARER: Final = "Bearer"
_SCOPE_LIST: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*")
"""RFC 6749 section 3.3."""


class ClientAuthenticator(Protocol):
    """Whatever knows the clients' secrets: the client registry."""

    async def authenticate(self, client_id: str, client_secret: str) -> AuthenticatedClient | None:
        """The client, or None, without saying why."""
        ...


class AccessTokenIssuer(Protocol):
    """Whatever signs access tokens."""

    def issue(self, client_id: str, scopes: tuple[str, ...], now: float) -> IssuedToken:
        """Sign one."""
        ...


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A successful answer of the token endpoint (RFC 6749 section 5.1). It must go out with `Cache-Control: no-store`."""

    access_token: str = field(repr=False)
    expires_in: int
    """Seconds."""
    scope: str
    client_id: str
    """For the log; not sent."""
    token_id: str
    """For the log; not sent."""
    tier: str
    """The client's, in the registry; not sent."""

    def body(self) -> dict[str, str | int]:
        """The members of the JSON answer."""
        return {"access_token": self.access_token, "token_type": _BEARER, "expires_in": self.expires_in, "scope": self.scope}


async def authenticate_client(registry: ClientAuthenticator, credentials: ClientCredentials) -> AuthenticatedClient:
    """The client that these credentials prove.

    Raises:
        ClientAuthenticationFailed: the same for an unknown client, a wrong secret and a disabled client.
        RegistryUnavailable: the database does not answer.
    """
    client = await registry.authenticate(credentials.client_id, credentials.client_secret)
    if client is None:
        raise ClientAuthenticationFailed(credentials.client_id)
    return client


async def grant(
    registry: ClientAuthenticator,
    issuer: AccessTokenIssuer,
    *,
    headers: RawHeaders,
    query: bytes,
    body: bytes,
    now: float,
) -> TokenResponse:
    """Answer one token request.

    Args:
        registry: the clients.
        issuer: the signer.
        headers: the raw headers of the request.
        query: the raw query string: it must be empty.
        body: the whole body.
        now: seconds since the epoch.

    Raises:
        OAuthError: the request is refused (RFC 6749 section 5.2).
        RegistryUnavailable: the database does not answer.
    """
    headers = tuple(headers)
    form = parse_form(headers, query, body)
    credentials = presented_credentials(headers, form)
    if required_parameter(form, "grant_type") != "client_credentials":
        raise OAuthError("unsupported_grant_type", "Only the grant type client_credentials is supported.")
    client = await authenticate_client(registry, credentials)
    scopes = _granted_scopes(form.get("scope"), client.scopes)
    issued = issuer.issue(client.client_id, scopes, now)
    return TokenResponse(
        access_token=issued.token,
        expires_in=issued.expires_in_s,
        scope=" ".join(scopes),
        client_id=client.client_id,
        token_id=issued.token_id,
        tier=client.tier,
    )


def _granted_scopes(asked: str | None, granted: tuple[str, ...]) -> tuple[str, ...]:
    """All of the client's scopes when it names none; else those it names, in the registry's order."""
    if asked is None:
        return granted
    if not _SCOPE_LIST.fullmatch(asked):
        raise OAuthError("invalid_scope", "The parameter scope is malformed.")
    names = set(asked.split(" "))
    if not names.issubset(granted):
        raise OAuthError("invalid_scope", "The client may not have a scope that it asks for.")
    return tuple(scope for scope in granted if scope in names)
