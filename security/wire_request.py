"""What a request's head must be before it is a request: its target, its Host and the framing of its body (RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import httptools

MAX_TARGET_BYTES: Final = 8 * 1024
"""The longest request target; RFC 9112 section 3 recommends at least 8,000 octets."""
MAX_HEADERS: Final = 100
"""The most header fields in one request: Apache's own default limit."""

_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
"""RFC 3986 section 3.2 without user information, and without the marks that no name in DNS has."""

_MAX_LENGTH_DIGITS: Final = 20
"""2^64 has so many."""


class WireRefusal(Exception):
    """A request that is answered by the guard itself.

    Args:
        code: the problem's.
        detail: public text.
        reason: a fixed word, for the log.
        cause: what the parser says, for the log.
    """

    def __init__(self, code: str, detail: str, reason: str, cause: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.reason = reason
        self.cause = cause


class Head(NamedTuple):
    """A head that is good. `content_length` is None for a chunked body; `has_body` is False when there is none at all."""

    target: bytes
    content_length: int | None
    has_body: bool


def malformed(detail: str, reason: str, cause: str | None = None) -> WireRefusal:
    """A request that is not valid HTTP."""
    return WireRefusal("malformed_body", detail, reason, cause)


def check_head(method: bytes, version: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> Head:
    """Check a head that the parser has accepted.

    Args:
        method: as sent.
        version: `1.1`, for one.
        target: as sent; an absolute one (RFC 9112 section 3.2.2) becomes a path, and its authority replaces the Host in `headers`.
        headers: names in lower case, in order; changed in place.

    Raises:
        WireRefusal: it is ambiguous or not for an origin server.
    """
    if version not in {"1.0", "1.1"}:
        raise malformed("Only HTTP/1.0 and HTTP/1.1 are spoken here.", "version")
    if method == b"CONNECT":
        raise malformed("This server is no proxy: CONNECT is refused.", "connect")
    path, authority = _split_target(target)
    _check_host(version, headers)
    if authority is not None:
        # RFC 9112 section 3.2.2: the target's own authority counts, whatever Host says.
        headers[:] = [(name, value) for name, value in headers if name != b"host"] + [(b"host", authority)]
    content_length, has_body = _framing(version, headers)
    return Head(path, content_length, has_body)


def _split_target(target: bytes) -> tuple[bytes, bytes | None]:
    if b"#" in target:
        raise malformed("A request target has no fragment.", "target")
    if target.startswith(b"/"):
        return target, None
    if not target[:8].lower().startswith((b"http://", b"https://")):
        raise malformed("The request target must be a path or an http URL.", "target")
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserError as error:
        raise malformed("The request target is not valid.", "target") from error
    authority = target.split(b"//", 1)[1].split(b"/", 1)[0].split(b"?", 1)[0]
    if not _AUTHORITY.fullmatch(authority):
        raise malformed("The request target's authority is not valid.", "target")
    return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b""), authority


def _check_host(version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise malformed("A request has exactly one Host header.", "host")
    if hosts and not _AUTHORITY.fullmatch(hosts[0].strip(b" \t")):
        raise malformed("The Host header is not valid.", "host")


def _framing(version: str, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int | None, bool]:
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    # The parser refuses most of these too; that two readers agree on where a request ends is worth a second look.
    if len(lengths) + len(codings) > 1:
        raise malformed("A body has one Content-Length or one Transfer-Encoding.", "framing")
    if codings:
        if version == "1.0" or codings[0].strip(b" \t").lower() != b"chunked":
            raise malformed("The only Transfer-Encoding that is read here is chunked, in HTTP/1.1.", "framing")
        return None, True
    if not lengths:
        return 0, False
    digits = lengths[0].strip(b" \t")
    if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
        raise malformed("The Content-Length is not a number.", "framing")
    length = int(digits)
    return length, length > 0
