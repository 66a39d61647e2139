"""Token introspection (RFC 7662), without the HTTP framework around it: what a client may learn of a token of ours."""

from __future__ import annotations

import base64
from typing import Final, Protocol

import msgspec

from security.client_auth import RawHeaders
from security.client_records import AuthenticatedClient
from security.middleware.authentication import AccessTokenVerifier
from security.presented_token import presented_token
from security.principal import Principal
from security.token_grant import ClientAuthenticator

INTROSPECT_SCOPE: Final = "introspect"

_SHOWN: Final = ("scope", "client_id", "sub", "exp", "iat", "iss", "aud", "jti")
"""The claims of RFC 9068 that RFC 7662 section 2.2 has members for."""


class IntrospectionRegistry(ClientAuthenticator, Protocol):
    """Whatever knows the clients' secrets and what was taken back: the client registry."""

    async def is_refused(self, token_id: str, client_id: str) -> bool:
        """Whether the token was revoked or its client disabled or deleted, as of now."""
        ...


async def introspect(
    registry: IntrospectionRegistry,
    verifier: AccessTokenVerifier,
    *,
    issuer: str,
    headers: RawHeaders,
    query: bytes,
    body: bytes,
    now: float,
) -> tuple[AuthenticatedClient, dict[str, object]]:
    """Answer one introspection request: who asked, and the members of the JSON answer.

    A request with the token is checked against what was last polled; this asks the database, and knows of a revocation at once.
    A token that is unknown, expired, revoked, of another issuer or not the asker's to see is `{"active": false}`: nothing says which.

    Args:
        registry: the clients and what was revoked.
        verifier: checks tokens.
        issuer: our own `iss`; of other issuers' tokens we say nothing.
        headers: the raw headers of the request.
        query: the raw query string: it must be empty.
        body: the whole body.
        now: seconds since the epoch.

    Raises:
        OAuthError: the client is not authenticated, or the request is malformed.
        RegistryUnavailable: the database does not answer.
    """
    client, token, principal = await presented_token(registry, verifier, issuer=issuer, headers=headers, query=query, body=body, now=now)
    if principal is None or not _may_see(client, principal) or await registry.is_refused(principal.token_id, principal.client_id):
        return client, {"active": False}
    claims = _claims(token)
    shown: dict[str, object] = {name: claims[name] for name in _SHOWN if name in claims}
    return client, {"active": True, "token_type": "Bearer", **shown}


def _may_see(client: AuthenticatedClient, principal: Principal) -> bool:
    return principal.client_id == client.client_id or INTROSPECT_SCOPE in client.scopes


def _claims(verified_token: str) -> dict[str, object]:
    """The claims of a token whose signature and form the verifier has just checked."""
    payload = verified_token.split(".")[1]
    return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=dict[str, object])
