"""When the keys of a trusted issuer are fetched, and for how long they are good."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from security.errors import KeySetUnusable
from security.issuer_profiles import TrustedIssuer
from security.key_files import describe_key
from security.trusted_keys import MAX_AGE_S, TrustedKeys


def document(*kids: str) -> bytes:
    entries = [{**describe_key(kid, ec.generate_private_key(ec.SECP256R1()))[1], "kid": kid} for kid in kids]
    return json.dumps({"keys": entries}).encode()


class Provider:
    """What `fetch` gets next, and how often it was asked."""

    def __init__(self, answer: bytes | str) -> None:
        self.answer = answer
        self.asked = 0
        self.event = asyncio.Event()

    async def fetch(self) -> bytes:
        self.asked += 1
        self.event.set()
        if isinstance(self.answer, str):
            raise KeySetUnusable(self.answer)
        return self.answer

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.asked < count:
                self.event.clear()
                await self.event.wait()


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now_s=1000.0)


def keys_from(provider: Provider | None, clock: SimpleNamespace, **changes: object) -> TrustedKeys:
    base = {"name": "idp", "issuer": "https://idp.test", "audience": "a", "jwks_url": "https://idp.test/j", "algorithms": ["ES256"]}
    profile = TrustedIssuer.model_validate({**base, **changes})
    return TrustedKeys(profile, fetch=provider.fetch if provider else None, clock=lambda: clock.now_s)


async def test_nothing_is_known_before_the_first_fetch(clock: SimpleNamespace) -> None:
    keys = keys_from(Provider(document("a")), clock)
    assert keys.find("a") is None
    assert await keys.refresh()
    assert keys.find("a") is not None
    assert keys.find("b") is None


async def test_keys_that_stay_the_same_stay_the_same_objects(clock: SimpleNamespace) -> None:
    """So that tokens which were verified with them need not be verified again every few minutes."""
    keys = keys_from(Provider(document("a")), clock)
    await keys.refresh()
    first = keys.find("a")
    await keys.refresh()
    assert keys.find("a") is first


async def test_a_withdrawn_key_is_gone_with_the_next_fetch(clock: SimpleNamespace) -> None:
    provider = Provider(document("a"))
    keys = keys_from(provider, clock)
    await keys.refresh()
    provider.answer = document("b")
    await keys.refresh()
    assert keys.find("a") is None
    assert keys.find("b") is not None


async def test_a_provider_that_withdraws_everything_is_believed(clock: SimpleNamespace) -> None:
    provider = Provider(document("a"))
    keys = keys_from(provider, clock)
    await keys.refresh()
    provider.answer = document()
    with capture_logs() as log:
        assert await keys.refresh()
    assert keys.find("a") is None
    assert [(line["event"], line["log_level"]) for line in log] == [("trusted_keys_loaded", "warning")]


@pytest.mark.parametrize("answer", ["it hangs", b"garbage", b'{"keys": [{"kid": "a", "k": "AQAB"}]}'])
async def test_the_last_good_keys_are_used_for_a_day_while_the_provider_fails(clock: SimpleNamespace, answer: bytes | str) -> None:
    provider = Provider(document("a"))
    keys = keys_from(provider, clock)
    await keys.refresh()
    provider.answer = answer
    clock.now_s += MAX_AGE_S
    assert not await keys.refresh()
    assert keys.find("a") is not None
    clock.now_s += 1
    assert keys.find("a") is None
    provider.answer = document("a")
    assert await keys.refresh()
    assert keys.find("a") is not None


async def test_a_failure_is_logged_once_and_so_is_its_end(clock: SimpleNamespace) -> None:
    good = document("a")
    provider = Provider(good)
    keys = keys_from(provider, clock)
    with capture_logs() as log:
        for answer in (good, "it is down", "it is down", "it is broken", good, good):
            provider.answer = answer
            await keys.refresh()
    assert [(line["event"], line.get("reason")) for line in log] == [
        ("trusted_keys_loaded", None),
        ("trusted_keys_unavailable", "it is down"),
        ("trusted_keys_unavailable", "it is broken"),
        ("trusted_keys_available_again", None),
    ]


async def test_an_unknown_key_is_asked_for_in_the_background_and_a_flood_of_them_once(clock: SimpleNamespace) -> None:
    provider = Provider(document("a"))
    keys = keys_from(provider, clock, retry_s=1, refresh_s=3600)
    running = asyncio.create_task(keys.run())
    try:
        await provider.wait_for(1)
        await asyncio.sleep(0)
        provider.answer = document("a", "b")
        for number in range(1000):
            assert keys.find(f"stranger {number}") is None
        assert provider.asked == 1
        await provider.wait_for(2)
        await asyncio.sleep(0)
        assert keys.find("b") is not None
        assert keys.find("a") is not None
        assert provider.asked == 2
    finally:
        running.cancel()


async def test_without_any_question_the_keys_are_fetched_again(clock: SimpleNamespace) -> None:
    provider = Provider(document("a"))
    running = asyncio.create_task(keys_from(provider, clock, retry_s=1, refresh_s=1).run())
    try:
        await provider.wait_for(2)
    finally:
        running.cancel()


async def test_a_provider_that_is_down_is_asked_again_without_being_asked_for(clock: SimpleNamespace) -> None:
    provider = Provider("down")
    keys = keys_from(provider, clock, retry_s=1, refresh_s=3600)
    running = asyncio.create_task(keys.run())
    try:
        await provider.wait_for(1)
        provider.answer = document("a")
        await provider.wait_for(2)
        await asyncio.sleep(0)
        assert keys.find("a") is not None
    finally:
        running.cancel()


async def test_a_file_is_read_again_when_it_has_changed(clock: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys = keys_from(None, clock, jwks_file=str(file), jwks_url=None)
    assert not await keys.refresh()
    file.write_bytes(document("a"))
    assert await keys.refresh()
    file.write_bytes(document("b"))
    assert await keys.refresh()
    assert keys.find("b") is not None


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "huge", "unreadable"])
async def test_a_file_that_cannot_be_used_is_said_so_and_never_waited_for(clock: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "keys.json"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "huge":
        file.write_bytes(document("a").ljust(64 * 1024 + 1))
    elif kind == "unreadable":
        file = tmp_path / ("a" * 300)
    keys = keys_from(None, clock, jwks_file=str(file), jwks_url=None)
    with capture_logs() as log:
        assert not await keys.refresh()
    assert log[0]["event"] == "trusted_keys_unavailable"


async def test_the_log_shows_nothing_that_was_received(clock: SimpleNamespace) -> None:
    keys = keys_from(Provider(b'{"keys": [{"kid": "k", "kty": "oct", "k": "hunter2"}]}'), clock)
    with capture_logs() as log:
        await keys.refresh()
    assert log
    assert "hunter2" not in str(log)
