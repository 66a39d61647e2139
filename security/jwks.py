"""Reading the key set of another issuer (RFC 7517): its public signing keys, prebuilt, and nothing else that stands in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk

from security.errors import KeySetUnusable
from security.key_files import Algorithm, VerificationKey
from security.strict_json import read_object

MAX_KEY_SET_BYTES: Final = 64 * 1024
"""Entra's, the largest that is known, with its certificates, has about 20 KiB."""
MAX_KEYS: Final = 32
KID_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,128}")
"""What others call their keys: Amazon Cognito's names, for one, are base64 with + / and =."""

_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
"""RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1, and what newer kinds of key call theirs."""
_RSA_BITS: Final = range(2048, 8193)
_RSA_EXPONENTS: Final = range(65537, 2**32, 2)
"""FIPS 186-5 section A.1.1: odd and above 2^16. Everybody uses 65537; a large one would make each check dear."""
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]{1,2048}")
_TENANT: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a key set held."""

    keys: Mapping[str, VerificationKey]
    skipped: tuple[str, ...]
    """Why keys were left out: fixed words, sorted."""


class _Skipped(Exception):
    """This key is nothing that we can use."""


def read_key_set(document: bytes, *, issuer: str, algorithms: tuple[Algorithm, ...]) -> KeySet:
    """Take the keys that may verify this issuer's tokens.

    Keys of other kinds and uses are left out, since providers publish those beside the ones that we need: encryption keys, other
    algorithms. Certificates (`x5c`) are not looked at, and addresses (`x5u`) are not followed.

    Args:
        document: at most 64 KiB.
        issuer: the issuer of the profile.
        algorithms: what it may sign with.

    Raises:
        KeySetUnusable: it is no key set, is too large, holds two usable keys of one name or anything private.
    """
    if len(document) > MAX_KEY_SET_BYTES:
        raise KeySetUnusable("the key set is too large")
    try:
        entries = read_object(document).get("keys")
    except ValueError as error:
        raise KeySetUnusable("the key set is not a JSON object") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise KeySetUnusable("the key set has no list of keys")
    if len(entries) > MAX_KEYS:
        raise KeySetUnusable(f"the key set holds more than {MAX_KEYS} keys")
    # Whoever publishes a private key has lost it: none of what stands beside it can be trusted either.
    if any(not _PRIVATE.isdisjoint(entry) for entry in entries):
        raise KeySetUnusable("the key set holds a private or symmetric key")
    keys: dict[str, VerificationKey] = {}
    skipped = []
    for entry in entries:
        try:
            key = _read_key(entry, issuer, algorithms)
        except _Skipped as reason:
            skipped.append(str(reason))
            continue
        if key.kid in keys:
            raise KeySetUnusable("the key set holds two keys of one name")
        keys[key.kid] = key
    return KeySet(keys, tuple(sorted(skipped)))


def _read_key(entry: dict[str, Any], issuer: str, algorithms: tuple[Algorithm, ...]) -> VerificationKey:
    kid = entry.get("kid")
    if not isinstance(kid, str) or not KID_PATTERN.fullmatch(kid):
        raise _Skipped("no usable kid")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise _Skipped("not for signatures")
    algorithm: Algorithm
    if entry.get("kty") == "RSA":
        algorithm = "RS256"
    elif entry.get("kty") == "EC" and entry.get("crv") == "P-256":
        algorithm = "ES256"
    else:
        raise _Skipped("another kind of key")
    if entry.get("alg", algorithm) != algorithm or algorithm not in algorithms:
        raise _Skipped("another algorithm")
    if not _is_of_tenant(entry.get("issuer"), issuer):
        raise _Skipped("another tenant")
    try:
        public_key = _rsa_key(entry) if algorithm == "RS256" else _ec_key(entry)
    except ValueError as error:  # not base64, not a point of the curve
        raise _Skipped("malformed") from error
    return VerificationKey(kid, algorithm, jwk.construct(public_key, algorithm))


def _rsa_key(entry: dict[str, Any]) -> rsa.RSAPublicKey:
    modulus, exponent = _number(entry, "n"), _number(entry, "e")
    if modulus.bit_length() not in _RSA_BITS or exponent not in _RSA_EXPONENTS or modulus % 2 == 0:
        raise _Skipped("a weak key")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _ec_key(entry: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicNumbers(_number(entry, "x"), _number(entry, "y"), ec.SECP256R1()).public_key()


def _number(entry: dict[str, Any], name: str) -> int:
    """RFC 7518 section 2: Base64urlUInt."""
    text = entry.get(name)
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise _Skipped("malformed")
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _is_of_tenant(named: object, issuer: str) -> bool:
    """Entra says of each key whose tokens it signs: one tenant's, or with the placeholder `{tenantid}` any's.

    A key of another tenant would otherwise verify a token that names ours. `sts.windows.net` and `login.microsoftonline.com` are two
    names of one issuer, so the tenants are compared and not the addresses.
    """
    ours = _TENANT.search(issuer)
    if not isinstance(named, str) or ours is None:
        return True
    theirs = _TENANT.search(named)
    return theirs is None or theirs[0].lower() == ours[0].lower()
