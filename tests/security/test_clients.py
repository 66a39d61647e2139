from __future__ import annotations

import hashlib
import hmac
from types import SimpleNamespace

import pytest
from sqlalchemy import event, text

import security.clients
from security.client_records import AuthenticatedClient, Client, CreatedClient
from security.clients import MAX_OVERLAP_S, PRUNE_AFTER_S, ClientRegistry
from security.database import Database
from security.errors import RegistryError
from security.tokens import MAX_TOKEN_LIFETIME_S

NOW = 1_800_000_000


async def made(registry: ClientRegistry, name: str = "camera") -> CreatedClient:
    return await registry.create(name, ["predict", "metrics"])


async def test_a_new_client_has_a_random_id_and_a_secret_of_256_bits_that_scanners_know(registry: ClientRegistry) -> None:
    created = await registry.create("camera", ["metrics", "predict"], "gold")
    other = await made(registry, "other")
    assert created.client_id.startswith("client_")
    assert created.client_secret.startswith("lgs_")
    assert len(created.client_secret) == len("lgs_") + 43
    assert (created.name, created.scopes, created.tier) == ("camera", ("predict", "metrics"), "gold")
    assert created.client_id != other.client_id
    assert created.client_secret != other.client_secret


async def test_the_secret_is_shown_in_no_representation_and_stored_only_as_its_hash(registry: ClientRegistry, database: Database) -> None:
    created = await made(registry)
    assert created.client_secret not in repr(created)
    async with database.session() as session:
        stored = (await session.execute(text("SELECT secret_hash FROM client_secrets"))).scalars().all()
    assert stored == [hashlib.sha256(created.client_secret.encode()).hexdigest()]


async def test_a_client_is_found_by_its_id_and_by_its_name(registry: ClientRegistry) -> None:
    created = await made(registry)
    expected = Client(created.client_id, "camera", ("predict", "metrics"), "standard", NOW, None)
    assert await registry.get("camera") == await registry.get(created.client_id) == expected


async def test_all_clients_are_listed_oldest_first(registry: ClientRegistry, clock: SimpleNamespace) -> None:
    await made(registry, "b")
    clock.now += 1
    await made(registry, "a")
    assert [client.name for client in await registry.list_all()] == ["b", "a"]


async def test_a_name_is_taken_once(registry: ClientRegistry) -> None:
    await made(registry)
    with pytest.raises(RegistryError, match=r"^There is a client called 'camera' already\.$"):
        await made(registry)
    assert len(await registry.list_all()) == 1


@pytest.mark.parametrize("name", ["", "a" * 65, " a", "a ", "a\nb", "a\x00", "\x1b[31m", "\ud800", "client_a"])
async def test_a_name_that_nobody_could_read_or_type_is_refused(registry: ClientRegistry, name: str) -> None:
    with pytest.raises(RegistryError, match="A client's name"):
        await made(registry, name)


@pytest.mark.parametrize("scopes", [[], ["admin"], ["predict", "admin"], ["predict metrics"], [""]])
async def test_a_scope_that_does_not_exist_is_refused(registry: ClientRegistry, scopes: list[str]) -> None:
    with pytest.raises(RegistryError, match="predict, metrics, introspect"):
        await registry.create("camera", scopes)


@pytest.mark.parametrize("tier", ["", "Gold", "a b", "a" * 33])
async def test_a_tier_is_named_plainly(registry: ClientRegistry, tier: str) -> None:
    with pytest.raises(RegistryError, match="tier"):
        await registry.create("camera", ["predict"], tier)


async def test_there_is_a_most_of_clients(registry: ClientRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security.clients, "MAX_CLIENTS", 1)
    await made(registry)
    with pytest.raises(RegistryError, match="There are 1 clients already"):
        await made(registry, "other")


@pytest.mark.parametrize("unknown", ["nobody", "client_nobody", "", "a" * 200, "a\x00b", "\ud800"])
async def test_an_unknown_client_is_one_clear_line_for_every_command(registry: ClientRegistry, unknown: str) -> None:
    for command in (registry.get, registry.disable, registry.enable, registry.delete):
        with pytest.raises(RegistryError, match=r"^There is no such client: `lensgate clients list` shows them all\.$"):
            await command(unknown)
    with pytest.raises(RegistryError, match="no such client"):
        await registry.rotate_secret(unknown, overlap_s=0)
    with pytest.raises(RegistryError, match="no such client"):
        await registry.set_tier(unknown, "standard")


async def test_a_tier_can_be_changed_and_is_known_at_the_next_look(registry: ClientRegistry) -> None:
    created = await made(registry)
    assert (await registry.set_tier("camera", "gold")).tier == "gold"
    assert (await registry.snapshot()).tiers == {created.client_id: "gold"}
    await registry.set_tier(created.client_id, "standard")
    assert (await registry.snapshot()).tiers == {}
    with pytest.raises(RegistryError, match="A tier's name"):
        await registry.set_tier("camera", "Gold!")


async def test_a_client_with_its_secret_is_authenticated(registry: ClientRegistry) -> None:
    created = await made(registry)
    authenticated = await registry.authenticate(created.client_id, created.client_secret)
    assert authenticated == AuthenticatedClient(created.client_id, ("predict", "metrics"), "standard")


async def test_nobody_else_is_authenticated(registry: ClientRegistry) -> None:
    created, other = await made(registry), await made(registry, "other")
    for client_id, secret in [
        (created.client_id, other.client_secret),
        (created.client_id, created.client_secret.upper()),
        (created.client_id, created.client_secret + " "),
        (created.client_id, hashlib.sha256(created.client_secret.encode()).hexdigest()),
        (created.client_id, ""),
        (created.client_id, " " * 64),
        (created.client_id, "\ud800\x00"),
        (created.name, created.client_secret),
        ("client_nobody", created.client_secret),
        ("", ""),
        ("a\x00b", "x"),
        ("\ud800", "x"),
        ("a" * 100_000, "x"),
    ]:
        assert await registry.authenticate(client_id, secret) is None


async def test_35_every_refusal_and_every_success_take_the_same_queries_and_the_same_hashes(
    registry: ClientRegistry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    created, disabled = await made(registry), await made(registry, "disabled")
    await registry.disable("disabled")
    work: list[str] = []
    event.listen(database._engine.sync_engine, "before_cursor_execute", lambda *arguments: work.append(arguments[2]))
    real_hash, real_compare = security.clients._hash, hmac.compare_digest

    def counted_hash(secret: str) -> str:
        work.append("hash")
        return real_hash(secret)

    def counted_compare(left: str, right: str) -> bool:
        assert len(left) == len(right)
        work.append("compare")
        return real_compare(left, right)

    monkeypatch.setattr(security.clients, "_hash", counted_hash)
    monkeypatch.setattr("security.clients.hmac.compare_digest", counted_compare)
    work_of = {}
    for case, client_id, secret in [
        ("good", created.client_id, created.client_secret),
        ("wrong secret", created.client_id, "lgs_wrong"),
        ("unknown", "client_nobody", "lgs_wrong"),
        ("malformed", "\x00", "lgs_wrong"),
        ("disabled", disabled.client_id, disabled.client_secret),
    ]:
        work.clear()
        await registry.authenticate(client_id, secret)
        work_of[case] = list(work)
    assert work_of["good"].count("hash") == 1
    assert work_of["good"].count("compare") == 2
    assert all(done == work_of["good"] for done in work_of.values())


async def test_a_disabled_client_is_not_authenticated_until_it_is_enabled(registry: ClientRegistry, clock: SimpleNamespace) -> None:
    created = await made(registry)
    assert (await registry.disable("camera")).disabled_at == NOW
    clock.now += 60
    assert (await registry.disable("camera")).disabled_at == NOW
    assert await registry.authenticate(created.client_id, created.client_secret) is None
    assert (await registry.snapshot()).refused_clients == {created.client_id}
    assert (await registry.enable("camera")).disabled_at is None
    assert await registry.authenticate(created.client_id, created.client_secret) is not None
    assert (await registry.snapshot()).refused_clients == frozenset()


async def test_a_deleted_client_is_gone_and_refused_for_as_long_as_a_token_of_it_can_live(
    registry: ClientRegistry, database: Database, clock: SimpleNamespace
) -> None:
    created = await made(registry)
    assert (await registry.delete("camera")).client_id == created.client_id
    assert await registry.list_all() == []
    assert await registry.authenticate(created.client_id, created.client_secret) is None
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM client_secrets")) == 0
    clock.now += MAX_TOKEN_LIFETIME_S - 1
    assert (await registry.snapshot()).refused_clients == {created.client_id}
    clock.now += 1
    assert (await registry.snapshot()).refused_clients == frozenset()


async def test_the_name_of_a_deleted_client_is_free_again(registry: ClientRegistry) -> None:
    first = await made(registry)
    await registry.delete("camera")
    assert (await made(registry)).client_id != first.client_id


async def test_during_the_overlap_both_secrets_work_and_afterwards_the_new_one_only(
    registry: ClientRegistry, clock: SimpleNamespace
) -> None:
    old = await made(registry)
    new = await registry.rotate_secret("camera", overlap_s=60)
    assert (new.client_id, new.name, new.scopes, new.tier) == (old.client_id, old.name, old.scopes, old.tier)
    clock.now += 59
    assert await registry.authenticate(old.client_id, old.client_secret) is not None
    assert await registry.authenticate(old.client_id, new.client_secret) is not None
    clock.now += 1
    assert await registry.authenticate(old.client_id, old.client_secret) is None
    assert await registry.authenticate(old.client_id, new.client_secret) is not None


async def test_without_an_overlap_the_old_secret_ends_at_once(registry: ClientRegistry) -> None:
    old = await made(registry)
    await registry.rotate_secret("camera", overlap_s=0)
    assert await registry.authenticate(old.client_id, old.client_secret) is None


async def test_no_more_than_two_secrets_live(registry: ClientRegistry) -> None:
    secrets = [(await made(registry)).client_secret]
    secrets += [(await registry.rotate_secret("camera", overlap_s=60)).client_secret for _ in range(2)]
    client_id = (await registry.get("camera")).client_id
    alive = [await registry.authenticate(client_id, secret) is not None for secret in secrets]
    assert alive == [False, True, True]


async def test_rotating_one_client_leaves_the_others_alone(registry: ClientRegistry) -> None:
    other = await made(registry, "other")
    await made(registry)
    await registry.rotate_secret("camera", overlap_s=0)
    assert await registry.authenticate(other.client_id, other.client_secret) is not None


@pytest.mark.parametrize("overlap_s", [-1, MAX_OVERLAP_S + 1])
async def test_an_overlap_out_of_bounds_is_refused(registry: ClientRegistry, overlap_s: int) -> None:
    with pytest.raises(RegistryError, match="overlap"):
        await registry.rotate_secret("camera", overlap_s=overlap_s)


async def test_a_revoked_token_is_in_the_snapshot_until_it_expires(registry: ClientRegistry, clock: SimpleNamespace) -> None:
    await registry.revoke("token-1", "client_a", NOW + 60)
    await registry.revoke("token-1", "client_a", NOW + 60)
    assert (await registry.snapshot()).revoked_tokens == {"token-1"}
    clock.now += 60
    assert (await registry.snapshot()).revoked_tokens == frozenset()


async def test_two_that_revoke_one_token_at_once_both_succeed(registry: ClientRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unseen(*_: object) -> None:
        """What a replica sees that looks before the other one has written."""

    await registry.revoke("token-1", "client_a", NOW + 60)
    monkeypatch.setattr("sqlalchemy.ext.asyncio.AsyncSession.get", unseen)
    await registry.revoke("token-1", "client_a", NOW + 60)
    assert (await registry.snapshot()).revoked_tokens == {"token-1"}


@pytest.mark.parametrize("jti", ["", "a" * 256, "a\x00", "a\n"])
async def test_what_cannot_be_a_token_id_is_refused(registry: ClientRegistry, jti: str) -> None:
    with pytest.raises(RegistryError, match="token id"):
        await registry.revoke(jti, "client_a", NOW + 60)


async def test_one_client_cannot_fill_the_memory_with_revocations_nor_keep_others_from_theirs(
    registry: ClientRegistry, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security.clients, "MAX_REVOKED_PER_CLIENT", 2)
    await registry.revoke("1", "client_a", NOW + 60)
    await registry.revoke("2", "client_a", NOW + 60)
    with pytest.raises(RegistryError, match="disable the client"):
        await registry.revoke("3", "client_a", NOW + 60)
    await registry.revoke("4", "client_b", NOW + 60)
    clock.now += 60
    await registry.revoke("5", "client_a", NOW + 600)
    assert (await registry.snapshot()).revoked_tokens == {"5"}


async def test_pruning_forgets_what_has_expired_and_nothing_else(registry: ClientRegistry, clock: SimpleNamespace) -> None:
    created = await made(registry)
    await made(registry, "gone")
    await registry.delete("gone")
    new = await registry.rotate_secret("camera", overlap_s=60)
    await registry.revoke("short", "client_a", NOW + 60)
    await registry.revoke("long", "client_a", NOW + 10 * MAX_TOKEN_LIFETIME_S)
    clock.now += MAX_TOKEN_LIFETIME_S + PRUNE_AFTER_S - 1
    assert await registry.prune() == 2
    clock.now += 1
    assert await registry.prune() == 1
    assert (await registry.snapshot()).revoked_tokens == {"long"}
    assert await registry.authenticate(created.client_id, new.client_secret) is not None


async def test_what_expires_while_the_clock_is_ahead_is_refused_again_once_it_is_right(
    registry: ClientRegistry, clock: SimpleNamespace
) -> None:
    await registry.revoke("taken back", "client_a", NOW + 60)
    clock.now += 3600
    await registry.prune()
    assert (await registry.snapshot()).revoked_tokens == frozenset()
    clock.now -= 3600
    assert (await registry.snapshot()).revoked_tokens == {"taken back"}
