"""What must be refused, kept in memory: no request waits for the database to learn whether its token was taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from security.background import survive
from security.client_records import STANDARD_TIER, RegistrySnapshot
from security.errors import RegistryError, RegistryUnavailable
from security.principal import Principal

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class SnapshotSource(Protocol):
    """Whatever knows what must be refused: the client registry."""

    async def snapshot(self) -> RegistrySnapshot:
        """Ask now."""
        ...


class RevocationView:
    """The last snapshot that could be had, at most `poll_s` seconds old while the database answers.

    While it does not, the last good snapshot stays in force. Before the first one, nobody can say whether a token is good.

    Args:
        registry: asked every `poll_s` seconds.
        issuer: our own `iss`: only tokens of ours name clients of the registry.
        poll_s: the staleness of a refusal, in seconds.
        on_answer: called after every question with whether the registry is lost, for a metric.
    """

    def __init__(
        self, registry: SnapshotSource, *, issuer: str, poll_s: float, on_answer: Callable[[bool], object] = lambda _: None
    ) -> None:
        self._registry = registry
        self._issuer = issuer
        self._poll_s = poll_s
        self._on_answer = on_answer
        self._snapshot: RegistrySnapshot | None = None
        self._failing = False
        self._asking = asyncio.Lock()
        """One at a time, so that an older snapshot never replaces a newer one."""

    @property
    def informed(self) -> bool:
        """False until the first snapshot: whether a token is good cannot be told yet."""
        return self._snapshot is not None

    def is_refused(self, principal: Principal) -> str | None:
        """Why this token is refused, as a fixed word for logs, or None when it is good.

        Raises:
            RegistryUnavailable: there has been no snapshot yet. Not a refusal: that would send an honest client for another token.
        """
        if self._snapshot is None:
            raise RegistryUnavailable
        if principal.token_id in self._snapshot.revoked_tokens:
            return "revoked"
        if principal.issuer == self._issuer and principal.client_id in self._snapshot.refused_clients:
            return "disabled"
        return None

    def tier_of(self, principal: Principal) -> str:
        """The name of the client's tier: its issuer's where that is not us, else the registry's."""
        if principal.tier is not None:
            return principal.tier
        return self._registered_tier(principal.client_id)

    async def learn_tier(self, client_id: str, tier: str) -> None:
        """Ask the registry now where the last snapshot has another tier for this client: it is new, and its limits hold at once."""
        async with self._asking:
            if self._registered_tier(client_id) != tier:
                await self._ask()

    async def refresh(self) -> None:
        """Ask the registry. A failure is logged once, as `revocations_unavailable`, until the next success."""
        async with self._asking:
            await self._ask()

    async def run(self) -> None:
        """Refresh every `poll_s` seconds until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            await survive(self.refresh(), task="read what is refused")

    def _registered_tier(self, client_id: str) -> str:
        tiers = self._snapshot.tiers if self._snapshot is not None else {}
        return tiers.get(client_id, STANDARD_TIER)

    async def _ask(self) -> None:
        try:
            self._snapshot = await self._registry.snapshot()
        except RegistryError as error:
            if not self._failing:
                _log.error("revocations_unavailable", reason=str(error), cause=type(error.__cause__).__name__)
            self._failing = True
            self._on_answer(True)
            return
        if self._failing:
            _log.info("revocations_available_again")
        self._failing = False
        self._on_answer(False)
