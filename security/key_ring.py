"""The keys that are valid now: which one signs, which ones verify, and what the world may see of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import structlog

from security.background import survive
from security.errors import KeysError
from security.key_files import SigningKey, VerificationKey, key_files, read_key

_Listing = tuple[tuple[str, int, int, int], ...]

_PUBLICATION_MARGIN_S: Final = 5.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

JWKS_MAX_AGE_S: Final = int(_PUBLICATION_MARGIN_S) - 1
"""How long others may keep the key set: one taken from the last worker to see a new key is stale before that key signs."""


def publication_delay_s(poll_s: float) -> float:
    """How long a new key is only published before it signs: until every worker has polled it, even one that just missed a turn."""
    return 2 * poll_s + _PUBLICATION_MARGIN_S


class KeyRing:
    """An immutable snapshot of the keys folder.

    Args:
        keys: what is in it.
        publication_delay_s: how long a key is only published before it signs, in seconds, by the time in its name.
        held_until: by kid, keys that sign no sooner than then, in seconds since the epoch, whatever their names say.

    Raises:
        KeysError: there is no key.
    """

    def __init__(
        self,
        keys: Iterable[SigningKey],
        *,
        publication_delay_s: float,
        held_until: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._keys = tuple(sorted(keys, key=lambda key: (key.created_at, key.kid)))
        if not self._keys:
            raise KeysError("The keys folder holds no key: make one with `lensgate keys rotate`.")
        self._publication_delay_s = publication_delay_s
        self._held_until = held_until
        self._public = {key.kid: key.public for key in self._keys}

    @classmethod
    def load(cls, keys_dir: Path, *, publication_delay_s: float) -> KeyRing:
        """Read every key of the folder. Blocks on the file system.

        Raises:
            KeysError: the folder is empty or unreadable, or one file in it is no usable key.
        """
        return cls((read_key(path) for path in key_files(keys_dir)), publication_delay_s=publication_delay_s)

    def succeeding(self, before: KeyRing, *, hold_until: float) -> KeyRing:
        """This ring in the hands of a process that has had `before` until now: what is new to it signs no sooner than `hold_until`."""
        held = {key.kid: before._held_until.get(key.kid, 0.0) if key.kid in before._public else hold_until for key in self._keys}
        return KeyRing(self._keys, publication_delay_s=self._publication_delay_s, held_until=held)

    @property
    def keys(self) -> tuple[SigningKey, ...]:
        """Every key, oldest first."""
        return self._keys

    def signing_key(self, now: float) -> SigningKey:
        """The newest key that has been published for long enough; where none has, the oldest, since most workers know that one.

        Args:
            now: seconds since the epoch.
        """
        published = [key for key in self._keys if self._signs_from(key) <= now]
        return published[-1] if published else self._keys[0]

    def _signs_from(self, key: SigningKey) -> float:
        return max(key.created_at + self._publication_delay_s, self._held_until.get(key.kid, 0.0))

    def verification_key(self, kid: str) -> VerificationKey | None:
        """The public key of exactly this name, or None: no other key is ever tried."""
        return self._public.get(kid)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The JSON Web Key Set (RFC 7517): public members only."""
        return {"keys": [dict(key.public_jwk) for key in self._keys]}


class KeySource(Protocol):
    """Whatever holds the current key ring."""

    @property
    def ring(self) -> KeyRing:
        """The keys that are valid now."""
        ...


class KeyStore:
    """Holds the current key ring and reads the folder again when its listing changes.

    A key that appears was named by another machine's clock, which may be behind ours. So it is also held back by our own: for as long as
    the other workers, which look as often as we do, need to see it too.

    Args:
        keys_dir: the folder of keys. It is read at once.
        poll_s: seconds between two looks at the folder.
        clock: seconds since the epoch.

    Raises:
        KeysError: the folder cannot be used as it is.
    """

    def __init__(self, keys_dir: Path, *, poll_s: float, clock: Callable[[], float] = time.time) -> None:
        self._keys_dir = keys_dir
        self._poll_s = poll_s
        self._clock = clock
        self._publication_delay_s = publication_delay_s(poll_s)
        self._seen: _Listing | None
        self._seen, self._ring = self._load()
        self._failure: str | None = None

    @property
    def ring(self) -> KeyRing:
        """The keys that are valid now."""
        return self._ring

    async def refresh(self) -> None:
        """Look at the folder, off the event loop, and take its keys if it has changed.

        A folder that has become unusable leaves the old keys in force; it is logged once, as `keys_reload_failed`.
        """
        try:
            loaded = await asyncio.to_thread(self._load_if_changed)
        except KeysError as error:
            if str(error) != self._failure:
                _log.error("keys_reload_failed", reason=str(error))
            self._failure = str(error)
            return
        if loaded is not None:
            self._seen, ring = loaded
            # One look less than the delay: with clocks that agree, it signs when its name says.
            self._ring = ring.succeeding(self._ring, hold_until=self._clock() + self._publication_delay_s - self._poll_s)
            _log.info("keys_reloaded", kids=[key.kid for key in self._ring.keys])
        self._failure = None

    async def run(self) -> None:
        """Refresh every `poll_s` seconds until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            await survive(self.refresh(), task="read the keys folder")

    def _load_if_changed(self) -> tuple[_Listing, KeyRing] | None:
        return None if _listing(self._keys_dir) == self._seen else self._load()

    def _load(self) -> tuple[_Listing, KeyRing]:
        # The listing comes first: a file that changes while it is read is read again at the next look.
        listing = _listing(self._keys_dir)
        return listing, KeyRing.load(self._keys_dir, publication_delay_s=self._publication_delay_s)


def _listing(keys_dir: Path) -> _Listing:
    """Name, modification time, size and inode of every key file, of the target where it is a link."""
    try:
        statuses = [(path.name, path.stat()) for path in key_files(keys_dir)]
    except OSError as error:
        raise KeysError(f"The keys folder {str(keys_dir)!r} cannot be read: {error.strerror}.") from error
    return tuple((name, status.st_mtime_ns, status.st_size, status.st_ino) for name, status in statuses)
