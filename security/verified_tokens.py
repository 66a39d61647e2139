"""What every verifier of access tokens does alike: it checks a token once, remembers it, and looks at the clock and its key every time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from security.claims import Claims, seconds
from security.errors import InvalidToken
from security.key_files import VerificationKey
from security.principal import Principal

_MAX_VERIFIED: Final = 1024


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """What was found true of one token, apart from the time."""

    principal: Principal
    key: VerificationKey
    valid_from: int
    """Seconds since the epoch."""


class RememberingVerifier(ABC):
    """Verifies the access tokens of one issuer.

    A token whose signature and claims were checked is remembered by its whole text (1,024 of them at most), because a client sends the
    same one hundreds of times; its times are checked on every use, and it is forgotten as soon as its key is withdrawn. Only good
    tokens are remembered, so a stranger cannot push them out.

    Args:
        clock_skew_s: how far the issuer's clock may be ahead of ours, in seconds.
    """

    def __init__(self, *, clock_skew_s: int) -> None:
        self._clock_skew_s = clock_skew_s
        self._remembered: dict[str, VerifiedToken] = {}

    @abstractmethod
    def _find_key(self, kid: str) -> VerificationKey | None:
        """The issuer's key of exactly this name that is valid now, or None."""

    @abstractmethod
    def _open(self, token: str) -> VerifiedToken:
        """Check everything but the time, or raise `InvalidToken`."""

    def remembers(self, token: str) -> bool:
        """Whether this very text has been verified here before."""
        return token in self._remembered

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
        fresh = verified is None or self._find_key(verified.key.kid) is not verified.key
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


def validity(claims: Claims, *, max_lifetime_s: int) -> tuple[int, int]:
    """From when and until when a token is valid, in seconds since the epoch: `iat` or a later `nbf`, and `exp`.

    Raises:
        InvalidToken: a time is missing or no time, or the token claims to live for longer than `max_lifetime_s`.
    """
    issued_at = seconds(claims, "iat")
    expires_at = seconds(claims, "exp")
    if not 0 < expires_at - issued_at <= max_lifetime_s:
        raise InvalidToken("bad_lifetime")
    return max(issued_at, seconds(claims, "nbf")) if "nbf" in claims else issued_at, expires_at
