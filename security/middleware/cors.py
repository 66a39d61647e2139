"""Cross-origin requests (the CORS protocol of the Fetch standard), by an exact allowlist of origins. No cookies, so no credentials mode.

Two layers, because they stand in two places: the headers go on every answer, the boundary's errors too, and so lie outside it; a
preflight carries no token, and so is answered before authentication, but after the address limit.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from security.errors import PreflightRefused

METHODS: Final = ("GET", "HEAD", "POST")
REQUEST_HEADERS: Final = (
    *("Authorization", "Content-Type", "X-Request-ID", "traceparent", "tracestate"),
    # Safelisted, and yet asked for where a value is long or odd (Fetch, CORS-safelisted request-header).
    *("Accept", "Accept-Language", "Content-Language"),
)
EXPOSED_HEADERS: Final = (
    *("X-Request-ID", "traceparent", "Server-Timing"),
    *("Retry-After", "RateLimit", "RateLimit-Policy", "WWW-Authenticate"),
)
MAX_AGE_S: Final = 600
"""How long a browser may remember a preflight."""

_MAX_ASKED_BYTES: Final = 1024
_ALLOWED_METHODS: Final = frozenset(method.encode("ascii") for method in METHODS)
_ALLOWED_HEADERS: Final = frozenset(name.lower().encode("ascii") for name in REQUEST_HEADERS)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


def check_origin(origin: str) -> str:
    """Return `origin` if it is written as browsers write the header `Origin` (RFC 6454 section 6.2), since it is compared byte by byte.

    Raises:
        ValueError: it is not; the message says what is wrong and repeats nothing.
    """
    if "*" in origin:
        raise ValueError("a wildcard is refused: name each origin, as in https://app.example.com")
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        raise ValueError("an origin is scheme://host or scheme://host:port") from None
    host = parts.netloc.removesuffix("" if port is None else f":{port}")
    if parts.scheme not in _DEFAULT_PORTS or origin != f"{parts.scheme}://{parts.netloc}" or not _HOST.fullmatch(host):
        raise ValueError("an origin is http:// or https://, a host in lower case (punycode) and perhaps a port, with nothing behind it")
    if port == _DEFAULT_PORTS[parts.scheme]:
        raise ValueError("an origin must not name its scheme's own port: browsers leave it out")
    return origin


class CorsHeadersMiddleware:
    """Puts `Vary: Origin` on every answer, and the CORS headers on the answers to an allowed origin.

    `Vary` is there without an origin and with an empty allowlist too: a cache must never keep one origin's answer for another.

    Args:
        app: the next layer.
        origins: the allowed origins, each as `check_origin` wants it.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._allowed = _encoded(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = _origin(scope)
        added = _headers_for(origin) if origin in self._allowed else []

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*_varied(message.get("headers", ())), *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class PreflightMiddleware:
    """Answers the preflights of allowed origins, which never carry a token: 204, or `PreflightRefused` for the boundary to answer.

    Args:
        app: the next layer. With an empty allowlist it gets everything.
        origins: the allowed origins.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._allowed = _encoded(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if not (self._allowed and _is_preflight(scope)):
            await self._app(scope, receive, send)
            return
        if _origin(scope) not in self._allowed:
            raise PreflightRefused("This origin is not allowed.")
        _check_preflight(scope)
        headers = [
            (b"access-control-allow-methods", ", ".join(METHODS).encode("ascii")),
            (b"access-control-allow-headers", ", ".join(REQUEST_HEADERS).encode("ascii")),
            (b"access-control-max-age", str(MAX_AGE_S).encode("ascii")),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _encoded(origins: Collection[str]) -> frozenset[bytes | None]:
    return frozenset(origin.encode("ascii") for origin in origins)


def _values(scope: Scope, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]


def _origin(scope: Scope) -> bytes | None:
    """The only `Origin`; two of them are none."""
    origins = _values(scope, b"origin")
    return origins[0] if len(origins) == 1 else None


def _is_preflight(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] == "OPTIONS"
        and bool(_values(scope, b"origin"))
        and bool(_values(scope, b"access-control-request-method"))
    )


def _check_preflight(scope: Scope) -> None:
    methods = _values(scope, b"access-control-request-method")
    if len(methods) != 1 or methods[0] not in _ALLOWED_METHODS:
        raise PreflightRefused("This method is not allowed across origins.")
    asked = b",".join(_values(scope, b"access-control-request-headers"))
    names = {name.strip(b" \t").lower() for name in asked[:_MAX_ASKED_BYTES].split(b",")}
    if len(asked) > _MAX_ASKED_BYTES or not names <= _ALLOWED_HEADERS | {b""}:
        raise PreflightRefused("A header is not allowed across origins.")


def _headers_for(origin: bytes | None) -> list[tuple[bytes, bytes]]:
    assert origin is not None
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode("ascii")),
    ]


def _varied(headers: Collection[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """With `Origin` in `Vary`, beside whatever stands there."""
    varies = [value for name, value in headers if name.lower() == b"vary"]
    if not varies:
        return [*headers, (b"vary", b"Origin")]
    others = [header for header in headers if header[0].lower() != b"vary"]
    return [*others, (b"vary", b", ".join([*varies, b"Origin"]))]
