"""Whose address counts: only what trusted proxies wrote is believed, and nothing that is sent can choose another's bucket."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.client_address import MAX_HOPS, UNKNOWN, TrustedProxies, address_key, parse_network

PROXIES = TrustedProxies([parse_network("10.0.0.0/8"), parse_network("2001:db8:ffff::/48"), parse_network("192.0.2.1")])
PROXY = "10.0.0.1"


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"gate"), *((b"x-forwarded-for", value.encode("latin-1")) for value in values)]


@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::1", "192.0.2.2", UNKNOWN])
def test_a_peer_that_is_no_proxy_is_not_believed(peer: str) -> None:
    assert PROXIES.resolve(peer, forwarded("198.51.100.7")) == peer


def test_with_no_proxies_nothing_is_believed() -> None:
    assert TrustedProxies([]).resolve("127.0.0.1", forwarded("198.51.100.7")) == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"), [(b"forwarded", b"for=198.51.100.7"), (b"x-real-ip", b"198.51.100.7"), (b"client-ip", b"198.51.100.7")]
)
def test_no_other_header_tells_an_address(name: bytes, value: bytes) -> None:
    assert PROXIES.resolve(PROXY, [(name, value)]) == PROXY
    assert PROXIES.resolve(PROXY, [(name, value), *forwarded("203.0.113.5")]) == "203.0.113.5"


@pytest.mark.parametrize(
    ("values", "client"),
    [
        (["198.51.100.7"], "198.51.100.7"),
        (["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
        (["1.1.1.1, 198.51.100.7, 10.9.9.9, 192.0.2.1"], "198.51.100.7"),
        (["1.1.1.1", "198.51.100.7", "10.9.9.9"], "198.51.100.7"),
        (["198.51.100.7:51234"], "198.51.100.7"),
        (["[2001:db8::7]:443"], "2001:db8::7"),
        (["[2001:db8::7]"], "2001:db8::7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["::ffff:198.51.100.7"], "198.51.100.7"),
        (["fe80::1%eth0"], "fe80::1"),
        (["\t198.51.100.7  "], "198.51.100.7"),
        # Every hop is trusted: the request was made inside.
        (["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        ([], PROXY),
    ],
)
def test_the_rightmost_address_that_is_no_proxy_counts(values: list[str], client: str) -> None:
    assert PROXIES.resolve(PROXY, forwarded(*values)) == client


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "unknown",
        "_hidden",
        "198.51.100.7.",
        "198.51.100.256",
        "198.51.100.7:",
        "198.51.100.7:port",
        "198.51.100.7:123456",
        "[198.51.100.7]",
        "[2001:db8::7",
        "[2001:db8::7]x",
        "[2001:db8::7]:",
        "for=198.51.100.7",
        "0x7f.1",
        "198.51.100.007",
        "\xb9\xb2\xb3.1.1.1",
        "1" * 65,
        "1.1.1.1 2.2.2.2",
    ],
)
def test_garbage_ends_the_reading_at_the_proxy_that_wrote_it(garbage: str) -> None:
    assert PROXIES.resolve(PROXY, forwarded(f"1.1.1.1, {garbage}")) == PROXY
    assert PROXIES.resolve(PROXY, forwarded(f"1.1.1.1, {garbage}, 10.7.7.7")) == "10.7.7.7"


def test_a_peer_in_ipv6_clothes_is_the_ipv4_proxy() -> None:
    assert PROXIES.resolve("::ffff:10.0.0.1", forwarded("198.51.100.7")) == "198.51.100.7"


@pytest.mark.parametrize(("text", "same"), [("::ffff:10.0.0.0/104", "10.0.0.0/8"), ("::ffff:192.0.2.1", "192.0.2.1/32")])
def test_a_network_of_ipv4_proxies_in_ipv6_clothes_is_the_ipv4_network(text: str, same: str) -> None:
    assert str(parse_network(text)) == same
    assert TrustedProxies([parse_network(text)]).resolve(same.partition("/")[0], forwarded("198.51.100.7")) == "198.51.100.7"


def test_however_long_the_invention_is_the_right_end_counts() -> None:
    invention = ", ".join(["1.1.1.1"] * 100_000)
    assert PROXIES.resolve(PROXY, forwarded(f"{invention}, 198.51.100.7")) == "198.51.100.7"


def test_only_so_many_hops_are_walked() -> None:
    hops = [f"10.0.0.{number}" for number in range(MAX_HOPS + 5)]
    assert PROXIES.resolve(PROXY, forwarded("198.51.100.7, " + ", ".join(hops))) == "10.0.0.5"


def test_an_address_that_the_bound_cuts_is_not_read() -> None:
    # Cut in its middle, 110.20.30.40 would be 10.20.30.40, or 0.20.30.40.
    for length in range(2000, 2060):
        padding = " " * (length - len("110.20.30.40"))
        assert PROXIES.resolve(PROXY, forwarded(f"110.20.30.40{padding}")) in {"110.20.30.40", PROXY}


@given(st.lists(st.binary(max_size=80), max_size=6), st.ip_addresses().filter(lambda address: not PROXIES._is_trusted(address)))
def test_what_a_caller_sends_never_moves_what_the_proxy_wrote(sent: list[bytes], real: object) -> None:
    headers = [(b"x-forwarded-for", value) for value in sent] + [(b"x-forwarded-for", str(real).encode())]
    resolved = ip_address(PROXIES.resolve(PROXY, headers))
    assert address_key(str(resolved)) == address_key(str(real))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", UNKNOWN),
        ("unknown", UNKNOWN),
        ("/run/socket", UNKNOWN),
    ],
)
def test_addresses_are_counted_as_their_owners_have_them(text: str, key: str) -> None:
    assert address_key(text) == key


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "proxy.example.com", "*"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="addresses or networks"):
        parse_network(text)
