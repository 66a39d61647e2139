"""Key sets as providers publish them, and as nobody should."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from security.errors import KeySetUnusable
from security.jwks import KeySet, read_key_set
from security.key_files import Algorithm

ISSUER = "https://idp.test"
TENANT = "8f1f6b0a-3c55-4f43-9c3d-2b7f4e9d1a60"
BOTH: tuple[Algorithm, ...] = ("RS256", "ES256")


def number(value: int, length: int | None = None) -> str:
    octets = value.to_bytes(length or (value.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def rsa_entry(bits: int = 2048, **changes: object) -> dict[str, Any]:
    numbers = rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key().public_numbers()
    return {"kty": "RSA", "kid": "r", "n": number(numbers.n), "e": number(numbers.e), **changes}


RSA = rsa_entry()
_POINT = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
EC = {"kty": "EC", "crv": "P-256", "kid": "e", "x": number(_POINT.x, 32), "y": number(_POINT.y, 32)}


def read(*entries: object, issuer: str = ISSUER, algorithms: tuple[Algorithm, ...] = BOTH) -> KeySet:
    return read_key_set(json.dumps({"keys": entries}).encode(), issuer=issuer, algorithms=algorithms)


def skipped(entry: dict[str, Any]) -> str:
    key_set = read(entry)
    assert not key_set.keys
    return key_set.skipped[0]


def test_rsa_and_p256_keys_are_taken_under_their_names() -> None:
    keys = read(RSA, {**EC, "use": "sig", "alg": "ES256", "key_ops": ["verify"], "x5c": ["ignored"], "x5u": "https://evil.test"}).keys
    assert {kid: key.algorithm for kid, key in keys.items()} == {"r": "RS256", "e": "ES256"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use": "enc"}, "not for signatures"),
        ({"use": 7}, "not for signatures"),
        ({"key_ops": ["encrypt"]}, "not for signatures"),
        ({"key_ops": "verify"}, "not for signatures"),
        ({"alg": "RSA-OAEP"}, "another algorithm"),
        ({"alg": "PS256"}, "another algorithm"),
        ({"alg": "HS256"}, "another algorithm"),
        ({"alg": "ES256"}, "another algorithm"),
        ({"alg": None}, "another algorithm"),
        ({"kty": "OKP"}, "another kind of key"),
        ({"kty": "oct"}, "another kind of key"),
        ({"kty": None}, "another kind of key"),
        ({"kid": None}, "no usable kid"),
        ({"kid": ""}, "no usable kid"),
        ({"kid": "a" * 129}, "no usable kid"),
        ({"kid": "a b"}, "no usable kid"),
        ({"kid": "é"}, "no usable kid"),
        ({"kid": ["r"]}, "no usable kid"),
        ({"n": None}, "malformed"),
        ({"n": 7}, "malformed"),
        ({"n": ""}, "malformed"),
        ({"n": "A"}, "malformed"),
        ({"n": RSA["n"] + "="}, "malformed"),
        ({"n": "A" * 2049}, "malformed"),
        ({"n": "AQAB"}, "a weak key"),
        ({"n": number(2**8192 + 1)}, "a weak key"),
        ({"n": number(2**2047)}, "a weak key"),
        ({"e": number(1)}, "a weak key"),
        ({"e": number(3)}, "a weak key"),
        ({"e": number(65538)}, "a weak key"),
        ({"e": number(2**32 + 1)}, "a weak key"),
    ],
)
def test_an_rsa_key_that_is_not_for_us_or_not_sound_is_left_out(changes: dict[str, Any], reason: str) -> None:
    assert skipped({**RSA, **changes}) == reason


def test_an_rsa_key_of_1024_bits_is_left_out() -> None:
    assert skipped(rsa_entry(1024)) == "a weak key"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crv": "P-384"}, "another kind of key"),
        ({"crv": "secp256k1"}, "another kind of key"),
        ({"crv": None}, "another kind of key"),
        ({"alg": "RS256"}, "another algorithm"),
        ({"y": EC["x"]}, "malformed"),
        ({"x": number(2**256 + 5)}, "malformed"),
        ({"y": None}, "malformed"),
    ],
)
def test_a_curve_key_that_is_not_for_us_or_not_sound_is_left_out(changes: dict[str, Any], reason: str) -> None:
    assert skipped({**EC, **changes}) == reason


def test_a_kind_that_the_profile_does_not_name_is_left_out() -> None:
    assert set(read(RSA, EC, algorithms=("RS256",)).keys) == {"r"}
    assert set(read(RSA, EC, algorithms=("ES256",)).keys) == {"e"}


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_a_private_or_symmetric_key_spoils_the_whole_set(member: str) -> None:
    with pytest.raises(KeySetUnusable, match="private"):
        read(RSA, {**EC, "use": "enc", member: "AQAB"})


def test_two_usable_keys_of_one_name_spoil_the_whole_set() -> None:
    with pytest.raises(KeySetUnusable, match="one name"):
        read(RSA, {**EC, "kid": "r"})
    assert set(read(RSA, {**RSA, "use": "enc"}).keys) == {"r"}


def test_32_keys_are_taken_and_33_refused() -> None:
    entries = [{**EC, "kid": f"k{n}"} for n in range(33)]
    assert len(read(*entries[:32]).keys) == 32
    with pytest.raises(KeySetUnusable, match="more than 32"):
        read(*entries)


def test_an_empty_set_is_what_it_says() -> None:
    assert read().keys == {}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b'{"keys": [7]}',
        b'{"keys": [[]]}',
        b'{"keys": [], "keys": []}',
        b'{"keys": [], "a": NaN}',
        b'{"keys": [], "a": 1e999}',
        b"\xff{}",
        b"<html>",
        b'{"keys":' + b"[" * 60_000,
        b'{"keys": [{"kid": "a", "kid": "b"}]}',
    ],
)
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(KeySetUnusable):
        read_key_set(document, issuer=ISSUER, algorithms=BOTH)


def test_64_kib_are_read_and_not_one_byte_more() -> None:
    document = json.dumps({"keys": [RSA]}).encode().ljust(64 * 1024)
    assert set(read_key_set(document, issuer=ISSUER, algorithms=BOTH).keys) == {"r"}
    with pytest.raises(KeySetUnusable, match="too large"):
        read_key_set(document + b" ", issuer=ISSUER, algorithms=BOTH)


@pytest.mark.parametrize(
    ("named", "issuer", "taken"),
    [
        (f"https://login.microsoftonline.com/{TENANT}/v2.0", f"https://login.microsoftonline.com/{TENANT}/v2.0", True),
        (f"https://login.microsoftonline.com/{TENANT}/v2.0", f"https://sts.windows.net/{TENANT.upper()}/", True),
        ("https://login.microsoftonline.com/{tenantid}/v2.0", f"https://sts.windows.net/{TENANT}/", True),
        ("https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0", f"https://sts.windows.net/{TENANT}/", False),
        ("https://elsewhere.test", ISSUER, True),
        (None, ISSUER, True),
        (7, f"https://sts.windows.net/{TENANT}/", True),
    ],
)
def test_a_key_that_signs_for_another_tenant_is_left_out(named: object, issuer: str, taken: bool) -> None:
    assert bool(read({**RSA, "issuer": named}, issuer=issuer).keys) == taken


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["RSA", "EC", "P-256", "sig", "RS256", RSA["n"], "AQAB"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
members = st.sampled_from(["kty", "kid", "n", "e", "x", "y", "crv", "use", "alg", "key_ops", "issuer", "x5c"])


@given(changes=st.dictionaries(members, json_values, max_size=3), base=st.sampled_from([RSA, EC]))
def test_whatever_a_key_holds_it_is_taken_or_left_out(changes: dict[str, object], base: dict[str, Any]) -> None:
    key_set = read({**base, **changes})
    assert len(key_set.keys) + len(key_set.skipped) == 1


@given(document=st.binary(max_size=200) | json_values.map(lambda value: json.dumps({"keys": value}).encode()))
def test_whatever_is_sent_is_a_key_set_or_unusable(document: bytes) -> None:
    try:
        key_set = read_key_set(document, issuer=ISSUER, algorithms=BOTH)
    except KeySetUnusable:
        return
    assert len(key_set.keys) <= 32
