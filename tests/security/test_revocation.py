from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from security.client_records import RegistrySnapshot
from security.clients import ClientRegistry
from security.database import Database
from security.errors import RegistryUnavailable
from security.principal import Principal
from security.revocation import RevocationView

ISSUER = "https://gate.test"


def principal(client_id: str = "client_a", token_id: str = "token-1", issuer: str = ISSUER) -> Principal:
    return Principal(client_id=client_id, scopes=frozenset(), issuer=issuer, token_id=token_id, expires_at=2_000_000_000)


def view_of(registry: ClientRegistry) -> RevocationView:
    return RevocationView(registry, issuer=ISSUER, poll_s=0.01)


async def test_a_good_token_is_not_refused(registry: ClientRegistry) -> None:
    view = view_of(registry)
    await view.refresh()
    assert view.is_refused(principal()) is None


async def test_before_the_first_snapshot_no_token_is_taken_and_none_is_called_bad(registry: ClientRegistry) -> None:
    view = view_of(registry)
    with pytest.raises(RegistryUnavailable):
        view.is_refused(principal())
    await view.refresh()
    assert view.is_refused(principal()) is None


async def test_25_a_client_disabled_after_the_issue_is_refused_at_the_next_look(registry: ClientRegistry) -> None:
    created = await registry.create("camera", ["predict"])
    view = view_of(registry)
    await view.refresh()
    assert view.is_refused(principal(created.client_id)) is None
    await registry.disable("camera")
    await view.refresh()
    assert view.is_refused(principal(created.client_id)) == "disabled"


async def test_a_deleted_client_is_refused_at_the_next_look(registry: ClientRegistry) -> None:
    created = await registry.create("camera", ["predict"])
    await registry.delete("camera")
    view = view_of(registry)
    await view.refresh()
    assert view.is_refused(principal(created.client_id)) == "disabled"


async def test_a_client_made_since_the_last_look_is_served_at_once(registry: ClientRegistry) -> None:
    view = view_of(registry)
    await view.refresh()
    created = await registry.create("camera", ["predict"])
    assert view.is_refused(principal(created.client_id)) is None


async def test_a_new_clients_tier_is_known_when_it_has_its_first_token(registry: ClientRegistry) -> None:
    view = view_of(registry)
    await view.refresh()
    created = await registry.create("camera", ["predict"], tier="few")
    assert view.tier_of(principal(created.client_id)) == "standard"
    await view.learn_tier(created.client_id, created.tier)
    assert view.tier_of(principal(created.client_id)) == "few"


async def test_an_older_snapshot_never_replaces_a_newer_one() -> None:
    answers: list[asyncio.Future[RegistrySnapshot]] = []

    class SlowRegistry:
        async def snapshot(self) -> RegistrySnapshot:
            answers.append(asyncio.get_running_loop().create_future())
            asked.set()
            return await answers[-1]

    def snapshot(**tiers: str) -> RegistrySnapshot:
        return RegistrySnapshot(refused_clients=frozenset(), revoked_tokens=frozenset(), tiers=tiers)

    asked = asyncio.Event()
    view = RevocationView(SlowRegistry(), issuer=ISSUER, poll_s=60)
    poll, first, second = (
        asyncio.create_task(task) for task in (view.refresh(), view.learn_tier("new", "few"), view.learn_tier("new", "few"))
    )
    await asked.wait()
    asked.clear()
    answers[0].set_result(snapshot())  # asked before the client was made
    await asked.wait()
    answers[1].set_result(snapshot(new="few"))
    async with asyncio.timeout(20):
        await asyncio.gather(poll, first, second)
    assert view.tier_of(principal("new")) == "few"
    assert len(answers) == 2  # who learns what is known by now does not ask


async def test_a_revoked_token_is_refused_and_its_sisters_are_not(registry: ClientRegistry) -> None:
    await registry.revoke("token-1", "client_a", 2_000_000_000)
    view = view_of(registry)
    await view.refresh()
    assert view.is_refused(principal()) == "revoked"
    assert view.is_refused(principal(token_id="token-2")) is None


async def test_a_foreign_issuers_client_of_the_same_id_is_another_client(registry: ClientRegistry) -> None:
    created = await registry.create("camera", ["predict"])
    await registry.disable("camera")
    view = view_of(registry)
    await view.refresh()
    assert view.is_refused(principal(created.client_id, issuer="https://other.test")) is None


async def test_when_the_database_is_gone_the_last_snapshot_stays_and_the_loss_is_logged_once(tmp_path: Path) -> None:
    file = tmp_path / "lensgate.db"
    database = Database(f"sqlite+aiosqlite:///{file}")
    await database.upgrade()
    registry = ClientRegistry(database)
    await registry.revoke("token-1", "client_a", 2_000_000_000)
    view = view_of(registry)
    await view.refresh()
    await database.aclose()
    away = tmp_path / "away"
    away.mkdir()
    for part in tmp_path.glob("lensgate.db*"):
        part.rename(away / part.name)
    with capture_logs() as events:
        await view.refresh()
        await view.refresh()
        assert view.is_refused(principal()) == "revoked"
        await database.aclose()
        for part in away.iterdir():
            part.replace(tmp_path / part.name)
        await view.refresh()
    await database.aclose()
    assert [event["event"] for event in events] == ["revocations_unavailable", "revocations_available_again"]


async def test_the_view_looks_again_by_itself_and_outlives_a_failure() -> None:
    looked_thrice = asyncio.Event()
    looks = 0

    class FlakyRegistry:
        async def snapshot(self) -> RegistrySnapshot:
            nonlocal looks
            looks += 1
            if looks == 2:
                raise RegistryUnavailable
            if looks == 3:
                looked_thrice.set()
            return RegistrySnapshot(refused_clients=frozenset(), revoked_tokens=frozenset({f"token-{looks}"}))

    view = RevocationView(FlakyRegistry(), issuer=ISSUER, poll_s=0.001)
    task = asyncio.create_task(view.run())
    async with asyncio.timeout(20):
        await looked_thrice.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert looks >= 3
