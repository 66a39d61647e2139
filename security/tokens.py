"""Our access tokens: JWTs as RFC 9068 profiles them, issued to our clients and checked claim by claim."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final

from jose import jws

from security.claims import audiences, scopes, text
from security.compact_jws import open_compact_jws
from security.errors import InvalidToken
from security.key_files import VerificationKey
from security.key_ring import KeySource
from security.principal import Principal
from security.verified_tokens import RememberingVerifier, VerifiedToken, validity

ACCESS_TOKEN_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
"""RFC 9068 section 4."""

MAX_TOKEN_LIFETIME_S: Final = 86_400
"""A token that claims to live longer is refused. The setting `TOKEN_TTL_S` has the same bound, so lowering it breaks no token."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A fresh access token."""

    token: str = field(repr=False)
    token_id: str
    """Its `jti`."""
    expires_at: int
    """Its `exp`: seconds since the epoch."""
    expires_in_s: int


class TokenIssuer:
    """Issues access tokens, signed by the ring's current signing key."""

    def __init__(self, keys: KeySource, *, issuer: str, audience: str, ttl_s: int) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._ttl_s = ttl_s

    def issue(self, client_id: str, scopes: tuple[str, ...], now: float) -> IssuedToken:
        """Sign a token for this client (RFC 9068 section 2.2; for the client credentials grant, `sub` is the client).

        Args:
            client_id: who the token is for. The caller has authenticated it.
            scopes: what it may do, in the order in which the token names them.
            now: seconds since the epoch.
        """
        key = self._keys.ring.signing_key(now)
        issued_at = int(now)
        token_id = secrets.token_urlsafe(16)
        claims = {
            "iss": self._issuer,
            "sub": client_id,
            "aud": self._audience,
            "exp": issued_at + self._ttl_s,
            "iat": issued_at,
            "jti": token_id,
            "client_id": client_id,
            "scope": " ".join(scopes),
        }
        token: str = jws.sign(claims, key.jose_key, headers={"typ": "at+jwt", "kid": key.kid}, algorithm=key.algorithm)
        return IssuedToken(token=token, token_id=token_id, expires_at=issued_at + self._ttl_s, expires_in_s=self._ttl_s)


class TokenVerifier(RememberingVerifier):
    """Verifies our own access tokens for one audience."""

    def __init__(self, keys: KeySource, *, issuer: str, audience: str, clock_skew_s: int) -> None:
        super().__init__(clock_skew_s=clock_skew_s)
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    def _find_key(self, kid: str) -> VerificationKey | None:
        return self._keys.ring.verification_key(kid)

    def _open(self, token: str) -> VerifiedToken:
        claims, key = open_compact_jws(token, self._find_key, types=ACCESS_TOKEN_TYPES)
        if text(claims, "iss") != self._issuer:
            raise InvalidToken("wrong_issuer")
        if self._audience not in audiences(claims):
            raise InvalidToken("wrong_audience")
        text(claims, "sub")
        valid_from, expires_at = validity(claims, max_lifetime_s=MAX_TOKEN_LIFETIME_S)
        principal = Principal(
            client_id=text(claims, "client_id"),
            scopes=scopes(claims),
            issuer=self._issuer,
            token_id=text(claims, "jti"),
            expires_at=expires_at,
        )
        return VerifiedToken(principal, key, valid_from)
