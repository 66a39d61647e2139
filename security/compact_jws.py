"""The one place where python-jose meets a token: a strict wrapper around its signature check.

python-jose alone ignores `crit`, `kid` and `typ`, lets the token choose the algorithm, accepts several spellings of one token and
recurses into nested headers before any check. So nothing reaches it here before the token's shape is exact, the header is flat and
bounded, and `kid` has chosen a prebuilt public key that fixes the algorithm (RFC 8725 section 3.1).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Final

from jose import jws

from security.errors import InvalidToken
from security.key_files import KID_PATTERN, VerificationKey
from security.strict_json import read_object

MAX_TOKEN_BYTES: Final = 4096
MAX_HEADER_BYTES: Final = 512

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_HEADER_NAMES: Final = frozenset({"alg", "typ", "kid", "cty"})
"""Everything else is refused: `crit` because it asks for what we do not do, `jwk`, `jku` and `x5u` because they bring their own key."""


def open_compact_jws(
    token: str,
    find_key: Callable[[str], VerificationKey | None],
    *,
    types: frozenset[str],
    ignored: frozenset[str] = frozenset(),
    kid_pattern: re.Pattern[str] = KID_PATTERN,
) -> tuple[dict[str, object], VerificationKey]:
    """Check the signature of a compact JWS (RFC 7515 section 3.1) and return its claims and the key that signed it.

    Args:
        token: at most 4 KiB; three canonical base64url segments.
        find_key: the public key of exactly this `kid`, or None.
        types: the accepted values of `typ`, in lower case (RFC 8725 section 3.11: one kind of token never passes for another).
        ignored: header parameters that may stand there beside ours and are not looked at: of another issuer only, and never one that
            brings or names a key of its own.
        kid_pattern: what a key may be called.

    Raises:
        InvalidToken: in every other case, whatever goes wrong inside.
    """
    header_bytes, _, _ = (_decode_canonical(segment) for segment in _segments(token))
    header = _read_header(header_bytes, _HEADER_NAMES | ignored, kid_pattern)
    if header.get("typ", "").lower() not in types:
        raise InvalidToken("wrong_type")
    key = find_key(header["kid"])
    if key is None:
        raise InvalidToken("unknown_key")
    if header["alg"] != key.algorithm:
        raise InvalidToken("wrong_algorithm")
    try:
        payload: bytes = jws.verify(token, key.jose_key, algorithms=[key.algorithm])
    except Exception as error:  # python-jose lets JWKError, RecursionError and others past its own JOSEError
        raise InvalidToken("bad_signature") from error
    return _read_object(payload), key


def unverified_issuer(token: str) -> str | None:
    """The `iss` that the token claims, or None where it claims none: nothing is true of it yet. For choosing who has to verify it."""
    try:
        issuer = _read_object(_decode_canonical(_segments(token)[1])).get("iss")
    except InvalidToken:
        return None
    return issuer if isinstance(issuer, str) else None


def _segments(token: str) -> tuple[str, ...]:
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidToken("too_long")
    segments = _COMPACT.fullmatch(token)
    if segments is None:
        raise InvalidToken("malformed")
    return segments.groups()


def _decode_canonical(segment: str) -> bytes:
    """Decode base64url and refuse every spelling but one: with unused trailing bits set, one token would have many texts."""
    try:
        octets = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError as error:
        raise InvalidToken("malformed") from error
    if base64.urlsafe_b64encode(octets).rstrip(b"=") != segment.encode("ascii"):
        raise InvalidToken("malformed")
    return octets


def _read_header(octets: bytes, allowed: frozenset[str], kid_pattern: re.Pattern[str]) -> dict[str, str]:
    """A flat JSON object of strings, with `alg` and a well-formed `kid`, of at most 512 bytes."""
    if len(octets) > MAX_HEADER_BYTES:
        raise InvalidToken("header_too_long")
    # Counted before parsing, so that nothing nested is ever descended into.
    if b"[" in octets or octets.count(b"{") != 1:
        raise InvalidToken("header_not_flat")
    header: dict[str, str] = {}
    for name, value in _read_object(octets).items():
        if name not in allowed or not isinstance(value, str):
            raise InvalidToken("header_not_allowed")
        header[name] = value
    if "alg" not in header or not kid_pattern.fullmatch(header.get("kid", "")):
        raise InvalidToken("header_incomplete")
    return header


def _read_object(octets: bytes) -> dict[str, object]:
    try:
        return read_object(octets)
    except ValueError as error:
        raise InvalidToken("malformed") from error
