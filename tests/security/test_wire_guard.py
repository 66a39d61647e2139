"""The wire guard in one process: a small ASGI app behind it, on a real socket, with deadlines that a test can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import struct
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvicorn
import uvloop
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from security import wire_guard, wire_protocol
from security.errors import SecurityError
from security.wire_exchange import MAX_DISCARDED_BYTES
from security.wire_guard import Answer, WireGuard, WireLimits
from security.wire_protocol import guarded_protocol
from support.raw_http import ConnectionClosed, RawConnection

KEEP_ALIVE_S = 1.5
CROWD = 3
LIMITS = WireLimits(header_timeout_s=0.6, body_timeout_s=0.6, max_header_bytes=2048, drain_s=2.0, idle_timeout_s=KEEP_ALIVE_S, crowd=CROWD)
KERNEL_BUFFERS_BYTES = 12 * 1024 * 1024
"""What the two sockets of a loopback connection may hold that nobody has read."""
DATA_SEGMENTS_IN_OFFSET = 152
"""`tcpi_data_segs_in` of `<linux/tcp.h>`."""
LARGE_BYTES = 8_000_000
WAIT_S = 10.0
STATUSES = {"malformed_body": 400, "slow_client": 408, "uri_too_long": 414, "headers_too_large": 431, "not_ready": 503}


class App:
    """Answers with the size of the body; `/hang` waits for ever, `/deaf` hears of nothing, `/early` answers first, `/later` in a while."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[object] = []
        self.running = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.started.append(path)
        self.running.set()
        try:
            if path == "/early":
                await answer(send, 413, b"")
            if path == "/later":
                await asyncio.sleep(3 * LIMITS.body_timeout_s)
            if path == "/begun":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            size = 0
            async for chunk in Request(scope, receive).stream():
                size += len(chunk)
            while path == "/hang" and (await receive())["type"] != "http.disconnect":
                pass
            if path == "/deaf":
                await asyncio.sleep(60)
            if path != "/early":
                await answer(send, 200, str(size).encode() if path != "/large" else bytes(LARGE_BYTES))
        except SecurityError as error:
            self.ended.append(error.__class__.__name__)
            await answer(send, 408 if error.__class__.__name__ == "SlowClient" else 400, b"")
        except ClientDisconnect:
            self.ended.append("ClientDisconnect")
        except asyncio.CancelledError:
            self.ended.append("CancelledError")
            raise
        else:
            self.ended.append(path)


async def answer(send: Send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


class Guarded:
    """A running server."""

    def __init__(self, limits: WireLimits = LIMITS, **options: Any) -> None:  # noqa: ANN401 # uvicorn's own
        self.app, self.refused, self.changes = App(), list[str](), list[int]()
        guard = WireGuard(limits, self._render, self.refused.append, self.changes.append)
        config = uvicorn.Config(
            self.app,
            http=guarded_protocol(guard),
            lifespan="off",
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=2,
            **options,
        )
        self._server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        # Connections have it from here: else the kernel takes megabytes at a time, and between two times nothing seems to be read.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: uvloop.run(self._server.serve([listener])))
        self._thread.start()

    def _render(self, code: str, detail: str, target: bytes, headers: object) -> Answer:
        return Answer(STATUSES[code], [(b"x-code", code.encode())], b"", "id")

    def connect(self, **options: Any) -> RawConnection:  # noqa: ANN401 # RawConnection's own
        return RawConnection(self.url, timeout_s=WAIT_S, **options)

    def stop(self) -> None:
        self._server.should_exit = True

    def wait(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def connections(self) -> int:
        return len(self._server.server_state.connections)


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.setattr(wire_guard, "SWEEP_S", 0.05)
    server = Guarded()
    yield server
    server.stop()
    server.wait()


@pytest.fixture
def over_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Guarded, ssl.SSLContext]]:
    """A server with TLS, and what its clients trust."""
    monkeypatch.setattr(wire_guard, "SWEEP_S", 0.05)
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    # An end that hung on how long a body may take would not come within WAIT_S.
    server = Guarded(replace(LIMITS, body_timeout_s=60.0), ssl_certfile=tmp_path / "server.pem")
    yield server, context
    server.stop()
    server.wait()


def test_every_refusal_is_counted_by_its_code(guarded: Guarded) -> None:
    for sent, code in (
        (b"", "silent"),
        (b"GET / HT", "slow_client"),
        (b"GET / HTTP/1.1\r\n\r\n", "malformed_body"),
        (b"GET /" + b"a" * 9000, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 3000 + b"\r\n\r\n", "headers_too_large"),
    ):
        with guarded.connect() as connection:
            connection.send(sent)
            connection.closed_after_s()
        assert guarded.refused[-1] == code
    assert guarded.app.started == []


def test_whatever_ends_or_idles_or_works_again_is_told_once(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_protocol, "_IDLE_S", 0.2)
    with guarded.connect() as idle, guarded.connect() as busy, guarded.connect() as leaving:
        busy.request("POST", "/", "Content-Length: 1")
        for connection in (idle, leaving):
            connection.request("GET", "/")
            connection.answer()
        wait_for(lambda: sum(guarded.changes) == -2)
        idle.request("POST", "/", "Content-Length: 1")
        wait_for(lambda: sum(guarded.changes) == -1)
        leaving.socket.close()
        wait_for(lambda: guarded.connections() == 2)
        assert sum(guarded.changes) == -1
    wait_for(lambda: guarded.connections() == 0)
    assert sum(guarded.changes) == -3


def test_a_connection_that_has_served_may_idle_longer_than_a_new_one(guarded: Guarded) -> None:
    with guarded.connect() as connection, guarded.connect() as silent:
        connection.request("GET", "/")
        assert connection.answer().status == 200
        began_s = time.monotonic()
        silent.closed_after_s()
        assert time.monotonic() - began_s < KEEP_ALIVE_S - 0.3
        connection.closed_after_s()
        assert KEEP_ALIVE_S - 0.3 < time.monotonic() - began_s < WAIT_S


def test_69_empty_lines_do_not_keep_an_idle_connection_open(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.request("GET", "/")
        assert connection.answer().status == 200
        ended_s = time.monotonic() + 3 * KEEP_ALIVE_S
        with contextlib.suppress(ConnectionError):  # closed
            while time.monotonic() < ended_s:
                connection.send(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() < ended_s


def test_in_a_crowd_idle_connections_make_room_first(guarded: Guarded) -> None:
    with guarded.connect() as oldest, guarded.connect() as busy, contextlib.ExitStack() as stack:
        for connection in [oldest, *(stack.enter_context(guarded.connect()) for _ in range(CROWD))]:
            connection.request("GET", "/")
            assert connection.answer().status == 200
        began_s = time.monotonic()
        busy.request("GET", "/later")
        oldest.closed_after_s()
        assert time.monotonic() - began_s < KEEP_ALIVE_S - 0.3
        assert busy.answer().status == 200


def test_a_client_that_does_not_read_its_answer_is_cut_off(guarded: Guarded) -> None:
    with guarded.connect(receive_buffer_bytes=4096) as connection:
        connection.request("GET", "/large")
        wait_for(lambda: guarded.refused == ["unread"])
        wait_for(lambda: not guarded.connections())


@pytest.mark.parametrize("headers", [[], ["Connection: close"]], ids=["keep-alive", "close"])
def test_a_client_that_reads_slowly_but_steadily_gets_its_whole_answer(guarded: Guarded, headers: list[str]) -> None:
    """However long that takes: neither the time for the next request nor that for closing begins before it has been read."""
    with guarded.connect(receive_buffer_bytes=65_536) as connection:
        connection.request("GET", "/large", *headers)
        began_s, received = time.monotonic(), len(connection.socket.recv(65_536).partition(b"\r\n\r\n")[2])
        while received < LARGE_BYTES:
            piece = connection.socket.recv(100_000)
            assert piece, f"cut off after {received} bytes"
            received += len(piece)
            time.sleep(0.04)  # the speed of the line
        assert time.monotonic() - began_s > KEEP_ALIVE_S + LIMITS.body_timeout_s
    assert guarded.refused == []


def test_58_over_tls_little_is_read_of_an_upload_after_its_answer_which_is_seen(over_tls: tuple[Guarded, ssl.SSLContext]) -> None:
    """TLS says goodbye by reading until the other side does: a flood would be decrypted for as long as that is waited for."""
    guarded, context = over_tls
    with guarded.connect() as connection:
        connection.socket = context.wrap_socket(connection.socket, server_hostname="127.0.0.1")
        connection.request("POST", "/early", "Content-Length: 1000000000")
        sent_bytes = 0
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while sent_bytes < 1_000_000_000:
                sent_bytes += connection.socket.send(bytes(65_536))
        assert sent_bytes < MAX_DISCARDED_BYTES + KERNEL_BUFFERS_BYTES
        assert connection.answer().status == 413
    wait_for(lambda: not guarded.connections())


def test_over_tls_a_client_that_does_not_say_goodbye_holds_up_no_end(over_tls: tuple[Guarded, ssl.SSLContext]) -> None:
    guarded, context = over_tls
    with guarded.connect() as connection:
        connection.socket = context.wrap_socket(connection.socket, server_hostname="127.0.0.1")
        connection.request("GET", "/")
        assert connection.answer().status == 200
        assert guarded.connections() == 1
        wait_for(lambda: not guarded.connections())  # it has idled, and reads nothing of it


def test_of_many_pipelined_requests_a_bounded_number_is_served_and_the_connection_ends(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)
        assert [connection.answer().status for _ in range(17)] == [200] * 17
        with pytest.raises(ConnectionClosed):
            connection.answer()
    assert len(guarded.app.started) == 17


def test_pipelined_uploads_in_one_piece_are_told_apart(guarded: Guarded) -> None:
    bodies = [bytes(150_000), bytes(3), bytes(70_000)]
    with guarded.connect() as connection:
        connection.send(
            b"".join(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
                for body in bodies
            )
        )
        assert [int(connection.answer().body) for _ in bodies] == [150_000, 3, 70_000]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tcp_info")
def test_the_head_of_an_answer_and_its_body_are_one_packet(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        for _ in range(9):
            connection.request("POST", "/", "Content-Length: 3", body=b"abc")
            assert connection.answer().body == b"3"
        info = connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        assert struct.unpack_from("I", info, DATA_SEGMENTS_IN_OFFSET) == (9,)


def test_a_body_that_turns_malformed_reaches_the_app_as_an_error(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.request("POST", "/", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\nnonsense\r\n")
        assert connection.answer().status == 400
        assert connection.closed_after_s() < WAIT_S
    assert guarded.app.ended == ["MalformedRequest"]


def test_a_body_that_turns_malformed_after_its_answer_gets_no_second_one(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.request("POST", "/early", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n")
        assert connection.answer().status == 413
        connection.push(100, piece=b"nonsense\r\n")
        with pytest.raises(ConnectionClosed):
            connection.answer()


def test_a_body_that_turns_malformed_while_its_answer_goes_out_ends_the_connection(guarded: Guarded) -> None:
    with guarded.connect(receive_buffer_bytes=4096) as connection:
        connection.request("POST", "/begun", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n")
        guarded.app.running.wait(WAIT_S)
        connection.send(b"nonsense\r\n")
        with pytest.raises(ConnectionClosed):
            connection.answer()


@pytest.mark.parametrize("piece", [b"X: " + b"a" * 60 + b"\r\n", b"a" * 63])
def test_a_head_without_an_end_is_refused_by_its_bytes(guarded: Guarded, piece: bytes) -> None:
    with guarded.connect() as connection:
        connection.send(b"GET / HTTP/1.1\r\n")
        assert connection.push(30_000_000, piece=piece * 1000) < 30_000_000
        assert connection.answer().header("x-code") == "headers_too_large"


def test_chunks_that_are_mostly_frame_and_trailers_without_an_end_are_refused(guarded: Guarded) -> None:
    for start, piece in ((b"", b"1\r\nx\r\n"), (b"3\r\nabc\r\n0\r\n", b"X: " + b"a" * 60 + b"\r\n")):
        with guarded.connect() as connection:
            connection.request("POST", "/", "Transfer-Encoding: chunked", body=start)
            assert connection.push(30_000_000, piece=piece * 100) < 30_000_000
            assert connection.answer().status == 400
    assert guarded.app.ended == ["MalformedRequest"] * 2


@pytest.mark.parametrize("framing", ["Content-Length: 31", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("pause", [False, True])
def test_the_body_of_an_ignored_upgrade_is_no_request(guarded: Guarded, framing: str, pause: bool) -> None:
    body = b"GET /smuggled HTTP/1.1\r\nX: y\r\n\r\n"[:31]
    if "chunked" in framing:
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    with guarded.connect() as connection:
        connection.request("POST", "/", framing, "Connection: Upgrade", "Upgrade: h2c")
        if pause:
            time.sleep(0.1)  # in a packet of its own
        connection.send(body)
        connection.request("GET", "/next")
        assert [connection.answer().body, connection.answer().status] == [b"31", 200]
    assert guarded.app.started == ["/", "/next"]


def test_a_further_head_that_never_ends_costs_the_earlier_request_nothing(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\nGET / HT")
        answer = connection.answer()
        assert (answer.status, guarded.app.started) == (200, ["/later"])
        with pytest.raises(ConnectionClosed):
            connection.answer()


def test_a_client_that_waits_for_100_continue_is_not_too_slow(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.request("POST", "/later", "Content-Length: 3", "Expect: 100-continue")
        assert connection.answer().status == 100
        connection.send(b"abc")
        assert connection.answer().body == b"3"


def test_a_client_of_http_1_0_is_not_invited_to_send_its_body(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.send(b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc")
        answer = connection.answer()
        assert (answer.status, answer.body, answer.header("connection")) == (200, b"3", "close")


def test_what_is_sent_while_a_refused_request_waits_for_its_answer_is_bounded(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n")
        assert connection.push(50_000_000) < 50_000_000
        assert connection.answer().status == 200


def test_the_app_hears_of_a_client_that_leaves_in_its_upload(guarded: Guarded) -> None:
    with guarded.connect() as connection:
        connection.request("POST", "/", "Content-Length: 100", body=b"half")
        guarded.app.running.wait(WAIT_S)
    wait_for(lambda: guarded.app.ended == ["ClientDisconnect"])


@pytest.mark.parametrize("kind", ["stalled", "malformed", "left", "refused head"])
def test_nothing_of_a_refused_request_waits_for_the_garbage_collector(guarded: Guarded, kind: str) -> None:
    def attack() -> None:
        with guarded.connect() as connection:
            if kind == "refused head":
                connection.send(b"GET / HTTP/1.1\r\nX: " + b"a" * 3000 + b"\r\n\r\n")
            elif kind == "malformed":
                connection.request("POST", "/", "Transfer-Encoding: chunked")
                connection.send(b"%x\r\n" % 1_000_000 + bytes(1_000_000) + b"\r\nnonsense\r\n")
            else:
                connection.request("POST", "/", "Content-Length: 2000000", body=bytes(1_000_000))
            if kind != "left":
                connection.answer()
        wait_for(lambda: not guarded.connections())

    attack()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(4):
            attack()
        wait_for(lambda: tracemalloc.get_traced_memory()[0] - before < 200_000)
    finally:
        tracemalloc.stop()
        gc.enable()


def test_shutdown_serves_the_request_that_is_on_its_way_on_an_idle_connection(guarded: Guarded) -> None:
    with guarded.connect() as connection, guarded.connect() as idle:
        connection.request("GET", "/")
        assert connection.answer().status == 200
        guarded.stop()
        time.sleep(0.3)  # the request's way through the network
        connection.request("GET", "/")
        late = connection.answer()
        assert (late.status, late.header("connection")) == (200, "close")
        assert idle.closed_after_s() < LIMITS.drain_s
    guarded.wait()


def test_shutdown_answers_503_for_an_app_that_takes_too_long_and_tells_it(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    with guarded.connect() as connection, caplog.at_level(logging.WARNING):
        connection.request("GET", "/hang")
        guarded.app.running.wait(WAIT_S)
        guarded.stop()
        answer = connection.answer()
        assert (answer.status, answer.header("x-code"), answer.header("connection")) == (503, "not_ready", "close")
        guarded.wait()
    assert guarded.app.ended == ["/hang"]
    assert caplog.records == []


def test_an_app_that_is_cancelled_at_the_end_of_the_grace_period_is_no_error(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    with guarded.connect() as connection, caplog.at_level(logging.WARNING):
        connection.request("GET", "/deaf")
        guarded.app.running.wait(WAIT_S)
        guarded.stop()
        assert connection.answer().status == 503
        guarded.wait()
    assert guarded.app.ended == ["CancelledError"]
    assert [record for record in caplog.records if record.exc_info] == []
