"""Making signing keys. Reading them is the subject of `security.key_files`, choosing among them that of `security.key_ring`."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from security.errors import KeysError
from security.key_files import TIMESTAMP_FORMAT, Algorithm, describe_key, key_files

_NEW_RSA_BITS: Final = 3072
"""128 bits of security (NIST SP 800-57 part 1, table 2), as P-256 has."""


def create_key(keys_dir: Path, *, algorithm: Algorithm = "ES256", created_at: float | None = None) -> str:
    """Make a key file, readable by its owner only, and the folder (0700) where it is missing; return the kid.

    The file appears whole or not at all. Other keys are left alone.

    Args:
        keys_dir: the folder of keys.
        algorithm: ES256 (a P-256 key) or RS256 (3,072 bits).
        created_at: the time in the kid, in seconds since the epoch; now when None. A later time keeps the key from signing until then,
            which is how a key is handed out ahead of time where the folder reaches other machines slowly.

    Raises:
        KeysError: the folder cannot be made or written.
    """
    private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if algorithm == "ES256":
        private_key = ec.generate_private_key(ec.SECP256R1())
    else:
        private_key = rsa.generate_private_key(public_exponent=65537, key_size=_NEW_RSA_BITS)
    stamp = datetime.fromtimestamp(time.time() if created_at is None else created_at, UTC).strftime(TIMESTAMP_FORMAT)
    kid = f"{stamp}-{_thumbprint(describe_key('', private_key)[1])[:8]}"
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = keys_dir / f".{kid}.unfinished"
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(keys_dir / f"{kid}.pem")
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise KeysError(f"No key can be written into the keys folder {str(keys_dir)!r}: {error.strerror}.") from error
    return kid


def ensure_keys(keys_dir: Path, *, may_create: bool) -> str | None:
    """Make the first key where there is none; return its kid, or None where there are keys already.

    Safe to call from several processes at once: only one of them makes a key.

    Args:
        keys_dir: the folder of keys.
        may_create: whether this process may invent a key: never where replicas share a database, since each would invent its own.

    Raises:
        KeysError: there is no key and none may be made, or the folder cannot be used.
    """
    if keys_dir.is_dir() and key_files(keys_dir):
        return None
    if not may_create:
        raise KeysError(
            f"The keys folder {str(keys_dir)!r} holds no key, and replicas must share theirs: make one with `lensgate keys rotate` "
            "and give the folder to every replica."
        )
    with locked(keys_dir):
        return None if key_files(keys_dir) else create_key(keys_dir)


@contextmanager
def locked(keys_dir: Path) -> Iterator[None]:
    """Hold the folder's lock, which dies with the process; the folder is made where it is missing.

    Raises:
        KeysError: the folder cannot be made.
    """
    try:
        keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(keys_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeysError(f"The keys folder {str(keys_dir)!r} cannot be made: {error.strerror}.") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _thumbprint(members: dict[str, str]) -> str:
    """RFC 7638: the SHA-256 of the required members, in order and without white space."""
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode("ascii")
    return base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode("ascii")
