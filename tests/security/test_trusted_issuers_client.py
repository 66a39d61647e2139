"""Fetching a key set from providers that are slow, broken or hostile: real sockets, bounded time, bounded memory."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from security.errors import KeySetUnusable
from security.jwks_client import fetch_key_set

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"keys": []}'
TIMEOUT_S = 0.4


@asynccontextmanager
async def provider(behave: Behaviour, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A provider on loopback that behaves so towards everyone; gives its port."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            await behave(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def saying(answer: bytes, requests: list[bytes] | None = None) -> Behaviour:
    """Answers with exactly these bytes, and closes."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if requests is not None:
            requests.append(request)
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    return behave


async def fetch(behave: Behaviour, path: str = "/jwks") -> bytes:
    async with provider(behave) as port:
        return await fetch_key_set(f"http://127.0.0.1:{port}{path}", timeout_s=TIMEOUT_S)


async def refusal(behave: Behaviour) -> str:
    with pytest.raises(KeySetUnusable) as refused:
        await fetch(behave)
    return str(refused.value)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Encoding: identity\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + BODY[:5] + b"\r\n7\r\n" + BODY[5:] + b"\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    ],
)
async def test_a_body_is_taken_however_it_is_framed(answer: bytes) -> None:
    assert await fetch(saying(answer)) == BODY


async def test_what_follows_the_answer_is_no_part_of_it() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY
    assert await fetch(saying(answer + answer)) == BODY


async def test_the_request_is_plain_and_asks_for_exactly_the_address() -> None:
    requests: list[bytes] = []
    await fetch(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY, requests), "/a/b?c=d")
    lines = requests[0].decode().split("\r\n")
    assert lines[0] == "GET /a/b?c=d HTTP/1.1"
    assert lines[1].startswith("Host: 127.0.0.1:")
    assert "Connection: close" in lines
    assert not [line for line in lines if line.lower().startswith(("cookie", "authorization"))]


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetch(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY)) == BODY


@pytest.mark.parametrize("status", [100, 204, 301, 302, 307, 308, 401, 404, 500, 503])
async def test_any_other_answer_than_200_is_refused_and_no_redirect_followed(status: int) -> None:
    async with provider(saying(b"")) as elsewhere:
        answer = f"HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:{elsewhere}/\r\n\r\n".encode()
        assert await refusal(saying(answer)) == f"the provider answered {status}"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "ended early"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "ended early"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{", "ended early"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", "ended early"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 12\r\n\r\n" + BODY, "compressed"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "HttpParser"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "HttpParser"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + BODY, "HttpParser"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HttpParser"),
        (b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "could not be asked"),
        (b"\x00" * 100, "HttpParser"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY + b"and more", "HttpParser"),
    ],
)
async def test_a_broken_answer_is_refused(answer: bytes, reason: str) -> None:
    assert reason in await refusal(saying(answer))


@pytest.mark.parametrize(
    ("head", "filler"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 8192),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2000\r\n" + b" " * 8192 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b" " * 8192),
        (b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"x" * 8192 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 8192),
    ],
)
async def test_an_endless_answer_is_cut_off(head: bytes, filler: bytes) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head)
        while sent < 100_000_000:
            writer.write(filler)
            await writer.drain()
            sent += len(filler)

    reason = await refusal(flood)
    assert "too large" in reason or "HttpParser" in reason
    # What is beyond the limit stands in the sockets' buffers.
    assert sent < 20_000_000


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def _dripping(head: bytes) -> Behaviour:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    return behave


@pytest.mark.parametrize(
    "behave",
    [_silent, _dripping(b"HTTP/1.1 200 OK\r\nX: "), _dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"), _dripping(b"")],
)
async def test_one_deadline_holds_for_everything_together(behave: Behaviour) -> None:
    started_s = time.monotonic()
    reason = await refusal(behave)
    assert "within 0.4 s" in reason or "HttpParser" in reason
    assert time.monotonic() - started_s < 10 * TIMEOUT_S


async def test_a_silent_tls_handshake_ends_at_the_deadline() -> None:
    async with provider(_silent) as port:
        with pytest.raises(KeySetUnusable, match="within"):
            await fetch_key_set(f"https://127.0.0.1:{port}/jwks", timeout_s=TIMEOUT_S)


async def test_nobody_there_is_said_so() -> None:
    async with provider(_silent) as port:
        pass
    with pytest.raises(KeySetUnusable, match="ConnectionRefusedError"):
        await fetch_key_set(f"http://127.0.0.1:{port}/jwks")


async def test_a_name_that_does_not_exist_is_said_so() -> None:
    with pytest.raises(KeySetUnusable, match=r"could not be asked|within"):
        await fetch_key_set("https://idp.invalid/jwks", timeout_s=2)


async def test_https_is_checked_against_the_systems_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with provider(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY), context) as port:
        with pytest.raises(KeySetUnusable, match="SSLCertVerificationError"):
            await fetch_key_set(f"https://localhost:{port}/jwks")
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert await fetch_key_set(f"https://localhost:{port}/jwks") == BODY
        with pytest.raises(KeySetUnusable, match="SSLCertVerificationError"):
            await fetch_key_set(f"https://127.0.0.1:{port}/jwks")
