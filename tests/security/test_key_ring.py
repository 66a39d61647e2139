from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from security.errors import KeysError
from security.key_files import key_files, read_key
from security.key_ring import KeyRing, KeyStore, publication_delay_s
from security.keys import create_key

NOW = 1_800_000_000.0
DELAY_S = 10.0


def ring_of(folder: Path) -> KeyRing:
    return KeyRing.load(folder, publication_delay_s=DELAY_S)


def test_the_only_key_signs_however_new_it_is(tmp_path: Path) -> None:
    kid = create_key(tmp_path, created_at=NOW)
    assert ring_of(tmp_path).signing_key(NOW).kid == kid


def test_a_new_key_is_only_published_until_the_delay_is_over_and_then_it_signs(tmp_path: Path) -> None:
    old = create_key(tmp_path, created_at=NOW - 1000)
    new = create_key(tmp_path, created_at=NOW)
    ring = ring_of(tmp_path)
    assert [ring.signing_key(NOW + age_s).kid for age_s in (0, DELAY_S - 1, DELAY_S)] == [old, old, new]
    assert {key["kid"] for key in ring.jwks()["keys"]} == {old, new}


def test_of_several_keys_that_are_all_new_the_oldest_signs(tmp_path: Path) -> None:
    oldest = create_key(tmp_path, created_at=NOW - 2)
    create_key(tmp_path, created_at=NOW - 1)
    assert ring_of(tmp_path).signing_key(NOW).kid == oldest


def test_a_key_dated_ahead_waits_for_its_date(tmp_path: Path) -> None:
    old = create_key(tmp_path, created_at=NOW - 1000)
    create_key(tmp_path, created_at=NOW + 3600)
    assert ring_of(tmp_path).signing_key(NOW + 1800).kid == old


def test_the_delay_is_longer_than_two_polls() -> None:
    assert publication_delay_s(2.0) > 4.0


def test_a_key_is_found_by_exactly_its_name(tmp_path: Path) -> None:
    kid = create_key(tmp_path)
    ring = ring_of(tmp_path)
    found = ring.verification_key(kid)
    assert found is not None
    assert (found.kid, found.algorithm, found.jose_key.is_public()) == (kid, "ES256", True)
    assert ring.verification_key(kid.lower()) is None


def test_the_key_set_shows_public_members_only(tmp_path: Path) -> None:
    create_key(tmp_path)
    create_key(tmp_path, algorithm="RS256")
    shown = ring_of(tmp_path).jwks()["keys"]
    assert [set(key) for key in shown] in (
        [{"kty", "crv", "x", "y", "kid", "use", "alg"}, {"kty", "n", "e", "kid", "use", "alg"}],
        [{"kty", "n", "e", "kid", "use", "alg"}, {"kty", "crv", "x", "y", "kid", "use", "alg"}],
    )


def test_what_a_caller_does_to_the_key_set_stays_with_the_caller(tmp_path: Path) -> None:
    create_key(tmp_path)
    ring = ring_of(tmp_path)
    ring.jwks()["keys"][0].clear()
    assert ring.jwks()["keys"][0]["kty"] == "EC"


def test_an_empty_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="lensgate keys rotate"):
        ring_of(tmp_path)


async def test_the_store_takes_a_new_key_at_its_next_look(key_store: KeyStore, keys_dir: Path) -> None:
    kid = create_key(keys_dir, created_at=NOW)
    with capture_logs() as events:
        await key_store.refresh()
    assert key_store.ring.verification_key(kid) is not None
    assert [event["event"] for event in events] == ["keys_reloaded"]


async def test_a_new_key_that_a_slow_clock_has_named_waits_until_every_worker_has_looked(keys_dir: Path) -> None:
    """Its name says half a minute ago, and the other workers have yet to see it: tokens signed with it would be refused by them."""
    poll_s = 2.0
    store = KeyStore(keys_dir, poll_s=poll_s, clock=lambda: NOW)
    present = store.ring.signing_key(NOW).kid
    late = create_key(keys_dir, created_at=NOW - 30)
    await store.refresh()
    held_for_s = publication_delay_s(poll_s) - poll_s
    assert [store.ring.signing_key(NOW + after_s).kid for after_s in (0, poll_s, held_for_s - 1, held_for_s)] == [present] * 3 + [late]
    assert held_for_s > poll_s


async def test_what_a_store_begins_with_signs_by_its_name_and_later_looks_hold_nothing_back_again(tmp_path: Path) -> None:
    old, present = create_key(tmp_path, created_at=NOW - 1000), create_key(tmp_path, created_at=NOW - 500)
    clock = SimpleNamespace(now=NOW)
    store = KeyStore(tmp_path, poll_s=2.0, clock=lambda: clock.now)
    assert store.ring.signing_key(NOW).kid == present
    new = create_key(tmp_path, created_at=NOW)
    await store.refresh()
    assert store.ring.signing_key(NOW).kid == present
    clock.now += 100
    (tmp_path / f"{old}.pem").unlink()
    await store.refresh()
    assert store.ring.signing_key(clock.now).kid == new


async def test_the_store_keeps_its_ring_while_nothing_changes(key_store: KeyStore) -> None:
    ring = key_store.ring
    await key_store.refresh()
    assert key_store.ring is ring


async def test_the_store_drops_a_key_whose_file_is_gone(key_store: KeyStore, keys_dir: Path) -> None:
    removed = key_files(keys_dir)[0]
    create_key(keys_dir)
    removed.unlink()
    await key_store.refresh()
    assert key_store.ring.verification_key(removed.stem) is None


async def test_the_store_notices_a_secret_that_kubernetes_swaps_behind_its_link(tmp_path: Path) -> None:
    kids = [create_key(tmp_path / version) for version in ("1", "2")]
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "..data").symlink_to(tmp_path / "1")
    (mounted / "blue.pem").symlink_to(Path("..data") / "key.pem")
    for version, kid in zip(("1", "2"), kids, strict=True):
        (tmp_path / version / f"{kid}.pem").rename(tmp_path / version / "key.pem")
        os.utime(tmp_path / version / "key.pem", (NOW, NOW))
    store = KeyStore(mounted, poll_s=1)
    (mounted / "..next").symlink_to(tmp_path / "2")
    (mounted / "..next").rename(mounted / "..data")
    await store.refresh()
    assert store.ring.jwks()["keys"][0]["x"] == read_key(tmp_path / "2" / "key.pem").public_jwk["x"]


async def test_a_bad_new_file_leaves_the_old_keys_in_force_and_is_logged_once(key_store: KeyStore, keys_dir: Path) -> None:
    ring = key_store.ring
    (keys_dir / "bad.pem").write_text("garbage")
    (keys_dir / "bad.pem").chmod(0o600)
    with capture_logs() as events:
        await key_store.refresh()
        await key_store.refresh()
    assert key_store.ring is ring
    assert [(event["event"], event["log_level"]) for event in events] == [("keys_reload_failed", "error")]
    assert "'bad.pem'" in events[0]["reason"]


async def test_the_store_recovers_once_the_bad_file_is_mended(key_store: KeyStore, keys_dir: Path) -> None:
    (keys_dir / "bad.pem").write_text("garbage")
    await key_store.refresh()
    (keys_dir / "bad.pem").unlink()
    kid = create_key(keys_dir)
    await key_store.refresh()
    assert key_store.ring.verification_key(kid) is not None


async def test_a_folder_that_vanishes_leaves_the_old_keys_in_force(key_store: KeyStore, keys_dir: Path) -> None:
    ring = key_store.ring
    keys_dir.rename(keys_dir.with_name("elsewhere"))
    await key_store.refresh()
    assert key_store.ring is ring


def test_a_dangling_link_stops_the_start(keys_dir: Path) -> None:
    (keys_dir / "gone.pem").symlink_to("nowhere")
    with pytest.raises(KeysError, match="No such file"):
        KeyStore(keys_dir, poll_s=1)


async def test_the_store_looks_again_by_itself(keys_dir: Path) -> None:
    store = KeyStore(keys_dir, poll_s=0.01)
    task = asyncio.create_task(store.run())
    kid = create_key(keys_dir)
    async with asyncio.timeout(20):
        while store.ring.verification_key(kid) is None:  # noqa: ASYNC110 - the store announces nothing
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
