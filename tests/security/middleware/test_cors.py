from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from security.errors import PreflightRefused
from security.middleware.cors import CorsHeadersMiddleware, PreflightMiddleware, check_origin

ORIGIN = "https://app.example.com"
_ALLOWED_HEADERS = b"Authorization, Content-Type, X-Request-ID, traceparent, tracestate, Accept, Accept-Language, Content-Language"
Headers = list[tuple[bytes, bytes]]


def request(*headers: tuple[bytes, bytes], method: str = "GET") -> Scope:
    return {"type": "http", "method": method, "path": "/", "headers": list(headers)}


def preflight(*, origin: bytes = ORIGIN.encode(), method: bytes = b"POST", asked: tuple[bytes, ...] = ()) -> Scope:
    names = ((b"access-control-request-headers", value) for value in asked)
    return request((b"origin", origin), (b"access-control-request-method", method), *names, method="OPTIONS")


class Inside:
    """The application inside a layer: answers with these headers, and knows whether it was asked."""

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.asked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked = True
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": b""})


async def pass_through(layer: Any, scope: Scope) -> tuple[int, dict[bytes, list[bytes]]]:  # noqa: ANN401 # either layer
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    await layer(scope, receive, send)
    found: dict[bytes, list[bytes]] = {}
    for name, value in sent[0]["headers"]:
        found.setdefault(name, []).append(value)
    return sent[0]["status"], found


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "http://localhost:3000",
        "https://127.0.0.1:8443",
        "http://[::1]:3000",
        "http://a",
        "https://xn--bcher-kva.example",
    ],
)
def test_an_origin_as_browsers_send_it_is_accepted(origin: str) -> None:
    assert check_origin(origin) == origin


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("*", "wildcard"),
        ("https://*.example.com", "wildcard"),
        ("null", "http"),
        ("", "http"),
        ("https://", "http"),
        ("app.example.com", "http"),
        ("ftp://app.example.com", "http"),
        ("file://", "http"),
        ("https://app.example.com/", "nothing behind it"),
        ("https://app.example.com?x", "nothing behind it"),
        ("https://app.example.com#", "nothing behind it"),
        ("https://user@app.example.com", "host"),
        ("https://App.example.com", "lower case"),
        ("HTTPS://app.example.com", "http"),
        ("https://b\u00fccher.example", "punycode"),
        ("https://app_.example.com:", "host"),
        ("https://app.example.com:", "host"),
        ("https://app.example.com:0443", "host"),
        ("https://app.example.com:443", "own port"),
        ("http://app.example.com:80", "own port"),
        ("https://app.example.com:99999", "scheme://host"),
        ("https://[::1", "scheme://host"),
        ("https://a b", "host"),
        ("https://a\n", "http"),
    ],
)
def test_what_no_browser_sends_is_refused_with_what_is_wrong(origin: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_origin(origin)


async def test_an_allowed_origin_gets_itself_and_the_exposed_headers() -> None:
    layer = CorsHeadersMiddleware(Inside([(b"content-type", b"text/plain")]), origins=[ORIGIN])
    _, headers = await pass_through(layer, request((b"origin", ORIGIN.encode())))
    assert headers[b"access-control-allow-origin"] == [ORIGIN.encode()]
    assert b"RateLimit" in headers[b"access-control-expose-headers"][0]
    assert (headers[b"content-type"], headers[b"vary"]) == ([b"text/plain"], [b"Origin"])


@pytest.mark.parametrize(
    "origins", [[], [b"null"], [b"https://evil.example"], [ORIGIN.encode(), ORIGIN.encode()], [ORIGIN.encode() + b" "], [b"\xff"]]
)
async def test_any_other_request_gets_vary_only(origins: list[bytes]) -> None:
    layer = CorsHeadersMiddleware(Inside([]), origins=[ORIGIN])
    _, headers = await pass_through(layer, request(*((b"origin", origin) for origin in origins)))
    assert headers == {b"vary": [b"Origin"]}


async def test_vary_keeps_what_stands_in_it() -> None:
    layer = CorsHeadersMiddleware(Inside([(b"Vary", b"Accept"), (b"vary", b"Accept-Encoding")]), origins=[])
    _, headers = await pass_through(layer, request())
    assert headers == {b"vary": [b"Accept, Accept-Encoding, Origin"]}


async def test_a_preflight_of_an_allowed_origin_is_answered_without_asking_further() -> None:
    inside = Inside([])
    status, headers = await pass_through(
        PreflightMiddleware(inside, origins=[ORIGIN]), preflight(asked=(b"Authorization, content-type,,",))
    )
    assert (status, inside.asked) == (204, False)
    assert headers == {
        b"access-control-allow-methods": [b"GET, HEAD, POST"],
        b"access-control-allow-headers": [_ALLOWED_HEADERS],
        b"access-control-max-age": [b"600"],
    }


@pytest.mark.parametrize(
    "scope",
    [preflight(method=b"HEAD"), preflight(method=b"GET", asked=(b"accept,accept-language,content-language",))],
    ids=["HEAD", "safelisted"],
)
async def test_a_preflight_for_what_every_page_may_ask_for_is_answered(scope: Scope) -> None:
    status, _ = await pass_through(PreflightMiddleware(Inside([]), origins=[ORIGIN]), scope)
    assert status == 204


@pytest.mark.parametrize(
    "scope",
    [
        preflight(origin=b"https://evil.example"),
        preflight(origin=b"null"),
        preflight(method=b"PUT"),
        preflight(method=b"post"),
        preflight(method=b""),
        preflight(asked=(b"x-evil",)),
        preflight(asked=(b"authorization", b"x-evil")),
        preflight(asked=(b"*",)),
        preflight(asked=(b"," * 1025,)),
    ],
)
async def test_a_preflight_that_asks_for_too_much_is_refused_and_goes_no_further(scope: Scope) -> None:
    inside = Inside([])
    with pytest.raises(PreflightRefused):
        await pass_through(PreflightMiddleware(inside, origins=[ORIGIN]), scope)
    assert not inside.asked


async def test_two_methods_asked_for_at_once_are_refused() -> None:
    scope = preflight()
    scope["headers"].append((b"access-control-request-method", b"GET"))
    with pytest.raises(PreflightRefused):
        await pass_through(PreflightMiddleware(Inside([]), origins=[ORIGIN]), scope)


@pytest.mark.parametrize(
    "scope",
    [
        request((b"origin", ORIGIN.encode()), method="OPTIONS"),
        request((b"access-control-request-method", b"POST"), method="OPTIONS"),
        request((b"origin", ORIGIN.encode()), (b"access-control-request-method", b"POST"), method="GET"),
    ],
)
async def test_what_is_no_preflight_goes_further(scope: Scope) -> None:
    inside = Inside([])
    await pass_through(PreflightMiddleware(inside, origins=[ORIGIN]), scope)
    assert inside.asked


async def test_where_no_origin_is_allowed_preflights_are_requests_like_any_other() -> None:
    inside = Inside([])
    await pass_through(PreflightMiddleware(inside, origins=[]), preflight())
    assert inside.asked


@pytest.mark.parametrize("layer", [CorsHeadersMiddleware, PreflightMiddleware])
async def test_other_connections_than_http_are_left_alone(layer: type[CorsHeadersMiddleware | PreflightMiddleware]) -> None:
    seen: list[str] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def unused(*_: Any) -> Any:  # noqa: ANN401 # it is never called
        raise AssertionError

    await layer(inside, origins=[ORIGIN])({"type": "websocket"}, unused, unused)
    assert seen == ["websocket"]
