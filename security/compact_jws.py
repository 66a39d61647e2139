"""The one place where python-jose meets a token: a strict wrapper around its signature check.

python-jose alone ignores `crit`, `kid` and `typ`, lets the token choose the algorithm, accepts several spellings of one token and
recurses into nested headers before any check. So nothing reaches it here before the token's shape is exact, the header is flat and
bounded, and `kid` has chosen a prebuilt public key that fixes the algorithm (RFC 8725 section 3.1).
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

from jose import jws

from security.errors import InvalidToken
from security.key_files import KID_PATTERN, VerificationKey

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
) -> tuple[dict[str, object], VerificationKey]:
    """Check the signature of a compact JWS (RFC 7515 section 3.1) and return its claims and the key that signed it.

    Args:
        token: at most 4 KiB; three canonical base64url segments.
        find_key: the public key of exactly this `kid`, or None.
        types: the accepted values of `typ`, in lower case (RFC 8725 section 3.11: one kind of token never passes for another).

    Raises:
        InvalidToken: in every other case, whatever goes wrong inside.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidToken("too_long")
    segments = _COMPACT.fullmatch(token)
    if segments is None:
        raise InvalidToken("malformed")
    header_bytes, _, _ = (_decode_canonical(segment) for segment in segments.groups())
    header = _read_header(header_bytes)
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


def _decode_canonical(segment: str) -> bytes:
    """Decode base64url and refuse every spelling but one: with unused trailing bits set, one token would have many texts."""
    try:
        octets = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError as error:
        raise InvalidToken("malformed") from error
    if base64.urlsafe_b64encode(octets).rstrip(b"=") != segment.encode("ascii"):
        raise InvalidToken("malformed")
    return octets


def _read_header(octets: bytes) -> dict[str, str]:
    """A flat JSON object of strings, with `alg` and a well-formed `kid`, of at most 512 bytes."""
    if len(octets) > MAX_HEADER_BYTES:
        raise InvalidToken("header_too_long")
    # Counted before parsing, so that nothing nested is ever descended into.
    if b"[" in octets or octets.count(b"{") != 1:
        raise InvalidToken("header_not_flat")
    header: dict[str, str] = {}
    for name, value in _read_object(octets).items():
        if name not in _HEADER_NAMES or not isinstance(value, str):
            raise InvalidToken("header_not_allowed")
        header[name] = value
    if "alg" not in header or not KID_PATTERN.fullmatch(header.get("kid", "")):
        raise InvalidToken("header_incomplete")
    return header


def _read_object(octets: bytes) -> dict[str, object]:
    """One JSON object: UTF-8, each name once, finite numbers only (RFC 8259 has no others)."""
    try:
        value = json.loads(octets.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidToken("malformed") from error
    if not isinstance(value, dict):
        raise InvalidToken("malformed")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is repeated")
    return members


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number
