"""No loop in the background ends by a failure that nobody foresaw: nobody would hear of it, and all would stay as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from security.background import survive
from security.client_records import RegistrySnapshot
from security.housekeeping import prune_regularly
from security.issuer_profiles import TrustedIssuer
from security.key_ring import KeyStore
from security.limit_storage import RateLimiter
from security.limit_windows import SharedWindows
from security.revocation import RevocationView
from security.trusted_keys import TrustedKeys
from support.limit_memory import limit_memory

Loop = Coroutine[Any, Any, None]


class Flaky:
    """What a loop asks: the first time it fails as no driver should; the second time says that there was one."""

    def __init__(self) -> None:
        self.asked = 0
        self.again = asyncio.Event()

    def ask(self) -> None:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("can't start new thread")
        self.again.set()

    async def snapshot(self) -> RegistrySnapshot:
        self.ask()
        return RegistrySnapshot(refused_clients=frozenset(), revoked_tokens=frozenset())

    async def prune(self) -> int:
        self.ask()
        return 0

    async def fetch(self) -> bytes:
        self.ask()
        return b'{"keys": []}'

    async def connect(self, timeout_s: float) -> None:
        self.ask()


def revocations(flaky: Flaky, _: KeyStore, __: pytest.MonkeyPatch) -> Loop:
    return RevocationView(flaky, issuer="https://gate.test", poll_s=0.001).run()


def pruning(flaky: Flaky, _: KeyStore, __: pytest.MonkeyPatch) -> Loop:
    return prune_regularly(flaky, every_s=0.001)


def keys(flaky: Flaky, key_store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(key_store, "_load_if_changed", flaky.ask)
    return key_store.run()


def trusted_keys(flaky: Flaky, _: KeyStore, __: pytest.MonkeyPatch) -> Loop:
    values = {"name": "idp", "issuer": "https://idp.test", "audience": "a", "jwks_url": "https://idp.test/j", "retry_s": 1}
    return TrustedKeys(TrustedIssuer.model_validate(values), fetch=flaky.fetch).run()


def limits(flaky: Flaky, _: KeyStore, monkeypatch: pytest.MonkeyPatch) -> Loop:
    with limit_memory() as file:
        rates = RateLimiter(SharedWindows(file), "redis://127.0.0.1:1")
    monkeypatch.setattr(rates, "_redis", flaky)
    rates._lost.set()
    return rates.run()


@pytest.mark.parametrize("loop", [revocations, pruning, keys, trusted_keys, limits])
async def test_a_loop_goes_on_after_what_nobody_foresaw_and_it_is_logged(
    loop: Callable[[Flaky, KeyStore, pytest.MonkeyPatch], Loop], key_store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky()
    with capture_logs() as events:
        running = asyncio.create_task(loop(flaky, key_store, monkeypatch))
        again = asyncio.create_task(flaky.again.wait())
        await asyncio.wait({running, again}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert again.done(), running
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    failed = [event for event in events if event["event"] == "background_task_failed"]
    assert [(event["log_level"], event["exc_info"]) for event in failed] == [("error", True)]


async def test_the_end_of_the_service_is_no_failure() -> None:
    with capture_logs() as events:
        turn = asyncio.create_task(survive(asyncio.sleep(60), task="sleep"))
        await asyncio.sleep(0)
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
    assert events == []
