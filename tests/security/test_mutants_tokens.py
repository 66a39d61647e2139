"""What a mutation run over the token modules found that no other test asserts: see docs/proof.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from security.claims import scopes
from security.errors import InvalidToken
from security.key_ring import KeyStore
from security.keys import create_key
from security.strict_json import read_object
from security.tokens import TokenIssuer

NOW = 1_800_000_000.0


def test_a_token_may_have_sixty_four_scopes_and_no_more() -> None:
    names = [f"scope{number}" for number in range(65)]
    assert scopes({"scope": " ".join(names[:64])}) == frozenset(names[:64])
    with pytest.raises(InvalidToken):
        scopes({"scope": " ".join(names)})


def test_a_token_id_has_128_random_bits(key_store: KeyStore) -> None:
    issuer = TokenIssuer(key_store, issuer="https://gate.test", audience="lensgate", ttl_s=600)
    issued = {issuer.issue("client", (), NOW).token_id for _ in range(8)}
    assert len(issued) == 8
    assert {len(token_id) for token_id in issued} == {22}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "a number is out of range"),
        (b'{"a": 1, "a": 1}', "a name is repeated"),
        (b"[1]", "not an object"),
    ],
)
def test_what_is_wrong_with_json_is_said_for_the_log(document: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        read_object(document)


async def test_a_folder_that_fails_twice_for_one_reason_is_logged_once_and_again_after_it_was_well(keys_dir: Path) -> None:
    store = KeyStore(keys_dir, poll_s=0.1)
    hidden = keys_dir.with_name("hidden")
    with capture_logs() as events:
        for _ in range(2):
            keys_dir.rename(hidden)
            await store.refresh()
            await store.refresh()
            hidden.rename(keys_dir)
            await store.refresh()
    assert [event["event"] for event in events] == ["keys_reload_failed", "keys_reload_failed"]


async def test_new_keys_are_named_in_the_log(keys_dir: Path) -> None:
    store = KeyStore(keys_dir, poll_s=0.1)
    create_key(keys_dir, created_at=NOW)
    with capture_logs() as events:
        await store.refresh()
    assert [(event["event"], event["kids"]) for event in events] == [("keys_reloaded", [key.kid for key in store.ring.keys])]
    assert len(store.ring.keys) == 2
