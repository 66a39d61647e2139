"""Our access tokens: JWTs as RFC 9068 profiles them, issued to our clients and checked claim by claim."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from jose import jws

from security.compact_jws import open_compact_jws
from security.errors import InvalidToken
from security.key_files import VerificationKey
from security.key_ring import KeySource
from security.principal import Principal

ACCESS_TOKEN_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
"""RFC 9068 section 4."""

MAX_TOKEN_LIFETIME_S: Final = 86_400
"""A token that claims to live longer is refused. The setting `TOKEN_TTL_S` has the same bound, so lowering it breaks no token."""

_MAX_TEXT: Final = 255
_MAX_AUDIENCES: Final = 32
_MAX_SCOPES: Final = 64
_MAX_SECONDS: Final = 2**53
"""The largest integer that every JSON reader keeps exact (RFC 8259 section 6)."""
_MAX_VERIFIED: Final = 1024
_SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,64}")
"""RFC 6749 section 3.3."""


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


@dataclass(frozen=True, slots=True)
class _Verified:
    """What was found true of one token, apart from the time."""

    principal: Principal
    key: VerificationKey
    valid_from: int


class TokenVerifier:
    """Verifies access tokens of one issuer for one audience.

    A token whose signature and claims were checked is remembered by its whole text (1,024 of them at most), because a client sends the
    same one hundreds of times; its times are checked on every use, and it is forgotten as soon as its key leaves the ring. Only good
    tokens are remembered, so a stranger cannot push them out.
    """

    def __init__(self, keys: KeySource, *, issuer: str, audience: str, clock_skew_s: int) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock_skew_s = clock_skew_s
        self._remembered: dict[str, _Verified] = {}

    def verify(self, token: str, now: float) -> Principal:
        """Return who the token speaks for.

        Whether it was revoked, or its client disabled, is not known here.

        Args:
            token: what stands behind `Bearer`.
            now: seconds since the epoch.

        Raises:
            InvalidToken: anything is wrong with it.
        """
        verified = self._remembered.get(token)
        fresh = verified is None or self._keys.ring.verification_key(verified.key.kid) is not verified.key
        if verified is None or fresh:
            self._remembered.pop(token, None)
            verified = self._open(token)
        if verified.principal.expires_at <= now:
            raise InvalidToken("expired")
        if verified.valid_from > now + self._clock_skew_s:
            raise InvalidToken("not_yet_valid")
        if fresh:
            if len(self._remembered) >= _MAX_VERIFIED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[token] = verified
        return verified.principal

    def _open(self, token: str) -> _Verified:
        claims, key = open_compact_jws(token, self._keys.ring.verification_key, types=ACCESS_TOKEN_TYPES)
        if _text(claims, "iss") != self._issuer:
            raise InvalidToken("wrong_issuer")
        if self._audience not in _audiences(claims):
            raise InvalidToken("wrong_audience")
        _text(claims, "sub")
        issued_at = _seconds(claims, "iat")
        expires_at = _seconds(claims, "exp")
        if not 0 < expires_at - issued_at <= MAX_TOKEN_LIFETIME_S:
            raise InvalidToken("bad_lifetime")
        principal = Principal(
            client_id=_text(claims, "client_id"),
            scopes=_scopes(claims),
            issuer=self._issuer,
            token_id=_text(claims, "jti"),
            expires_at=expires_at,
        )
        valid_from = max(issued_at, _seconds(claims, "nbf")) if "nbf" in claims else issued_at
        return _Verified(principal, key, valid_from)


def _claim(claims: dict[str, object], name: str) -> object:
    try:
        return claims[name]
    except KeyError:
        raise InvalidToken("missing_claim") from None


def _text(claims: dict[str, object], name: str) -> str:
    """A claim of 1 to 255 printable characters: it will stand in logs."""
    value = _claim(claims, name)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise InvalidToken("bad_claim")
    return value


def _seconds(claims: dict[str, object], name: str) -> int:
    value = _claim(claims, name)
    if type(value) is not int or not 0 <= value < _MAX_SECONDS:
        raise InvalidToken("bad_claim")
    return value


def _audiences(claims: dict[str, object]) -> list[str]:
    """RFC 7519 section 4.1.3: one string, or a list of them."""
    value = _claim(claims, "aud")
    listed: list[object] = value if isinstance(value, list) else [value]
    audiences = [audience for audience in listed if isinstance(audience, str)]
    if len(listed) > _MAX_AUDIENCES or len(audiences) != len(listed):
        raise InvalidToken("bad_claim")
    return audiences


def _scopes(claims: dict[str, object]) -> frozenset[str]:
    """RFC 6749 section 3.3: names divided by single spaces. A token without the claim, or with an empty one, may do nothing."""
    value = claims.get("scope", "")
    if not isinstance(value, str):
        raise InvalidToken("bad_claim")
    scopes = value.split(" ") if value else []
    if len(scopes) > _MAX_SCOPES or not all(_SCOPE_TOKEN.fullmatch(scope) for scope in scopes):
        raise InvalidToken("bad_claim")
    return frozenset(scopes)
