"""Whose address a request counts for: the first line of an input is the peer, each other one an X-Forwarded-For header."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from security.client_address import UNKNOWN, TrustedProxies, address_key

_TRUSTED = tuple(map(ip_network, ("10.0.0.0/8", "127.0.0.1/32", "fd00::/8")))
_FORGED = (b"x-forwarded-for", b"203.0.113.66, 10.0.0.3, 2001:db8::66")


def one_input(data: bytes) -> None:
    """Resolve, and hold the answer to what makes it worth anything: a caller cannot choose it."""
    first, *lines = data.split(b"\n")
    peer = first.decode("latin-1")
    headers = [(b"x-forwarded-for", line) for line in lines]
    proxies = TrustedProxies(_TRUSTED)
    found = proxies.resolve(peer, headers)
    key = address_key(found)
    assert key
    assert address_key(key.removesuffix("/64")) == key
    assert TrustedProxies(()).resolve(peer, headers) == peer
    if not _is_trusted(peer):
        assert found == peer
        return
    assert key != UNKNOWN
    if found != str(_canonical(peer)):
        assert headers
    if not _is_trusted(found):
        # It was written by a trusted proxy: what stands further left, where a caller can write, changes nothing.
        assert proxies.resolve(peer, [_FORGED, *headers]) == found
        assert proxies.resolve(peer, [(b"x-forwarded-for", _FORGED[1] + b"," + b",".join(lines))]) == found


def _canonical(text: str) -> object:
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(text: str) -> bool:
    try:
        address = _canonical(text)
    except ValueError:
        return False
    return any(address in network for network in _TRUSTED)
