"""Chooses who has to verify a token: we, or the one trusted issuer that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from security.compact_jws import unverified_issuer
from security.errors import KeysError
from security.foreign_tokens import ForeignTokenVerifier
from security.issuer_profiles import TrustedIssuer
from security.principal import Principal
from security.trusted_keys import TrustedKeys
from security.verified_tokens import RememberingVerifier


class TrustedIssuers:
    """Verifies our own access tokens and those of the trusted issuers.

    The token's own `iss` chooses, before anything is known to be true; then only that issuer's keys are asked and the verified `iss`
    must be the same. So no issuer can speak for another, whatever its keys are called. Everything that names no trusted issuer is ours
    to refuse.

    Args:
        own: verifies our own tokens.
        own_issuer: our `iss`.
        profiles: the trusted issuers.
        clock_skew_s: how far their clocks may be ahead of ours, in seconds.

    Raises:
        KeysError: a profile claims our own `iss`.
    """

    def __init__(self, own: RememberingVerifier, profiles: Iterable[TrustedIssuer], *, own_issuer: str, clock_skew_s: int) -> None:
        self._own = own
        self._keys = [(profile, TrustedKeys(profile)) for profile in profiles]
        self._foreign = {profile.issuer: ForeignTokenVerifier(profile, keys, clock_skew_s=clock_skew_s) for profile, keys in self._keys}
        if own_issuer in self._foreign:
            raise KeysError(f"TRUSTED_ISSUERS names our own issuer {own_issuer!r}: our tokens are verified by our own keys.")

    def verify(self, token: str, now: float) -> Principal:
        """Return who the token speaks for.

        Args:
            token: what stands behind `Bearer`.
            now: seconds since the epoch.

        Raises:
            InvalidToken: anything is wrong with it.
        """
        return self._verifier_of(token).verify(token, now)

    def _verifier_of(self, token: str) -> RememberingVerifier:
        if not self._foreign or self._own.remembers(token):
            return self._own
        for verifier in self._foreign.values():
            if verifier.remembers(token):
                return verifier
        return self._foreign.get(unverified_issuer(token) or "", self._own)

    async def load_files(self) -> None:
        """Read the keys of the issuers that have a `jwks_file`.

        Raises:
            KeysError: one of them cannot be used. (A provider that cannot be reached stops nothing: it may come back.)
        """
        for profile, keys in self._keys:
            if profile.jwks_file is not None and not await keys.refresh():
                raise KeysError(
                    f"The jwks_file {profile.jwks_file} of the trusted issuer {profile.name!r} cannot be used; the log says why."
                )

    async def run(self) -> None:
        """Keep all their keys fresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            for profile, keys in self._keys:
                group.create_task(keys.run(), name=f"keys of {profile.name}")
