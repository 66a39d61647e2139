"""Token revocation (RFC 7009), without the HTTP framework around it."""

from __future__ import annotations

from typing import Protocol

from security.client_auth import RawHeaders
from security.client_records import AuthenticatedClient
from security.middleware.authentication import AccessTokenVerifier
from security.presented_token import presented_token
from security.token_grant import ClientAuthenticator


class RevocationRegistry(ClientAuthenticator, Protocol):
    """Whatever knows the clients' secrets and keeps what was revoked: the client registry."""

    async def revoke(self, jti: str, client_id: str, expires_at: int) -> None:
        """Refuse this token until it has expired."""
        ...


async def revoke(
    registry: RevocationRegistry,
    verifier: AccessTokenVerifier,
    *,
    issuer: str,
    headers: RawHeaders,
    query: bytes,
    body: bytes,
    now: float,
) -> tuple[AuthenticatedClient, str | None]:
    """Answer one revocation request: who asked, and the `jti` of the token that was revoked.

    A token that is unknown, malformed, expired or another client's changes nothing, and the caller is told the same (section 2.2).
    There is one kind of token, so `token_type_hint` is read over. Workers refuse the token within their poll (`RevocationView`).

    Args:
        registry: the clients and what was revoked.
        verifier: checks tokens.
        issuer: our own `iss`; a token of another issuer is not ours to revoke.
        headers: the raw headers of the request.
        query: the raw query string: it must be empty.
        body: the whole body.
        now: seconds since the epoch.

    Raises:
        OAuthError: the client is not authenticated, or the request is malformed.
        RegistryUnavailable: the database does not answer.
        TooManyRevocations: the client has as many revoked tokens as it may have; this one is still good.
    """
    client, _, principal = await presented_token(registry, verifier, issuer=issuer, headers=headers, query=query, body=body, now=now)
    if principal is None or principal.client_id != client.client_id:
        return client, None
    await registry.revoke(principal.token_id, principal.client_id, principal.expires_at)
    return client, principal.token_id
