"""What introspection (RFC 7662) and revocation (RFC 7009) begin with: a client proves who it is and presents a token."""

from __future__ import annotations

from typing import NamedTuple

from security.client_auth import RawHeaders, parse_form, presented_credentials, required_parameter
from security.client_records import AuthenticatedClient
from security.errors import InvalidToken
from security.middleware.authentication import AccessTokenVerifier
from security.principal import Principal
from security.token_grant import ClientAuthenticator, authenticate_client


class PresentedToken(NamedTuple):
    """One read request."""

    client: AuthenticatedClient
    """Who asks."""
    token: str
    principal: Principal | None
    """Who the token speaks for; None where it is not a good token of ours."""


async def presented_token(
    registry: ClientAuthenticator,
    verifier: AccessTokenVerifier,
    *,
    issuer: str,
    headers: RawHeaders,
    query: bytes,
    body: bytes,
    now: float,
) -> PresentedToken:
    """Read such a request.

    Args:
        registry: the clients.
        verifier: checks tokens.
        issuer: our own `iss`; of another issuer's token we say and change nothing.
        headers: the raw headers of the request.
        query: the raw query string: it must be empty.
        body: the whole body.
        now: seconds since the epoch.

    Raises:
        OAuthError: the client is not authenticated, or the request is malformed.
        RegistryUnavailable: the database does not answer.
    """
    headers = tuple(headers)
    form = parse_form(headers, query, body)
    client = await authenticate_client(registry, presented_credentials(headers, form))
    token = required_parameter(form, "token")
    try:
        principal = verifier.verify(token, now)
    except InvalidToken:
        return PresentedToken(client, token, None)
    return PresentedToken(client, token, principal if principal.issuer == issuer else None)
