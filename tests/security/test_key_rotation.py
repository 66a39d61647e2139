from __future__ import annotations

import time
from pathlib import Path

import pytest

from security.errors import KeysError
from security.key_files import MAX_KEYS, key_files
from security.key_ring import KeyRing, publication_delay_s
from security.key_rotation import KeyInfo, describe_keys, prune_keys, rotate_keys
from security.keys import create_key
from security.tokens import MAX_TOKEN_LIFETIME_S

NOW = 1_800_000_000.0
POLL_S = 2.0
SKEW_S = 30.0
DELAY_S = publication_delay_s(POLL_S)
LAST_TOKEN_S = 2 * DELAY_S + MAX_TOKEN_LIFETIME_S + SKEW_S
"""After a successor's making: when no token of the key before it can be good any more."""


def described(folder: Path, now: float = NOW) -> list[KeyInfo]:
    return describe_keys(folder, poll_s=POLL_S, clock_skew_s=SKEW_S, now=now)


def pruned(folder: Path, now: float = NOW) -> list[str]:
    return prune_keys(folder, poll_s=POLL_S, clock_skew_s=SKEW_S, now=now)


def rotated(folder: Path, sign_after_s: float = 0.0) -> str:
    return rotate_keys(folder, algorithm="ES256", sign_after_s=sign_after_s, poll_s=POLL_S)


def test_older_keys_are_retired_one_signs_and_newer_ones_are_published(tmp_path: Path) -> None:
    kids = [create_key(tmp_path, created_at=NOW - age_s) for age_s in (3000, 2000, DELAY_S, DELAY_S - 1)]
    found = described(tmp_path)
    assert [(key.kid, key.state) for key in found] == list(zip(kids, ["retired", "retired", "signing", "published"], strict=True))
    assert [key.created_at for key in found] == [NOW - 3000, NOW - 2000, NOW - DELAY_S, NOW - DELAY_S + 1]
    assert found[3].signs_from == NOW + 1
    assert found[3].last_token_gone_at is None


def test_describing_changes_nothing(tmp_path: Path) -> None:
    create_key(tmp_path, created_at=NOW)
    before = [(path.name, path.stat()) for path in tmp_path.iterdir()]
    described(tmp_path)
    assert [(path.name, path.stat()) for path in tmp_path.iterdir()] == before


def test_the_state_is_what_the_ring_does(tmp_path: Path) -> None:
    for age_s in (500, 400, 5):
        create_key(tmp_path, created_at=NOW - age_s)
    ring = KeyRing.load(tmp_path, publication_delay_s=DELAY_S)
    for after_s in (0, 3, 4, 5, 100):
        signing = [key.kid for key in described(tmp_path, NOW + after_s) if key.state == "signing"]
        assert signing == [ring.signing_key(NOW + after_s).kid]


def test_a_retired_key_is_pruned_once_its_last_token_has_expired_and_not_before(tmp_path: Path) -> None:
    old = create_key(tmp_path, created_at=NOW - 1_000_000)
    new = create_key(tmp_path, created_at=NOW)
    assert pruned(tmp_path, NOW + LAST_TOKEN_S - 1) == []
    assert pruned(tmp_path, NOW + LAST_TOKEN_S) == [old]
    assert [path.stem for path in key_files(tmp_path)] == [new]


def test_each_key_counts_from_its_own_successor(tmp_path: Path) -> None:
    first = create_key(tmp_path, created_at=NOW - 3 * LAST_TOKEN_S)
    second = create_key(tmp_path, created_at=NOW - 2 * LAST_TOKEN_S)
    third = create_key(tmp_path, created_at=NOW - 100)
    assert pruned(tmp_path) == [first]
    assert [path.stem for path in key_files(tmp_path)] == [second, third]


def test_neither_the_only_key_nor_one_that_waits_to_sign_is_ever_pruned(tmp_path: Path) -> None:
    only = create_key(tmp_path, created_at=NOW - 10 * LAST_TOKEN_S)
    waiting = create_key(tmp_path, created_at=NOW + 100)
    assert pruned(tmp_path) == []
    assert [path.stem for path in key_files(tmp_path)] == [only, waiting]


def test_a_rotation_adds_a_key_that_does_not_sign_yet(tmp_path: Path) -> None:
    old = create_key(tmp_path, created_at=time.time() - 1000)
    new = rotated(tmp_path)
    assert [(key.kid, key.state) for key in described(tmp_path, time.time())] == [(old, "signing"), (new, "published")]


@pytest.mark.parametrize(("asked_s", "expected_s"), [(0, DELAY_S), (DELAY_S, DELAY_S), (3600, 3600)])
def test_a_new_key_signs_after_the_time_asked_for_and_never_before_all_workers_know_it(
    tmp_path: Path, asked_s: float, expected_s: float
) -> None:
    create_key(tmp_path, created_at=time.time() - 1000)
    began = time.time()
    kid = rotated(tmp_path, asked_s)
    made = next(key for key in described(tmp_path, began) if key.kid == kid)
    # Names hold whole seconds.
    assert began + expected_s - 1 <= made.signs_from <= time.time() + expected_s


def test_the_first_key_of_a_missing_folder_signs_at_once(tmp_path: Path) -> None:
    kid = rotated(tmp_path / "keys")
    assert [(key.kid, key.state) for key in described(tmp_path / "keys", time.time())] == [(kid, "signing")]


def test_keys_made_in_one_second_keep_their_order(tmp_path: Path) -> None:
    kids = [rotated(tmp_path) for _ in range(6)]
    assert [key.kid for key in described(tmp_path, time.time())] == kids
    assert [key.state for key in described(tmp_path, time.time())] == ["signing", *["published"] * 5]


def test_an_urgent_key_does_not_wait_behind_one_that_was_made_for_later(tmp_path: Path) -> None:
    rotated(tmp_path)
    later = rotated(tmp_path, 3600)
    urgent = rotated(tmp_path)
    signs_from = {key.kid: key.signs_from for key in described(tmp_path, time.time())}
    assert signs_from[urgent] < signs_from[later] - 3000


def test_a_full_folder_takes_no_more_keys_because_no_worker_would_read_it(tmp_path: Path) -> None:
    for number in range(MAX_KEYS):
        (tmp_path / f"{number}.pem").touch()
    with pytest.raises(KeysError, match="keys prune"):
        rotated(tmp_path)
    assert len(list(tmp_path.iterdir())) == MAX_KEYS


def test_a_key_that_cannot_be_read_stops_the_rotation_because_no_worker_would_take_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("garbage")
    with pytest.raises(KeysError, match=r"'bad\.pem'"):
        rotated(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pem"]


@pytest.mark.parametrize("act", [described, pruned])
def test_a_missing_folder_is_not_made_and_the_message_says_what_makes_it(tmp_path: Path, act: object) -> None:
    assert callable(act)
    with pytest.raises(KeysError, match="lensgate keys rotate"):
        act(tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_cannot_be_deleted_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = create_key(tmp_path, created_at=NOW - 1_000_000)
    create_key(tmp_path, created_at=NOW - LAST_TOKEN_S)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(KeysError, match=rf"^The key '{old}' cannot be deleted from [^\n]*: Read-only file system\.$"):
        pruned(tmp_path)
