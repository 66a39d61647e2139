"""Fetching a key set over HTTP: one GET, in bounded time and size, with no redirect, no proxy and nothing remembered.

It is httptools, the parser that serves our own requests, on an asyncio stream: cancelling it closes the socket, so that the deadline is one
deadline for name, handshake, header and body (docs/decisions/0003).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

import httptools

from security.errors import KeySetUnusable
from security.jwks import MAX_KEY_SET_BYTES

FETCH_TIMEOUT_S: Final = 5.0
_MAX_ANSWER_BYTES: Final = MAX_KEY_SET_BYTES + 16 * 1024
"""What is read at most: a key set, its header, and what chunked framing adds."""
_READ_BYTES: Final = 16 * 1024
_OK: Final = 200


class _Answer:
    """What the parser tells of the answer."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.headers: set[bytes] = set()
        self.encoded = False
        self.begun = False
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.add(name.lower())
        self.encoded |= name.lower() == b"content-encoding" and value.strip().lower() != b"identity"

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        if not self.complete:  # whatever follows the answer is none
            self.body += body

    def on_message_complete(self) -> None:
        self.complete = True

    @property
    def ends_with_the_connection(self) -> bool:
        """RFC 9112 section 6.3, rule 8."""
        return self.begun and self.headers.isdisjoint({b"content-length", b"transfer-encoding"})


async def fetch_key_set(url: str, *, timeout_s: float = FETCH_TIMEOUT_S) -> bytes:
    """The bytes at `url`, at most 64 KiB of them. Certificates are checked against the system's authorities (or `SSL_CERT_FILE`).

    Args:
        url: https, or http on loopback: the profile has seen to that.
        timeout_s: for everything together, in seconds.

    Raises:
        KeySetUnusable: there was no 200 with a whole body of that size within that time, for whatever reason.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _get(url)
    except KeySetUnusable:
        raise
    except TimeoutError as error:
        raise KeySetUnusable(f"the provider did not answer within {timeout_s:g} s") from error
    except Exception as error:  # sockets, TLS, names and parsers each fail in ways of their own
        raise KeySetUnusable(f"the provider could not be asked ({type(error).__name__})") from error


async def _get(url: str) -> bytes:
    parts = urlsplit(url)
    assert parts.hostname is not None
    encrypted = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname,
        parts.port or (443 if encrypted else 80),
        # Reading the authorities takes tens of milliseconds, which the requests of others must not wait for.
        ssl=await asyncio.to_thread(ssl.create_default_context) if encrypted else None,
    )
    try:
        writer.write(_request(parts.netloc, parts.path or "/", parts.query))
        return await _read(reader)
    finally:
        # Not close(): a peer that never answers TLS's goodbye would hold the socket.
        writer.transport.abort()


def _request(host: str, path: str, query: str) -> bytes:
    target = f"{path}?{query}" if query else path
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: lensgate",
        "Accept: application/jwk-set+json, application/json",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


async def _read(reader: asyncio.StreamReader) -> bytes:
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    received = 0
    while not answer.complete:
        chunk = await reader.read(_READ_BYTES)
        if not chunk:
            if answer.ends_with_the_connection:
                break
            raise KeySetUnusable("the provider's answer ended early")
        received += len(chunk)
        if received > _MAX_ANSWER_BYTES:
            raise KeySetUnusable("the key set is too large")
        parser.feed_data(chunk)
        if answer.begun and parser.get_status_code() != _OK:
            # A redirect too: where it leads, nobody has said that keys may come from.
            raise KeySetUnusable(f"the provider answered {parser.get_status_code()}")
        if answer.encoded:
            raise KeySetUnusable("the key set is compressed")
    return bytes(answer.body)
