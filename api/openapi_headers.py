"""The headers of answers in the OpenAPI document: described once, referred to from every answer that carries them."""

from __future__ import annotations

from typing import Any, Final

HEADERS: Final[dict[str, Any]] = {
    "X-Request-ID": {
        "description": "The caller's own id where it sent a good one, else a new one; the log has it.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "RateLimit": {
        "description": "What is left of each limit (`r`), and the seconds until there is more (`t`): draft-ietf-httpapi-ratelimit-headers.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "The limits: so many units (`q`) in a window of so many seconds (`w`).",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds to wait before another try.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to authenticate (RFC 6750, RFC 7617).", "schema": {"type": "string"}},
}
"""For `components/headers`."""

_BY_STATUS: Final = {"401": ("WWW-Authenticate",), "403": ("WWW-Authenticate",), "429": ("Retry-After",), "503": ("Retry-After",)}
_BEFORE_ANY_LIMIT: Final = frozenset({"414", "431"})
"""What the wire guard alone answers: to what is no request yet."""


def headers_of(status: str) -> dict[str, Any]:
    """References to the headers of every answer with this status."""
    limits = () if status in _BEFORE_ANY_LIMIT else ("RateLimit", "RateLimit-Policy")
    names = ("X-Request-ID", *limits, *_BY_STATUS.get(status, ()))
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
