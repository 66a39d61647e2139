"""Access tokens of another issuer, checked as its profile says and turned into an identity of ours."""

from __future__ import annotations

import base64
import hashlib
from typing import Final, Protocol

from security.claims import Claims, audiences, text
from security.compact_jws import open_compact_jws
from security.errors import InvalidToken
from security.issuer_profiles import TrustedIssuer
from security.jwks import KID_PATTERN
from security.key_files import VerificationKey
from security.principal import MAX_TOKEN_ID, Principal
from security.verified_tokens import RememberingVerifier, VerifiedToken, validity

_NOT_IN_ACCESS_TOKENS: Final = frozenset({"nonce", "at_hash", "c_hash", "s_hash", "events"})
"""What only ID tokens (OpenID Connect Core section 2 and 3.3.2.11) and logout or security event tokens (RFC 8417) carry."""
_BINDING: Final = "cnf"
"""A token bound to its sender's key (RFC 7800, RFC 8705, RFC 9449): taken from just anyone, it would no longer be bound."""
_MAX_PERMISSIONS: Final = 256


class ForeignKeys(Protocol):
    """Whatever knows the issuer's keys."""

    def find(self, kid: str) -> VerificationKey | None:
        """The key of exactly this name that is valid now, or None."""
        ...


class ForeignTokenVerifier(RememberingVerifier):
    """Verifies the access tokens of one trusted issuer.

    Args:
        profile: what its tokens look like.
        keys: its keys and nobody else's.
        clock_skew_s: how far its clock may be ahead of ours, in seconds.
    """

    def __init__(self, profile: TrustedIssuer, keys: ForeignKeys, *, clock_skew_s: int) -> None:
        super().__init__(clock_skew_s=clock_skew_s)
        self._profile = profile
        self._keys = keys

    def _find_key(self, kid: str) -> VerificationKey | None:
        return self._keys.find(kid)

    def _open(self, token: str) -> VerifiedToken:
        profile = self._profile
        claims, key = open_compact_jws(
            token, self._find_key, types=profile.token_types, ignored=frozenset(profile.ignored_headers), kid_pattern=KID_PATTERN
        )
        if text(claims, "iss") != profile.issuer:
            raise InvalidToken("wrong_issuer")
        if profile.audience not in audiences(claims):
            raise InvalidToken("wrong_audience")
        self._check_kind(claims)
        text(claims, "sub")
        valid_from, expires_at = validity(claims, max_lifetime_s=profile.max_token_lifetime_s)
        principal = Principal(
            client_id=f"{profile.name}:{self._client(claims)}",
            scopes=self._scopes(claims),
            issuer=profile.issuer,
            token_id=self._token_id(claims, token),
            expires_at=expires_at,
            tier=profile.tier,
        )
        return VerifiedToken(principal, key, valid_from)

    def _check_kind(self, claims: Claims) -> None:
        """Refuse what the issuer signs with the same keys but for another purpose (RFC 8725 section 3.11)."""
        if not _NOT_IN_ACCESS_TOKENS.isdisjoint(claims):
            raise InvalidToken("not_an_access_token")
        if _BINDING in claims:
            raise InvalidToken("bound_token")
        if any(claims.get(name) != value for name, value in self._profile.required_claims.items()):
            raise InvalidToken("wrong_claim")

    def _client(self, claims: Claims) -> str:
        name = next((name for name in self._profile.client_claims if name in claims), None)
        if name is None:
            raise InvalidToken("missing_claim")
        return text(claims, name)

    def _token_id(self, claims: Claims, token: str) -> str:
        if self._profile.requires_jti or "jti" in claims:
            token_id = f"{self._profile.name}:{text(claims, 'jti')}"
            if len(token_id) > MAX_TOKEN_ID:  # nobody could revoke it
                raise InvalidToken("bad_claim")
            return token_id
        # Of the claims' text only, of which there is but one: an ECDSA signature can be written in two ways.
        digest = hashlib.sha256(token.split(".")[1].encode("ascii")).digest()
        return f"{self._profile.name}:sha256-" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def _scopes(self, claims: Claims) -> frozenset[str]:
        """The permissions that the profile maps to a scope of ours. All others mean nothing here."""
        value = _look_up(claims, self._profile.scope_claim)
        listed = value.split(" ") if isinstance(value, str) else value
        if listed is None:
            return frozenset()
        if not isinstance(listed, list) or len(listed) > _MAX_PERMISSIONS:
            raise InvalidToken("bad_claim")
        permissions = {permission for permission in listed if isinstance(permission, str)}
        if not all(isinstance(permission, str) for permission in listed):
            raise InvalidToken("bad_claim")
        return frozenset(scope for permission, scope in self._profile.scope_map.items() if permission in permissions)


def _look_up(claims: Claims, path: str) -> object:
    """A claim of exactly this name (Auth0's custom claims are URLs, with dots), else by its path; None where it leads nowhere."""
    if path in claims:
        return claims[path]
    value: object = claims
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
