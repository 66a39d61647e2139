"""Makes tokens as the gate makes them, with its own key and without python-jose, so that any part of one can be wrong."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

GONE: Final = object()
"""As the value of a claim or of a header's member: it is left out."""

Signer = Callable[[bytes], bytes]


def b64(octets: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def es256(key: ec.EllipticCurvePrivateKey) -> Signer:
    """Signs as RFC 7518 section 3.4 says."""

    def sign(signed: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


class Forge:
    """Holds the gate's own signing key: what a refusal then says is wrong is the only thing that is."""

    def __init__(self, keys_dir: Path, issuer: str, client_id: str) -> None:
        (path,) = keys_dir.glob("*.pem")
        key = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.kid = path.stem
        self.key = key
        self.issuer = issuer
        self.client_id = client_id

    def public(self, encoding: Encoding) -> bytes:
        """The public key, as anyone can have it."""
        return self.key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)

    def header(self, **changes: object) -> dict[str, Any]:
        """A good header with these changes."""
        return _without_gone({"alg": "ES256", "typ": "at+jwt", "kid": self.kid} | changes)

    def claims(self, **changes: object) -> dict[str, Any]:
        """Good claims with these changes."""
        now = int(time.time())
        good = {
            "iss": self.issuer,
            "sub": self.client_id,
            "aud": "lensgate",
            "exp": now + 300,
            "iat": now,
            "jti": b64(now.to_bytes(8, "big")),
            "client_id": self.client_id,
            "scope": "predict",
        }
        return _without_gone(good | changes)

    def sign(
        self, header: dict[str, Any] | bytes | None = None, claims: dict[str, Any] | bytes | None = None, by: Signer | None = None
    ) -> str:
        """A token of these parts; parts given as bytes stand in it as they are."""
        signed = ".".join(b64(_octets(part)) for part in (header or self.header(), claims or self.claims()))
        return f"{signed}.{b64((by or es256(self.key))(signed.encode()))}"


def flip_trailing_bit(segment: str) -> str:
    """Another spelling of the same bytes: the last character's unused bit is turned over."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(segment) % 4 in {2, 3}, "this segment has no unused bits"
    other = segment[:-1] + alphabet[alphabet.index(segment[-1]) ^ 1]
    pad = "=" * (-len(segment) % 4)
    assert base64.urlsafe_b64decode(other + pad) == base64.urlsafe_b64decode(segment + pad)
    return other


def _octets(part: dict[str, Any] | bytes) -> bytes:
    return part if isinstance(part, bytes) else json.dumps(part).encode()


def _without_gone(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not GONE}
