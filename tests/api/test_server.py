"""What the worker's server adds to uvicorn: a bound on TLS handshakes, and a port that is closed without losing anybody."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
import uvloop
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from api.http_settings import HttpSettings
from api.server import Server, allow_many_connections
from api.services import Lifecycle
from support.connection_counts import connection_counts
from support.raw_http import RawConnection

WAIT_S = 10.0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/upload":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/block":
        time.sleep(1)  # noqa: ASYNC251 # holds up the loop on purpose: what connects now waits in the kernel
    await PlainTextResponse("here")(scope, receive, send)


def make_server(http: HttpSettings) -> Server:
    return Server(app, http, Lifecycle(), counts=connection_counts(), worker=0)


def call(server: Server, function: Callable[..., object], *arguments: object) -> None:
    """Call it in the server's event loop."""
    assert server._acceptor is not None
    server._acceptor._loop.call_soon_threadsafe(function, *arguments)


@contextlib.contextmanager
def running(http: HttpSettings) -> Iterator[tuple[Server, str]]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(http)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve([listener])))
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop_accepting()
        thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_client_that_does_not_shake_hands_is_closed_when_its_time_for_a_head_is_up(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "tls.pem")
    http = HttpSettings(header_timeout_s=1, tls_cert=tmp_path / "tls.pem", tls_key=tmp_path / "tls.pem")
    with running(http) as (_, url), RawConnection(url) as connection:
        assert connection.closed_after_s() < 5


def test_connections_are_counted_until_they_end_however_they_do(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "tls.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    http = HttpSettings(header_timeout_s=3, tls_cert=tmp_path / "tls.pem", tls_key=tmp_path / "tls.pem")
    with running(http) as (server, url), contextlib.ExitStack() as stack:

        def connected() -> dict[int, int]:
            return server._counts.open()

        def connect() -> RawConnection:
            return stack.enter_context(RawConnection(url))

        wait_until(lambda: connected() == {0: 0})
        with context.wrap_socket(connect().socket, server_hostname="127.0.0.1") as secured, connect(), connect() as cut:
            secured.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert secured.recv(65_536).startswith(b"HTTP/1.1 200")
            cut.send(bytes.fromhex("1603010200"))  # half a handshake
            connect().send(b"GET / HTTP/1.1\r\n\r\n")
            wait_until(lambda: connected() == {0: 3})
            cut.socket.close()
            wait_until(lambda: connected() == {0: 2})
            wait_until(lambda: connected() == {0: 1})  # who did not shake hands in time
        wait_until(lambda: connected() == {0: 0})


def test_what_has_connected_when_the_port_closes_is_served() -> None:
    with running(HttpSettings()) as (server, url), contextlib.ExitStack() as stack:
        blocker = stack.enter_context(RawConnection(url))
        blocker.request("GET", "/block")
        time.sleep(0.2)  # the loop stands now
        waiting = [stack.enter_context(RawConnection(url)) for _ in range(20)]
        for connection in waiting:
            connection.request("GET", "/")
        server.stop_accepting()
        assert blocker.answer().status == 200
        assert [connection.answer().body for connection in waiting] == [b"here"] * 20


def test_the_limit_on_open_files_is_raised_and_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for limits in ((1024, 4096), (1024, resource.RLIM_INFINITY), (100_000, 200_000), (4096, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        allow_many_connections()
    assert set_to == [(4096, 4096), (65_536, resource.RLIM_INFINITY)]


def test_while_it_drains_every_answer_is_its_connections_last() -> None:
    with running(HttpSettings(drain_pause_s=20)) as (server, url), RawConnection(url) as idle, RawConnection(url) as busy:
        idle.request("GET", "/")
        assert "connection" not in idle.answer().headers
        busy.request("POST", "/upload", "Content-Length: 1")
        call(server, server.handle_exit, signal.SIGTERM, None)
        wait_until(lambda: server._guard.draining)
        with RawConnection(url) as late:  # the port is still open
            for connection in (idle, late):
                connection.request("GET", "/")
                answer = connection.answer()
                assert (answer.status, answer.header("connection")) == (200, "close")
                assert connection.closed_after_s() < WAIT_S
        busy.send(b"x")
        assert busy.answer().header("connection") == "close"


def test_one_that_retires_says_nothing_of_draining_and_closes_its_port() -> None:
    with running(HttpSettings(drain_pause_s=20)) as (server, url), RawConnection(url) as idle:
        idle.request("GET", "/")
        idle.answer()
        call(server, server.retire)
        idle.request("GET", "/")
        assert (idle.answer().header("connection"), server._lifecycle.draining) == ("close", False)
        wait_until(lambda: not is_open(url))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_open(url: str) -> bool:
    try:
        RawConnection(url).socket.close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_second_signal_ends_the_server_at_once() -> None:
    async def signalled() -> Server:
        server = make_server(HttpSettings(drain_pause_s=20))
        server.handle_exit(15, None)
        assert not server.should_exit
        server.handle_exit(15, None)
        return server

    server = asyncio.run(signalled())
    assert (server.should_exit, server.force_exit) == (True, True)
