"""Reading the files that hold our signing keys: one PEM private key each, `<kid>.pem`, EC P-256 (ES256) or RSA (RS256)."""

from __future__ import annotations

import base64
import os
import re
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jose import jwk

from security.errors import KeysError

Algorithm = Literal["ES256", "RS256"]

KID_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a key may be called. Ours are `YYYYMMDDTHHMMSSZ-<first 8 of the RFC 7638 thumbprint>`, so that names sort by age."""

MAX_KEYS: Final = 64
"""The most keys in a folder: far more than any rotation leaves behind, so that a wrong folder is noticed."""

TIMESTAMP_FORMAT: Final = "%Y%m%dT%H%M%SZ"
_TIMESTAMPED_KID: Final = re.compile(r"(\d{8}T\d{6}Z)-[A-Za-z0-9_-]+")
_MAX_PEM_BYTES: Final = 32 * 1024
_RSA_BITS: Final = range(2048, 8193)
"""RFC 7518 section 3.3 asks for 2,048 bits at least; above 8,192 one signature costs tens of milliseconds."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, prebuilt for python-jose, and the one algorithm that it may be used with."""

    kid: str
    algorithm: Algorithm
    jose_key: Any = field(repr=False)
    """python-jose has no types: a `jose.backends.base.Key` made from the public key only."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, with its public half."""

    kid: str
    algorithm: Algorithm
    created_at: float
    """Seconds since the epoch: the timestamp in the kid, or the file's modification time where the kid has none."""
    public: VerificationKey
    public_jwk: dict[str, str] = field(repr=False)
    """RFC 7517: the public members only, with `kid`, `use` and `alg`."""
    jose_key: Any = field(repr=False)


def key_files(keys_dir: Path) -> list[Path]:
    """The key files of the folder, sorted by name: every `*.pem` that is not hidden.

    Raises:
        KeysError: the folder cannot be read, or holds more than `MAX_KEYS` of them.
    """
    try:
        files = sorted(path for path in keys_dir.iterdir() if path.suffix == ".pem" and not path.name.startswith("."))
    except OSError as error:
        raise KeysError(f"The keys folder {str(keys_dir)!r} cannot be read: {error.strerror}.") from error
    if len(files) > MAX_KEYS:
        raise KeysError(
            f"The keys folder {str(keys_dir)!r} holds {len(files)} keys; at most {MAX_KEYS} are allowed: is it the right folder?"
        )
    return files


def read_key(path: Path) -> SigningKey:
    """Read one key file.

    Group-readable files are accepted, because Kubernetes mounts secrets so (`fsGroup`); files that everyone may read are
    accepted with a warning; files that everyone may write are refused, because anybody could then sign our tokens.

    Raises:
        KeysError: the file is no usable key; the message names it and says why.
    """
    kid = path.stem
    if not KID_PATTERN.fullmatch(kid):
        raise KeysError(f"The key file {path.name!r} is badly named: a key's name has 1 to 64 of A-Z a-z 0-9 . _ - and ends in .pem.")
    pem, modified_at = _read_pem(path)
    try:
        private_key = load_pem_private_key(pem, password=None)
    except Exception as error:  # cryptography has many ways to say no (ValueError, TypeError, UnsupportedAlgorithm, ...)
        raise KeysError(f"The key file {path.name!r} is not an unencrypted PEM private key.") from error
    algorithm, numbers = describe_key(path.name, private_key)
    return SigningKey(
        kid=kid,
        algorithm=algorithm,
        created_at=_timestamp(kid) or modified_at,
        public=VerificationKey(kid, algorithm, jwk.construct(private_key.public_key(), algorithm)),
        public_jwk={**numbers, "kid": kid, "use": "sig", "alg": algorithm},
        jose_key=jwk.construct(private_key, algorithm),
    )


def _read_pem(path: Path) -> tuple[bytes, float]:
    """The bytes of a key file and its modification time. Symbolic links are followed: Kubernetes mounts secrets so."""
    try:
        # Without O_NONBLOCK a named pipe in the folder would stop the server for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            pem = os.read(descriptor, _MAX_PEM_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeysError(f"The key file {path.name!r} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise KeysError(f"The key file {path.name!r} is not a regular file.")
    if len(pem) > _MAX_PEM_BYTES:
        raise KeysError(f"The key file {path.name!r} is too large for a key.")
    if status.st_mode & stat.S_IWOTH:
        raise KeysError(f"The key file {path.name!r} can be written by everyone: run `chmod 600` on it, and replace the key.")
    if status.st_mode & stat.S_IROTH:
        _log.warning("key_file_readable_by_everyone", file=path.name, mode=oct(stat.S_IMODE(status.st_mode)))
    return pem, status.st_mtime


def describe_key(file_name: str, private_key: object) -> tuple[Algorithm, dict[str, str]]:
    """The algorithm of a key and its public members as RFC 7518 section 6 writes them, or a refusal that names the file."""
    if isinstance(private_key, ec.EllipticCurvePrivateKey) and isinstance(private_key.curve, ec.SECP256R1):
        point = private_key.public_key().public_numbers()
        return "ES256", {"kty": "EC", "crv": "P-256", "x": _base64url(point.x, 32), "y": _base64url(point.y, 32)}
    if isinstance(private_key, rsa.RSAPrivateKey) and private_key.key_size in _RSA_BITS:
        numbers = private_key.public_key().public_numbers()
        return "RS256", {"kty": "RSA", "n": _base64url(numbers.n), "e": _base64url(numbers.e)}
    raise KeysError(f"The key file {file_name!r} is of the wrong kind: EC P-256, or RSA of 2,048 to 8,192 bits, is needed.")


def _base64url(number: int, length: int | None = None) -> str:
    """RFC 7518 section 2 (Base64urlUInt); coordinates keep their leading zeros (section 6.2.1.2)."""
    octets = number.to_bytes(length or (number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def _timestamp(kid: str) -> float | None:
    match = _TIMESTAMPED_KID.fullmatch(kid)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], TIMESTAMP_FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:  # it only looks like a date
        return None
