"""What a mutation run over `security.client_address` found that no other test asserts: see docs/proof.md."""

from __future__ import annotations

import pytest

from security.client_address import TrustedProxies, parse_network

PROXY = "10.0.0.1"
CLIENT = "203.0.113.9"


def _resolve(forwarded: bytes) -> str:
    # Made in the test, so that a mutant of the constructor is the one that is asked.
    return TrustedProxies([parse_network("10.0.0.0/8")]).resolve(PROXY, [(b"x-forwarded-for", forwarded)])


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (b"203.0.113.9:5", CLIENT),
        (b"203.0.113.9:65535", CLIENT),
        (b"[::ffff:203.0.113.9]:443", CLIENT),
        (b"203.0.113.9:\xb2", PROXY),  # a superscript two, which Python calls a digit
        (b"203.0.113.9:x1", PROXY),
        (b"203.0.113.9:1x", PROXY),
        (b"203.0.113.9:123456", PROXY),
        (b"\x0b203.0.113.9", PROXY),
        (b"X203.0.113.9", PROXY),
        (b"[203.0.113.9]", PROXY),
        (b"fe80::1%" + b"z" * (64 - len("fe80::1%")), "fe80::1"),
        (b"fe80::1%" + b"z" * (65 - len("fe80::1%")), PROXY),
    ],
)
def test_an_entry_is_an_address_to_the_letter_or_ends_the_reading(entry: bytes, found: str) -> None:
    assert _resolve(entry) == found


def _hops(total_bytes: int) -> bytes:
    """The client's address, then trusted hops with much white space: so many bytes in all, in fewer entries than are looked at."""
    hop = b"," + b" " * 91 + b"10.0.0.2"
    hops = hop * ((total_bytes - 40) // len(hop))
    return CLIENT.encode().rjust(total_bytes - len(hops)) + hops


def test_a_header_of_exactly_the_bound_is_read_whole() -> None:
    assert _resolve(_hops(2048)) == CLIENT


def test_of_a_longer_header_what_the_bound_cuts_is_not_looked_at() -> None:
    """Not even the rest of the entry that was cut, which could be an address by itself."""
    assert _resolve(_hops(2049)) == "10.0.0.2"
    assert _resolve(b"6.6.6.6" + _hops(2048)) == "10.0.0.2"


def test_a_network_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"^must be addresses or networks such as 10\.0\.0\.0/8$"):
        parse_network("10.0.0.1/8")
