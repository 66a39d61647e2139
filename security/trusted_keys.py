"""The keys of one trusted issuer, as its provider last published them: fetched in the background, never in a request's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from security.background import survive
from security.errors import KeySetUnusable
from security.issuer_profiles import TrustedIssuer
from security.jwks import MAX_KEY_SET_BYTES, read_key_set
from security.jwks_client import fetch_key_set
from security.key_files import VerificationKey

MAX_AGE_S: Final = 86_400.0
"""For how long the last keys that could be had are used while their provider does not answer. A key that it withdraws meanwhile stays
good for no longer than that."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class TrustedKeys:
    """The current keys of one trusted issuer. There are none until the first fetch has succeeded.

    Used from one event loop. A kid that is not known is asked for at the provider soon, at most once every `retry_s` seconds however
    many tokens name one, and never by the request that brought it.

    Args:
        profile: the issuer.
        fetch: gets the key set's bytes, or raises `KeySetUnusable`; None: from the profile's URL or file.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        profile: TrustedIssuer,
        *,
        fetch: Callable[[], Awaitable[bytes]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile = profile
        self._fetch = fetch or self._fetch_from_profile
        self._clock = clock
        self._wanted = asyncio.Event()
        self._document: bytes | None = None
        self._keys: Mapping[str, VerificationKey] = {}
        self._fetched_at_s = 0.0
        self._failure: str | None = None

    def find(self, kid: str) -> VerificationKey | None:
        """The key of exactly this name, or None while it is not known: no other key is ever tried."""
        expired = self._clock() - self._fetched_at_s > MAX_AGE_S
        key = None if expired else self._keys.get(kid)
        if key is None:
            self._wanted.set()
        return key

    async def refresh(self) -> bool:
        """Fetch the keys now; say whether that went well.

        Good keys replace the ones before, all of them: what the provider has withdrawn is refused from here on. After a failure the
        last ones stay in force, for a day at most; it is logged once, as `trusted_keys_unavailable`.
        """
        name = self._profile.name
        try:
            document = await self._fetch()
            key_set = read_key_set(document, issuer=self._profile.issuer, algorithms=self._profile.algorithms)
        except KeySetUnusable as error:
            if str(error) != self._failure:
                known = len(self._keys)
                _log.error("trusted_keys_unavailable", issuer_name=name, reason=str(error), keys_known=known, usable_for_s=MAX_AGE_S)
            self._failure = str(error)
            return False
        self._fetched_at_s = self._clock()
        if document != self._document:
            self._document, self._keys = document, key_set.keys
            say = _log.info if key_set.keys else _log.warning
            say("trusted_keys_loaded", issuer_name=name, kids=sorted(key_set.keys), skipped=list(key_set.skipped))
        elif self._failure is not None:
            _log.info("trusted_keys_available_again", issuer_name=name)
        self._failure = None
        return True

    async def run(self) -> None:
        """Refresh at once, every `refresh_s` seconds, and when a key is asked for that is not known; until cancelled."""
        while True:
            self._wanted.clear()
            fetched = await survive(self.refresh(), task=f"fetch the keys of {self._profile.name}")
            await asyncio.sleep(self._profile.retry_s)
            if fetched:
                await self._wait_until_wanted(self._profile.refresh_s - self._profile.retry_s)

    async def _wait_until_wanted(self, at_most_s: float) -> None:
        try:
            async with asyncio.timeout(at_most_s):
                await self._wanted.wait()
        except TimeoutError:
            return  # it is time for the regular look

    async def _fetch_from_profile(self) -> bytes:
        if self._profile.jwks_url is not None:
            return await fetch_key_set(self._profile.jwks_url)
        assert self._profile.jwks_file is not None
        return await asyncio.to_thread(_read_file, self._profile.jwks_file)


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():  # a named pipe would be waited for without end
            raise KeySetUnusable("jwks_file is not a file")
        with path.open("rb") as file:
            return file.read(MAX_KEY_SET_BYTES + 1)
    except OSError as error:
        raise KeySetUnusable(f"jwks_file cannot be read: {error.strerror}") from error
