"""Reading the claims of a token whose signature is good: each by its type and bounds, or `InvalidToken`."""

from __future__ import annotations

import re
from typing import Final

from security.errors import InvalidToken

_MAX_TEXT: Final = 255
_MAX_AUDIENCES: Final = 32
_MAX_SCOPES: Final = 64
_MAX_SECONDS: Final = 2**53
"""The largest integer that every JSON reader keeps exact (RFC 8259 section 6)."""
_SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,64}")
"""RFC 6749 section 3.3."""

Claims = dict[str, object]


def claim(claims: Claims, name: str) -> object:
    """Any claim that must be there."""
    try:
        return claims[name]
    except KeyError:
        raise InvalidToken("missing_claim") from None


def text(claims: Claims, name: str) -> str:
    """A claim of 1 to 255 printable characters: it will stand in logs."""
    value = claim(claims, name)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise InvalidToken("bad_claim")
    return value


def seconds(claims: Claims, name: str) -> int:
    """A time in whole seconds since the epoch."""
    value = claim(claims, name)
    if type(value) is not int or not 0 <= value < _MAX_SECONDS:
        raise InvalidToken("bad_claim")
    return value


def audiences(claims: Claims) -> list[str]:
    """RFC 7519 section 4.1.3: one string, or a list of them."""
    value = claim(claims, "aud")
    listed: list[object] = value if isinstance(value, list) else [value]
    names = [audience for audience in listed if isinstance(audience, str)]
    if len(listed) > _MAX_AUDIENCES or len(names) != len(listed):
        raise InvalidToken("bad_claim")
    return names


def scopes(claims: Claims) -> frozenset[str]:
    """RFC 6749 section 3.3: names divided by single spaces. A token without the claim, or with an empty one, may do nothing."""
    value = claims.get("scope", "")
    if not isinstance(value, str):
        raise InvalidToken("bad_claim")
    names = value.split(" ") if value else []
    if len(names) > _MAX_SCOPES or not all(_SCOPE_TOKEN.fullmatch(name) for name in names):
        raise InvalidToken("bad_claim")
    return frozenset(names)
