from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from security.errors import BodyTooLarge, UnsupportedContentEncoding
from security.middleware.body_limit import BodyLimitMiddleware

LIMIT = 100


class Connection:
    """One request whose body comes in the given pieces, and what was sent back."""

    def __init__(self, *pieces: bytes, path: str = "/", headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.pieces = list(pieces)
        self.sent: list[Message] = []
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": list(headers),
        }

    async def receive(self) -> Message:
        if not self.pieces:
            return {"type": "http.disconnect"}
        piece = self.pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def through(self, app: ASGIApp, **path_limits: int) -> None:
        limits = {f"/{path}": limit for path, limit in path_limits.items()}
        await BodyLimitMiddleware(app, max_body_bytes=LIMIT, path_limits=limits)(self.scope, self.receive, self.send)


async def echo_length(_scope: Scope, receive: Receive, send: Send) -> None:
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


@pytest.mark.parametrize("headers", [(), ((b"content-length", b"100"),), ((b"content-encoding", b" Identity "),)])
async def test_57_exactly_the_limit_is_accepted(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    connection = Connection(b"x" * 60, b"x" * 40, headers=headers)
    await connection.through(echo_length)
    assert connection.sent[1]["body"] == b"100"


@pytest.mark.parametrize("length", [b"101", b"9" * 19, b"9" * 5000, b"", b"-1", b"+1", b"1.5", b"0x10", b"ten", b"1,1", "١".encode()])
async def test_55_a_length_too_large_or_malformed_is_refused_before_the_body(length: bytes) -> None:
    connection = Connection(b"x" * 101, headers=((b"content-length", length),))
    with pytest.raises(BodyTooLarge):
        await connection.through(echo_length)
    assert len(connection.pieces) == 1
    assert connection.sent == []


async def test_of_two_lengths_the_larger_counts() -> None:
    connection = Connection(b"x", headers=((b"content-length", b"1"), (b"content-length", b"101")))
    with pytest.raises(BodyTooLarge):
        await connection.through(echo_length)


@pytest.mark.parametrize("headers", [(), ((b"content-length", b"10"),)])
async def test_56_what_comes_is_counted_whatever_was_declared(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    connection = Connection(b"x" * 60, b"x" * 41, b"x" * 1000, headers=headers)
    with pytest.raises(BodyTooLarge):
        await connection.through(echo_length)
    assert connection.pieces == [b"x" * 1000]
    assert connection.sent == []


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"deflate", b"identity, gzip", b"x", b""])
async def test_60_a_compressed_body_is_refused_unread(encoding: bytes) -> None:
    connection = Connection(b"x", headers=((b"content-encoding", encoding),))
    with pytest.raises(UnsupportedContentEncoding):
        await connection.through(echo_length)
    assert connection.pieces == [b"x"]


async def test_a_path_can_have_a_limit_of_its_own() -> None:
    with pytest.raises(BodyTooLarge):
        await Connection(b"x" * 11, path="/token").through(echo_length, token=10)
    other = Connection(b"x" * 11, path="/token/")
    await other.through(echo_length, token=10)
    assert other.sent[1]["body"] == b"11"


async def swallow_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await echo_length(scope, receive, send)
    except Exception:  # noqa: BLE001 - as frameworks do
        await send({"type": "http.response.start", "status": 400, "headers": []})


async def swallow_and_be_silent(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await echo_length(scope, receive, send)
    except BodyTooLarge:
        return


async def swallow_and_read_on(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await echo_length(scope, receive, send)
    except BodyTooLarge:
        await echo_length(scope, receive, send)


async def turn_into_another_error(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await echo_length(scope, receive, send)
    except BodyTooLarge as error:
        raise RuntimeError from error


class Body(BaseModel):
    image: str


def fastapi_json() -> FastAPI:
    app = FastAPI()

    @app.post("/")
    async def read(body: Body) -> str:
        return body.image

    return app


def fastapi_form() -> FastAPI:
    app = FastAPI()

    @app.post("/")
    async def read(request: Request) -> int:
        return len(await request.form())

    return app


@pytest.mark.parametrize(
    ("app", "content_type"),
    [
        (swallow_and_answer, b""),
        (swallow_and_be_silent, b""),
        (swallow_and_read_on, b""),
        (turn_into_another_error, b""),
        (fastapi_json(), b"application/json"),
        (fastapi_form(), b"multipart/form-data; boundary=b"),
    ],
    ids=["answers", "silent", "reads on", "another error", "FastAPI JSON", "FastAPI form"],
)
async def test_the_refusal_comes_out_whatever_the_app_makes_of_it(app: ASGIApp, content_type: bytes) -> None:
    connection = Connection(b"--b\r\n", b"x" * 101, b"x" * 1000, headers=((b"content-type", content_type),))
    connection.scope.update(
        {"http_version": "1.1", "scheme": "http", "server": ("gate.test", 80), "client": ("1.2.3.4", 5), "root_path": ""}
    )
    with pytest.raises(BodyTooLarge):
        await connection.through(app)
    assert connection.sent == []
    assert connection.pieces == [b"x" * 1000]


async def test_an_answer_begun_before_the_limit_is_cut_off() -> None:
    async def answer_first(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await swallow_and_answer(scope, receive, send)

    connection = Connection(b"x" * 101)
    with pytest.raises(BodyTooLarge):
        await connection.through(answer_first)
    assert len(connection.sent) == 1


async def test_the_apps_own_errors_pass_unchanged() -> None:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await Connection(b"x").through(broken)


async def test_a_disconnect_passes_to_the_app() -> None:
    seen: list[str] = []

    async def watch(_scope: Scope, receive: Receive, _send: Send) -> None:
        seen.append((await receive())["type"])

    await Connection().through(watch)
    assert seen == ["http.disconnect"]


async def test_lifespan_passes_untouched() -> None:
    seen: list[tuple[Callable[[], Awaitable[Message]], object]] = []

    async def watch(_scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((receive, send))

    connection = Connection()
    await BodyLimitMiddleware(watch, max_body_bytes=0)({"type": "lifespan"}, connection.receive, connection.send)
    assert seen == [(connection.receive, connection.send)]
