"""What a mutation run over the token modules found that no other test asserts: see docs/proof.md."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from security.claims import audiences, scopes, seconds, text
from security.compact_jws import open_compact_jws, unverified_issuer
from security.errors import InvalidToken, KeysError
from security.key_ring import KeyRing, KeyStore, publication_delay_s
from security.keys import create_key
from security.strict_json import read_object
from security.tokens import TokenIssuer, TokenVerifier
from security.verified_tokens import validity

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
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
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
            before = len(events)
            keys_dir.rename(hidden)
            await store.refresh()
            assert [event["event"] for event in events[before:]] == ["keys_reload_failed"]
            await store.refresh()
            hidden.rename(keys_dir)
            await store.refresh()
            assert len(events) == before + 1


async def test_new_keys_are_named_in_the_log(keys_dir: Path) -> None:
    store = KeyStore(keys_dir, poll_s=0.1)
    create_key(keys_dir, created_at=NOW)
    with capture_logs() as events:
        await store.refresh()
    assert [(event["event"], event["kids"]) for event in events] == [("keys_reloaded", [key.kid for key in store.ring.keys])]
    assert len(store.ring.keys) == 2


@pytest.mark.parametrize(("value", "good"), [("", False), ("x", True), ("x" * 255, True), ("x" * 256, False)])
def test_a_claim_has_one_to_255_characters(value: str, good: bool) -> None:
    if good:
        assert text({"sub": value}, "sub") == value
    else:
        with pytest.raises(InvalidToken):
            text({"sub": value}, "sub")


@pytest.mark.parametrize(("value", "good"), [(-1, False), (0, True), (2**53 - 1, True), (2**53, False), (True, False), (1.0, False)])
def test_a_time_is_a_whole_number_that_every_reader_keeps_exact(value: object, good: bool) -> None:
    if good:
        assert seconds({"iat": value}, "iat") == value
    else:
        with pytest.raises(InvalidToken):
            seconds({"iat": value}, "iat")


def test_a_token_may_have_thirty_two_audiences_and_no_more() -> None:
    names = [f"service{number}" for number in range(33)]
    assert audiences({"aud": names[:32]}) == names[:32]
    with pytest.raises(InvalidToken):
        audiences({"aud": names})


@pytest.mark.parametrize(("lifetime_s", "good"), [(0, False), (1, True), (60, True), (61, False)])
def test_a_token_lives_for_a_second_at_least_and_no_longer_than_it_may(lifetime_s: int, good: bool) -> None:
    claims: dict[str, object] = {"iat": 1000, "exp": 1000 + lifetime_s}
    if good:
        assert validity(claims, max_lifetime_s=60) == (1000, 1000 + lifetime_s)
    else:
        with pytest.raises(InvalidToken):
            validity(claims, max_lifetime_s=60)


@pytest.mark.parametrize("issuer", [None, 5, ["https://gate.test"], {"a": 1}, True])
def test_an_unverified_issuer_that_is_no_text_is_none(issuer: object) -> None:
    """It is looked up in a table: what cannot be a key of it must not get there."""
    payload = base64.urlsafe_b64encode(json.dumps({"iss": issuer}).encode()).rstrip(b"=").decode()
    assert unverified_issuer(f"e30.{payload}.e30") is None


async def test_a_token_is_forgotten_as_soon_as_its_key_is_withdrawn(keys_dir: Path) -> None:
    store = KeyStore(keys_dir, poll_s=0.1)
    verifier = TokenVerifier(store, issuer="https://gate.test", audience="lensgate", clock_skew_s=0)
    token = TokenIssuer(store, issuer="https://gate.test", audience="lensgate", ttl_s=600).issue("client", (), NOW).token
    verifier.verify(token, NOW)
    assert verifier.remembers(token)
    [old] = keys_dir.glob("*.pem")
    create_key(keys_dir, created_at=NOW)
    old.unlink()
    await store.refresh()
    with pytest.raises(InvalidToken):
        verifier.verify(token, NOW)
    assert not verifier.remembers(token)


def test_a_new_key_waits_for_two_polls_and_a_margin() -> None:
    assert publication_delay_s(2.0) == 9.0


def test_what_is_wrong_with_the_keys_folder_is_said_to_the_operator(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"^The keys folder holds no key: make one with `lensgate keys rotate`\.$"):
        KeyRing([], publication_delay_s=0)
    with pytest.raises(KeysError, match="nowhere"):
        KeyStore(tmp_path / "nowhere", poll_s=0.1)
    (tmp_path / "dangling.pem").symlink_to(tmp_path / "nowhere.pem")
    with pytest.raises(KeysError, match=re.escape(f"The keys folder {str(tmp_path)!r} cannot be read: ")):
        KeyStore(tmp_path, poll_s=0.1)


@pytest.mark.parametrize("token", ["a.b.c", "eyJ9.a.e30", "e30=.e30.e30", "e31.e30.e30"])
def test_what_is_no_canonical_base64url_is_malformed_in_the_log(token: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        open_compact_jws(token, lambda _: None, types=frozenset({"at+jwt"}))
    assert refused.value.cause == "malformed"


def test_a_type_may_be_absent_where_the_profile_says_so_and_only_there(key_store: KeyStore) -> None:
    key = key_store.ring.signing_key(NOW)
    head = base64.urlsafe_b64encode(json.dumps({"alg": "ES256", "kid": key.kid}).encode()).rstrip(b"=")
    signature = base64.urlsafe_b64encode(key.jose_key.sign(head + b".e30")).rstrip(b"=")
    token = b".".join((head, b"e30", signature)).decode()
    claims, used = open_compact_jws(token, key_store.ring.verification_key, types=frozenset({""}))
    assert (claims, used) == ({}, key.public)
    with pytest.raises(InvalidToken) as refused:
        open_compact_jws(token, key_store.ring.verification_key, types=frozenset({"at+jwt"}))
    assert refused.value.cause == "wrong_type"
