"""Everything here has a good signature or none at all: the wrapper must refuse by shape, before and beside python-jose."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import string
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from security.compact_jws import open_compact_jws
from security.errors import InvalidToken
from security.key_files import SigningKey, VerificationKey
from security.key_ring import KeyStore
from security.keys import create_key

NOW = 1_800_000_000.0
TYPES = frozenset({"at+jwt"})
CLAIMS = {"sub": "somebody"}


def b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def signed(key: SigningKey, header: bytes | dict[str, Any], payload: bytes | dict[str, Any] = b"{}") -> str:
    """A token that our own key signs, whatever stands in it: what python-jose's own functions would never make."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signing_input = ".".join(b64(part) for part in parts)
    return f"{signing_input}.{b64(key.jose_key.sign(signing_input.encode()))}"


def signing_key(store: KeyStore) -> SigningKey:
    return store.ring.signing_key(NOW)


def header_for(store: KeyStore, **changes: object) -> dict[str, Any]:
    return {"alg": "ES256", "typ": "at+jwt", "kid": signing_key(store).kid, **changes}


def opened(token: str, store: KeyStore) -> dict[str, object]:
    return open_compact_jws(token, store.ring.verification_key, types=TYPES)[0]


def cause_of(token: str, store: KeyStore) -> str:
    with pytest.raises(InvalidToken) as refused:
        opened(token, store)
    assert str(refused.value) == "The access token is not valid."
    return refused.value.cause


@pytest.mark.parametrize("header", [{}, {"cty": "json"}, {"typ": "AT+JWT"}])
def test_a_good_token_gives_its_claims_and_its_key(key_store: KeyStore, header: dict[str, str]) -> None:
    token = signed(signing_key(key_store), header_for(key_store, **header), CLAIMS)
    claims, key = open_compact_jws(token, key_store.ring.verification_key, types=TYPES)
    assert (claims, key) == (CLAIMS, signing_key(key_store).public)


def test_an_rsa_key_verifies_too(tmp_path: Path) -> None:
    create_key(tmp_path, algorithm="RS256")
    store = KeyStore(tmp_path, poll_s=1)
    assert opened(signed(signing_key(store), header_for(store, alg="RS256"), CLAIMS), store) == CLAIMS
    other = signed(signing_key(store), header_for(store, alg="RS256"), {"sub": "other"}).rpartition(".")[2]
    forged = signed(signing_key(store), header_for(store, alg="RS256"), CLAIMS).rpartition(".")[0] + "." + other
    assert cause_of(forged, store) == "bad_signature"


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b", "a.b.c.d", ".b.c", "a..c", "a.b.", "a.b.c=", "a.b.c\n", "a+.b.c", "à.b.c", " a.b.c", "a.b.c\x00"]
)
def test_anything_but_three_base64url_segments_is_malformed(key_store: KeyStore, token: str) -> None:
    assert cause_of(token, key_store) == "malformed"


def test_08_a_token_over_4_kib_is_refused_and_one_of_exactly_4_kib_is_read(key_store: KeyStore) -> None:
    key, header = signing_key(key_store), header_for(key_store)
    # Unpadded base64 skips the lengths that are 1 modulo 4, so the header's length is varied too.
    tokens = [
        signed(key, {**header, "cty": "x" * filler}, b'{"a":"' + b"x" * size + b'"}') for filler in range(3) for size in range(2830, 2960)
    ]
    at_limit = [token for token in tokens if len(token) == 4096]
    over = [token for token in tokens if len(token) == 4097]
    assert at_limit
    assert over
    assert "a" in opened(at_limit[0], key_store)
    assert cause_of(over[0], key_store) == "too_long"


def test_08_a_header_over_512_bytes_is_refused_and_one_of_exactly_512_is_read(key_store: KeyStore) -> None:
    key, room = signing_key(key_store), 512 - len(json.dumps(header_for(key_store, cty="")))
    assert opened(signed(key, header_for(key_store, cty="x" * room)), key_store) == {}
    assert cause_of(signed(key, header_for(key_store, cty="x" * (room + 1))), key_store) == "header_too_long"


def test_05_alg_none_is_refused_with_and_without_a_signature(key_store: KeyStore) -> None:
    for alg in ("none", "None", "NONE", ""):
        token = signed(signing_key(key_store), header_for(key_store, alg=alg))
        assert cause_of(token, key_store) == "wrong_algorithm"
        assert cause_of(token.rpartition(".")[0] + ".", key_store) == "malformed"


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_06_hs256_with_our_public_key_as_the_secret_is_refused(key_store: KeyStore, encoding: Encoding) -> None:
    key = signing_key(key_store)
    secret = key.public.jose_key.prepared_key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    for hmac_key in (secret, secret.strip(), b""):
        signing_input = signed(key, header_for(key_store, alg="HS256"), CLAIMS).rpartition(".")[0]
        forged = f"{signing_input}.{b64(hmac.digest(hmac_key, signing_input.encode(), hashlib.sha256))}"
        assert cause_of(forged, key_store) == "wrong_algorithm"


@pytest.mark.parametrize("alg", ["ES384", "RS256", "HS256", "es256", "ES256 "])
def test_the_key_fixes_the_algorithm(key_store: KeyStore, alg: str) -> None:
    assert cause_of(signed(signing_key(key_store), header_for(key_store, alg=alg)), key_store) == "wrong_algorithm"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"cty":['])
def test_07_a_header_nested_1200_deep_is_refused_before_it_is_descended_into(key_store: KeyStore, opening: bytes) -> None:
    assert cause_of(f"{b64(opening * 1200)}.e30.AAAA", key_store) in {"header_too_long", "too_long"}
    assert cause_of(f"{b64(opening * 60)}.e30.AAAA", key_store) == "header_not_flat"


@pytest.mark.parametrize("name", ["crit", "jwk", "jku", "x5u", "x5c", "b64", "enc", "zip", "ALG"])
def test_09_and_10_a_header_that_asks_for_more_is_refused(key_store: KeyStore, name: str) -> None:
    token = signed(signing_key(key_store), header_for(key_store, **{name: "http://attacker.test/keys"}))
    assert cause_of(token, key_store) == "header_not_allowed"


@pytest.mark.parametrize("value", [None, 1, True, 1.5])
@pytest.mark.parametrize("name", ["alg", "typ", "kid", "cty"])
def test_a_header_member_that_is_no_string_is_refused(key_store: KeyStore, name: str, value: object) -> None:
    assert cause_of(signed(signing_key(key_store), header_for(key_store, **{name: value})), key_store) == "header_not_allowed"


def test_10_a_key_inside_the_header_is_refused(key_store: KeyStore) -> None:
    key = signing_key(key_store)
    assert cause_of(signed(key, header_for(key_store, jwk=key.public_jwk)), key_store) == "header_not_flat"


def test_11_an_unknown_kid_is_refused_though_a_known_key_signed(key_store: KeyStore) -> None:
    assert cause_of(signed(signing_key(key_store), header_for(key_store, kid="another")), key_store) == "unknown_key"


def test_11_another_known_key_is_never_tried(key_store: KeyStore, keys_dir: Path) -> None:
    create_key(keys_dir, created_at=NOW)
    ring = KeyStore(keys_dir, poll_s=1).ring
    old, new = ring.keys
    token = signed(old, {"alg": "ES256", "typ": "at+jwt", "kid": new.kid})
    with pytest.raises(InvalidToken) as refused:
        open_compact_jws(token, ring.verification_key, types=TYPES)
    assert refused.value.cause == "bad_signature"


@pytest.mark.parametrize(
    ("kid", "cause"),
    [
        (["a"], "header_not_flat"),
        ({"a": "b"}, "header_not_flat"),
        ("../../etc/passwd", "header_incomplete"),
        ("", "header_incomplete"),
        ("a" * 65, "header_incomplete"),
        ("a\n", "header_incomplete"),
    ],
)
def test_12_a_kid_that_is_no_name_is_refused(key_store: KeyStore, kid: object, cause: str) -> None:
    assert cause_of(signed(signing_key(key_store), header_for(key_store, kid=kid)), key_store) == cause


@pytest.mark.parametrize("missing", ["alg", "kid"])
def test_a_header_without_alg_or_kid_is_refused(key_store: KeyStore, missing: str) -> None:
    header = header_for(key_store)
    del header[missing]
    assert cause_of(signed(signing_key(key_store), header), key_store) == "header_incomplete"


@pytest.mark.parametrize("typ", ["JWT", "", "dpop+jwt", "logout+jwt", "at+jwt "])
def test_18_another_kind_of_token_is_refused(key_store: KeyStore, typ: str) -> None:
    assert cause_of(signed(signing_key(key_store), header_for(key_store, typ=typ)), key_store) == "wrong_type"


def test_18_a_token_of_no_stated_kind_is_refused(key_store: KeyStore) -> None:
    key = signing_key(key_store)
    assert cause_of(signed(key, {"alg": "ES256", "kid": key.kid}), key_store) == "wrong_type"


@pytest.mark.parametrize(
    "header",
    [b"{", b"null", b'"{"', b'{"alg":"ES256","alg":"none"}', b"{\xff}", b'\xef\xbb\xbf{"alg":"ES256"}', b'{"alg":NaN}', b'{"alg":1e400}'],
)
def test_a_header_that_is_no_strict_json_object_is_refused(key_store: KeyStore, header: bytes) -> None:
    assert cause_of(signed(signing_key(key_store), header), key_store) in {"malformed", "header_not_flat"}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff",
        b'{"exp":NaN}',
        b'{"exp":Infinity}',
        b'{"exp":1e400}',
        b'{"exp":-1e400}',
        b'{"sub":"a","sub":"b"}',
        b'{"a":{"sub":"a","sub":"b"}}',
        b'{"a":' * 400 + b"1" + b"}" * 399,
    ],
)
def test_15_signed_claims_that_are_no_strict_json_object_are_refused(key_store: KeyStore, payload: bytes) -> None:
    token = signed(signing_key(key_store), header_for(key_store), payload)
    assert cause_of(token, key_store) == "malformed"


def test_signed_claims_nested_too_deep_for_python_are_refused(key_store: KeyStore) -> None:
    token = signed(signing_key(key_store), header_for(key_store), b'{"a":' + b"[" * 2700)
    assert cause_of(token, key_store) == "malformed"


def test_finite_numbers_keep_their_value(key_store: KeyStore) -> None:
    assert opened(signed(signing_key(key_store), header_for(key_store), b'{"a":1.5,"b":2}'), key_store) == {"a": 1.5, "b": 2}


def test_21_the_same_bytes_spelled_with_a_flipped_trailing_bit_are_another_token_and_refused(key_store: KeyStore) -> None:
    token = signed(signing_key(key_store), header_for(key_store), CLAIMS)
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    flipped = token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]
    assert base64.urlsafe_b64decode(flipped.rpartition(".")[2] + "==") == base64.urlsafe_b64decode(token.rpartition(".")[2] + "==")
    assert cause_of(flipped, key_store) == "malformed"


@pytest.mark.parametrize("length", [0, 1, 63, 65, 71])
def test_a_signature_of_the_wrong_length_is_refused(key_store: KeyStore, length: int) -> None:
    signing_input = signed(signing_key(key_store), header_for(key_store)).rpartition(".")[0]
    assert cause_of(f"{signing_input}.{b64(bytes(length))}", key_store) in {"bad_signature", "malformed"}


def test_whatever_the_library_raises_is_an_invalid_token(key_store: KeyStore) -> None:
    class Broken:
        def verify(self, _message: bytes, _signature: bytes) -> bool:
            raise RecursionError

    def broken_key(kid: str) -> VerificationKey:
        return VerificationKey(kid, "ES256", Broken())

    with pytest.raises(InvalidToken) as refused:
        open_compact_jws(signed(signing_key(key_store), header_for(key_store)), broken_key, types=TYPES)
    assert refused.value.cause == "bad_signature"


@given(token=st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{1,90}(\.[A-Za-z0-9_-]{1,90}){2}", fullmatch=True))
def test_no_text_whatever_raises_anything_but_invalid_token(shared_key_store: KeyStore, token: str) -> None:
    cause_of(token, shared_key_store)


@given(
    header=st.binary(max_size=600)
    | st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())).map(lambda d: json.dumps(d).encode())
)
def test_no_header_whatever_but_our_own_passes(shared_key_store: KeyStore, header: bytes) -> None:
    cause_of(signed(signing_key(shared_key_store), header), shared_key_store)


@given(position=st.integers(min_value=0), replacement=st.characters(codec="ascii"))
def test_no_change_of_one_character_passes(shared_key_store: KeyStore, position: int, replacement: str) -> None:
    token = signed(signing_key(shared_key_store), header_for(shared_key_store), CLAIMS)
    position %= len(token)
    changed = token[:position] + replacement + token[position + 1 :]
    if changed != token:
        cause_of(changed, shared_key_store)
