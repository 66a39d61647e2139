"""Whose address a request came from, when proxies stand in between; and which addresses count as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNKNOWN: Final = "unknown"
"""The address of a peer that has none."""

MAX_HOPS: Final = 32
"""How many entries of X-Forwarded-For are looked at, from the right."""
_MAX_ENTRY: Final = 64
"""Room for the longest address with its port."""
_MAX_BYTES: Final = MAX_HOPS * _MAX_ENTRY
_IPV6_SITE_BITS: Final = 64
"""RFC 6177: the least that one customer has, so that his next address is no new caller."""
_IPV4_MAPPED: Final = IPv6Network("::ffff:0:0/96")


def parse_network(text: str) -> Network:
    """An address or a network such as `10.0.0.0/8`. What is IPv4 in IPv6's clothes is IPv4.

    Raises:
        ValueError: it is neither, or has bits set beyond its prefix.
    """
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError("must be addresses or networks such as 10.0.0.0/8") from error
    if isinstance(network, IPv6Network) and network.subnet_of(_IPV4_MAPPED):
        # As `_parse` takes the addresses in it.
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _IPV4_MAPPED.prefixlen))
    return network


class TrustedProxies:
    """The peers whose X-Forwarded-For is believed. An empty list believes nobody.

    Args:
        networks: their addresses.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)

    def resolve(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address that a request counts for: the peer's, or the rightmost one in X-Forwarded-For that is no trusted proxy.

        Every proxy appends the address that it was asked from. So the list is read from the right, for as long as the hop that wrote the
        entry is trusted; what stands further left is the caller's own invention. What is no address ends the reading, and the trusted hop
        that wrote it counts. Header after header, in their order (RFC 9110 section 5.3).

        Args:
            peer: the address at the other end of the connection.
            headers: names in lower case.
        """
        if not self._networks:
            return peer
        client = _parse(peer)
        if client is None or not self._is_trusted(client):
            return peer
        for entry in _entries(headers):
            hop = _parse_entry(entry)
            if hop is None:
                break
            client = hop
            if not self._is_trusted(hop):
                break
        return str(client)

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._networks if network.version == address.version)


def _entries(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """The entries of every X-Forwarded-For, the last one first, within bounds."""
    joined = b",".join([value for name, value in headers if name == b"x-forwarded-for"])
    if not joined:
        return []
    # What is cut in the middle by the bound could still look like an address: the cut entry goes too.
    kept = joined if len(joined) <= _MAX_BYTES else joined[-_MAX_BYTES:].partition(b",")[2]
    return kept.rsplit(b",", MAX_HOPS)[-MAX_HOPS:][::-1]


def _parse_entry(entry: bytes) -> Address | None:
    """`192.0.2.1`, `192.0.2.1:443`, `2001:db8::1` or `[2001:db8::1]:443`."""
    text = entry.strip(b" \t").decode("latin-1")
    if len(text) > _MAX_ENTRY:
        return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or not (port == "" or _is_port(port)):
            return None
        address = _parse(text)
        return address if isinstance(address, IPv6Address) or ":" in text else None
    if text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    return _parse(text)


def _is_port(text: str) -> bool:
    return text[:1] == ":" and len(text) <= len(":65535") and text[1:].isascii() and text[1:].isdigit()


@lru_cache(maxsize=4096)
def _parse(text: str) -> Address | None:
    """An address without its zone; one that is IPv4 in IPv6's clothes is IPv4."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address if isinstance(address, IPv4Address) else address.ipv4_mapped or address


@lru_cache(maxsize=4096)
def address_key(text: str) -> str:
    """What an address is counted under: IPv4 whole, IPv6 by its /64. Never empty."""
    address = _parse(text)
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address, _IPV6_SITE_BITS), strict=False).network_address) + "/64"
