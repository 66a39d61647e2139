"""Replacing signing keys while they are in use: a new one is published first, an old one goes when no live token needs it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from security.errors import KeysError
from security.key_files import MAX_KEYS, Algorithm, key_files
from security.key_ring import KeyRing, publication_delay_s
from security.keys import create_key, locked
from security.tokens import MAX_TOKEN_LIFETIME_S

State = Literal["signing", "published", "retired"]

_log: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key of the folder, as operators see it. Times are seconds since the epoch."""

    kid: str
    algorithm: Algorithm
    state: State
    """`published` keys will sign; `retired` ones only verify what they have signed."""
    created_at: float
    signs_from: float
    last_token_gone_at: float | None
    """When the last token that it can have signed has expired; None while no newer key signs."""


def describe_keys(keys_dir: Path, *, poll_s: float, clock_skew_s: float, now: float) -> list[KeyInfo]:
    """Every key, oldest first. Only reads.

    Args:
        keys_dir: the folder of keys.
        poll_s: how often the workers look at it.
        clock_skew_s: how far a worker's clock may be off.
        now: seconds since the epoch.

    Raises:
        KeysError: the folder holds no key, or cannot be read.
    """
    _check_folder(keys_dir)
    delay_s = publication_delay_s(poll_s)
    ring = KeyRing.load(keys_dir, publication_delay_s=delay_s)
    signing = ring.keys.index(ring.signing_key(now))
    described = []
    for place, key in enumerate(ring.keys):
        successor = ring.keys[place + 1] if place + 1 < len(ring.keys) else None
        # The delay once more: a worker may be late in seeing the successor, and signs with this key until it does.
        gone_at = successor.created_at + 2 * delay_s + MAX_TOKEN_LIFETIME_S + clock_skew_s if successor else None
        state: State = "signing" if place == signing else "published" if place > signing else "retired"
        described.append(KeyInfo(key.kid, key.algorithm, state, key.created_at, key.created_at + delay_s, gone_at))
    return described


def rotate_keys(keys_dir: Path, *, algorithm: Algorithm, sign_after_s: float, poll_s: float) -> str:
    """Make a key that running workers publish at their next look and sign with after `sign_after_s` seconds; return its kid.

    In an empty or missing folder the new key signs at once.

    Args:
        keys_dir: the folder of keys.
        algorithm: of the new key.
        sign_after_s: at least the publication delay, which is what less is taken for.
        poll_s: how often the workers look at the folder.

    Raises:
        KeysError: the folder is full or cannot be written, or a key in it cannot be read: workers would then not take the new one either.
    """
    delay_s = publication_delay_s(poll_s)
    with locked(keys_dir):
        present = key_files(keys_dir)
        if len(present) >= MAX_KEYS:
            raise KeysError(f"The keys folder {str(keys_dir)!r} is full ({MAX_KEYS} keys): run `lensgate keys prune` first.")
        ring = KeyRing.load(keys_dir, publication_delay_s=delay_s) if present else None
        created_at = int(time.time() + max(0.0, sign_after_s - delay_s))
        # Names hold whole seconds. Of two keys with the same one, the newer could pass for the older, and sign before it is published.
        taken = {int(key.created_at) for key in ring.keys} if ring else set()
        while created_at in taken:
            created_at += 1
        kid = create_key(keys_dir, algorithm=algorithm, created_at=created_at)
    _log.info(
        "key_rotated",
        kid=kid,
        algorithm=algorithm,
        signs_in_s=max(delay_s, sign_after_s) if present else 0.0,
        keys_dir=str(keys_dir.absolute()),
    )
    return kid


def prune_keys(keys_dir: Path, *, poll_s: float, clock_skew_s: float, now: float) -> list[str]:
    """Delete the retired keys that no live token needs any more; return their kids.

    Raises:
        KeysError: the folder holds no key, or cannot be read or written.
    """
    _check_folder(keys_dir)
    with locked(keys_dir):
        gone = [
            key.kid
            for key in describe_keys(keys_dir, poll_s=poll_s, clock_skew_s=clock_skew_s, now=now)
            if key.state == "retired" and key.last_token_gone_at is not None and key.last_token_gone_at <= now
        ]
        for kid in gone:
            try:
                (keys_dir / f"{kid}.pem").unlink(missing_ok=True)
            except OSError as error:
                raise KeysError(f"The key {kid!r} cannot be deleted from {str(keys_dir)!r}: {error.strerror}.") from error
    if gone:
        _log.info("keys_pruned", kids=gone, keys_dir=str(keys_dir.absolute()))
    return gone


def _check_folder(keys_dir: Path) -> None:
    if not keys_dir.exists():
        raise KeysError(f"There is no keys folder {str(keys_dir.absolute())!r}: `lensgate keys rotate` makes it, with a first key.")
