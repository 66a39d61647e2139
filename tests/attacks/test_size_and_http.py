"""Cases 55 to 66 and their neighbours: sizes, framing, and what is no HTTP."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import pytest

from support.raw_http import ConnectionClosed, RawAnswer, RawConnection
from support.service import Service

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_READ_AFTER_ANSWER_BYTES = 1024 * 1024
KERNEL_BUFFERS_BYTES = 12 * 1024 * 1024
"""What the two sockets of a loopback connection may hold that nobody has read."""
PICTURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def busy_gate(start_gate: Callable[..., Service]) -> Service:
    """A gate with a tier that is used up at once."""
    tiers = {"standard": {"images": "1000/minute", "in_flight": 16}, "tiny": {"images": "1/hour", "in_flight": 16}}
    return start_gate({"LENSGATE_SECURITY__TIERS": json.dumps(tiers)})


def exchange(service: Service, method: str, target: str, *headers: str, body: bytes = b"", host: bool = True) -> RawAnswer:
    with RawConnection(service.url) as connection:
        connection.request(method, target, *headers, body=body, host=host)
        return connection.answer()


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


def worker_of(service: Service) -> psutil.Process:
    (worker,) = service.children("api.worker_process")
    return worker


def read_bytes(worker: psutil.Process) -> int:
    return int(worker.io_counters().read_chars)


def assert_closed(connection: RawConnection) -> None:
    assert connection.closed_after_s() < 10


def use_up(service: Service, token: str) -> None:
    """Ask until the limit says no: a new client's tier is known within the poll's stated staleness."""
    deadline_s = time.monotonic() + 30
    while service.predict(PICTURE, token).status_code != 429:
        assert time.monotonic() < deadline_s


# 55 to 58: bodies


def test_055_a_declared_length_of_one_byte_too_many_gets_413_before_the_body_is_sent(gate: Service, token: str) -> None:
    with RawConnection(gate.url) as connection:
        connection.request("POST", "/predict", bearer(token), "Content-Type: image/png", f"Content-Length: {MAX_BODY_BYTES + 1}")
        answer = connection.answer()
        assert (answer.status, answer.problem()["code"]) == (413, "body_too_large")
        assert answer.header("connection") == "close"
        assert_closed(connection)


def test_055_an_absurd_declared_length_is_refused(gate: Service, token: str) -> None:
    for length, status in (("9" * 18, 413), ("9" * 19, 413), ("9" * 40, 400), ("0" * 5000 + "5", 400)):
        assert exchange(gate, "POST", "/predict", bearer(token), "Content-Type: image/png", f"Content-Length: {length}").status == status


def test_055_expect_100_continue_is_answered_with_the_refusal_and_no_invitation(gate: Service, token: str) -> None:
    expect = "Expect: 100-continue"
    too_long = f"Content-Length: {MAX_BODY_BYTES + 1}"
    for headers, status in (([bearer(token), too_long], 413), (["Content-Length: 2000"], 401)):
        with RawConnection(gate.url) as connection:
            connection.request("POST", "/predict", "Content-Type: image/png", expect, *headers)
            answer = connection.answer()
            # What would come next on this connection, a body or a request, nobody could tell.
            assert (answer.status, answer.header("connection")) == (status, "close")
            assert_closed(connection)


def test_055_expect_100_continue_of_an_honest_client_is_invited(
    gate: Service, token: str, photographs_by_name: Mapping[str, bytes]
) -> None:
    picture = photographs_by_name["coffee.png"]
    with RawConnection(gate.url) as connection:
        length = f"Content-Length: {len(picture)}"
        connection.request("POST", "/predict", bearer(token), "Content-Type: image/png", "Expect: 100-continue", length)
        assert connection.answer().status == 100
        connection.send(picture)
        answer = connection.answer()
    assert (answer.status, json.loads(answer.body)["label"]) == (200, "espresso")


def test_056_a_chunked_body_of_one_byte_too_many_gets_413(gate: Service, token: str) -> None:
    with RawConnection(gate.url) as connection:
        connection.request("POST", "/predict", bearer(token), "Content-Type: image/png", "Transfer-Encoding: chunked")
        for length in (MAX_BODY_BYTES, 1):
            connection.send(b"%x\r\n" % length + b"x" * length + b"\r\n")
        answer = connection.answer()
        assert (answer.status, answer.problem()["code"]) == (413, "body_too_large")
        assert_closed(connection)


@pytest.mark.parametrize("chunked", [False, True])
def test_057_a_body_of_exactly_the_limit_is_read(gate: Service, token: str, chunked: bool) -> None:
    body = PICTURE + bytes(MAX_BODY_BYTES - len(PICTURE))
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {MAX_BODY_BYTES}"
    if chunked:
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    answer = exchange(gate, "POST", "/predict", bearer(token), "Content-Type: image/png", framing, body=body)
    assert (answer.status, answer.problem()["code"]) == (422, "invalid_image")


@pytest.mark.parametrize("why", ["401", "413", "429"])
@pytest.mark.parametrize("chunked", [False, True])
def test_058_of_200_mb_after_a_refusal_at_most_1_mb_is_read_and_the_answer_is_seen(busy_gate: Service, why: str, chunked: bool) -> None:
    token = busy_gate.token(busy_gate.create_client(f"flood-{why}-{chunked}", tier="tiny" if why == "429" else "standard"))
    if why == "429":
        use_up(busy_gate, token)
    worker, total_bytes = worker_of(busy_gate), 200_000_000
    size = MAX_BODY_BYTES - 1 if why == "429" and not chunked else total_bytes
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    before_bytes = read_bytes(worker)
    with RawConnection(busy_gate.url) as connection:
        authorization = [] if why == "401" else [bearer(token)]
        connection.request("POST", "/predict", *authorization, "Content-Type: image/png", framing)
        if chunked:
            connection.send(b"%x\r\n" % total_bytes)
        sent_bytes = connection.push(total_bytes)
        answer = connection.answer()
        assert answer.status == int(why)
        assert answer.header("connection") == "close"
        assert answer.problem()["code"]
    # A chunked body is only known to be too large once the limit has been read.
    allowed_bytes = MAX_READ_AFTER_ANSWER_BYTES + (MAX_BODY_BYTES if why == "413" and chunked else 0)
    slack_bytes = 512 * 1024  # one read of the event loop, and what else the worker reads meanwhile
    assert read_bytes(worker) - before_bytes <= allowed_bytes + slack_bytes
    assert sent_bytes <= allowed_bytes + KERNEL_BUFFERS_BYTES


def test_058_a_small_rest_is_read_and_the_connection_serves_on(gate: Service) -> None:
    with RawConnection(gate.url) as connection:
        connection.request("POST", "/predict", "Content-Type: image/png", "Content-Length: 500000", body=b"x" * 1000)
        refused = connection.answer()
        assert refused.status == 401
        assert "connection" not in refused.headers
        connection.send(b"x" * 499_000)
        connection.request("GET", "/livez")
        assert connection.answer().status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "identity, gzip"])
def test_060_a_compressed_body_gets_415_undecoded(gate: Service, token: str, coding: str) -> None:
    body = gzip.compress(bytes(1_000_000))
    headers = [bearer(token), "Content-Type: image/png", f"Content-Encoding: {coding}", f"Content-Length: {len(body)}"]
    answer = exchange(gate, "POST", "/predict", *headers, body=body)
    assert (answer.status, answer.problem()["code"]) == (415, "unsupported_media_type")


# 61 to 65: heads


def flood_of_headers(kind: str) -> tuple[bytes, bytes]:
    """What begins the head, and what is sent again and again."""
    return {
        "many": (b"", b"X-Filler: " + b"a" * 90 + b"\r\n"),
        "one without an end": (b"X-Filler: ", b"a" * 4096),
        "a name without an end": (b"", b"a" * 4096),
        "empty lines before the request": (b"\r\n", b"\r\n" * 2048),
    }[kind]


@pytest.mark.parametrize("kind", ["many", "one without an end", "a name without an end", "empty lines before the request"])
def test_061_20_mb_of_headers_get_431_and_take_no_memory(gate: Service, kind: str) -> None:
    worker = worker_of(gate)
    first, piece = flood_of_headers(kind)

    def flood() -> RawAnswer:
        with RawConnection(gate.url) as connection:
            start = b"" if kind.startswith("empty") else f"GET /livez HTTP/1.1\r\nHost: {connection.host}\r\n".encode()
            connection.send(start + first)
            assert connection.push(20_000_000, piece=piece) < 20_000_000
            return connection.answer()

    flood()  # what the interpreter allocates once
    before_bytes = worker.memory_info().rss
    answers = [flood() for _ in range(3)]
    assert worker.memory_info().rss - before_bytes < 1_000_000
    assert {(answer.status, answer.problem()["code"]) for answer in answers} == {(431, "headers_too_large")}


def test_061_headers_of_exactly_the_limits_are_read(gate: Service) -> None:
    with RawConnection(gate.url) as connection:
        room = 16 * 1024 - len(f"Host: {connection.host}\r\n") - len("X: \r\n")
        connection.request("GET", "/livez", "X: " + "a" * room)
        assert connection.answer().status == 200
        connection.request("GET", "/livez", *["X: a"] * 99)
        assert connection.answer().status == 200


@pytest.mark.parametrize("headers", [["X: a"] * 100, ["X: " + "a" * 16 * 1024], ["X" * 16 * 1024 + ": a"]])
def test_061_one_header_or_one_byte_too_many_gets_431(gate: Service, headers: list[str]) -> None:
    answer = exchange(gate, "GET", "/livez", *headers)
    assert (answer.status, answer.problem()["code"]) == (431, "headers_too_large")


def test_062_trailers_are_no_headers_and_are_bounded(gate: Service, token: str) -> None:
    body = b"1\r\nx\r\n0\r\n" + bearer(token).encode() + b"\r\n\r\n"
    assert exchange(gate, "POST", "/predict", "Content-Type: image/png", "Transfer-Encoding: chunked", body=body).status == 401
    with RawConnection(gate.url) as connection:
        connection.request("POST", "/predict", bearer(token), "Content-Type: image/png", "Transfer-Encoding: chunked")
        connection.send(b"1\r\nx\r\n0\r\n")
        assert connection.push(20_000_000, piece=b"X-Filler: " + b"a" * 90 + b"\r\n") < 20_000_000
        assert connection.answer().status == 400


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"1;" + b"e" * 4000 + b"\r\nx\r\n"])
def test_063_chunks_that_are_mostly_frame_are_refused(gate: Service, token: str, chunk: bytes) -> None:
    with RawConnection(gate.url) as connection:
        connection.request("POST", "/predict", bearer(token), "Content-Type: image/png", "Transfer-Encoding: chunked")
        assert connection.push(20_000_000, piece=chunk * (65_536 // len(chunk))) < 20_000_000
        answer = connection.answer()
    assert (answer.status, answer.problem()["code"]) == (400, "malformed_body")


def test_064_a_url_of_100_kb_gets_414(gate: Service) -> None:
    for target in ("/" + "a" * 100_000, "/livez?" + "a" * 100_000):
        answer = exchange(gate, "GET", target)
        assert (answer.status, answer.problem()["code"]) == (414, "uri_too_long")
    assert exchange(gate, "GET", "/livez?" + "a" * (8 * 1024 - 7)).status == 200
    assert exchange(gate, "GET", "/livez?" + "a" * (8 * 1024 - 6)).status == 414


# 65: requests that two readers could understand in two ways

SMUGGLING = {
    "length and chunked": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "chunked and length": ["Transfer-Encoding: chunked", "Content-Length: 5"],
    "two lengths": ["Content-Length: 5", "Content-Length: 5"],
    "two different lengths": ["Content-Length: 5", "Content-Length: 6"],
    "a list of lengths": ["Content-Length: 5, 5"],
    "a signed length": ["Content-Length: +5"],
    "a negative length": ["Content-Length: -5"],
    "a hexadecimal length": ["Content-Length: 0x5"],
    "an empty length": ["Content-Length: "],
    "a length in two parts": ["Content-Length: 5 5"],
    "another coding": ["Transfer-Encoding: gzip, chunked"],
    "an unknown coding": ["Transfer-Encoding: xchunked"],
    "identity": ["Transfer-Encoding: identity"],
    "chunked twice": ["Transfer-Encoding: chunked, chunked"],
    "two codings": ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    "a coding behind a control character": ["Transfer-Encoding:\x0bchunked"],
    "a space before the colon": ["Transfer-Encoding : chunked"],
    "a folded header": ["X: a\r\n b"],
    "a header line that begins with a space": [" X: a"],
    "a carriage return alone": ["X: a\rY: b"],
    "a line feed alone": ["X: a\nY: b"],
    "a null character": ["X: a\x00b"],
    "no name": [": a"],
    "two hosts": ["Host: other.example"],
}


@pytest.mark.parametrize("headers", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_065_an_ambiguous_request_gets_400_and_the_connection_ends(gate: Service, headers: list[str]) -> None:
    with RawConnection(gate.url) as connection:
        connection.request("POST", "/livez", *headers, body=b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = connection.answer()
        assert (answer.status, answer.problem()["code"]) == (400, "malformed_body")
        assert answer.header("connection") == "close"
        with pytest.raises(ConnectionClosed):
            connection.answer()


HEADS = {
    "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", 400),
    "an empty Host": (b"GET /livez HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "a Host with a path": (b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a Host with a user": (b"GET /livez HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "a Host with two ports": (b"GET /livez HTTP/1.1\r\nHost: a:1:2\r\n\r\n", 400),
    "a Host of two": (b"GET /livez HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "a Host in IPv6": (b"GET /livez HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
    "HTTP/1.0 without a Host": (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", 400),
    "HTTP/1.2": (b"GET /livez HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "HTTP/2.0": (b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n", 400),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/1.0, chunked": (b"POST /livez HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "an absolute target": (b"GET http://other.example/livez HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    "an absolute target without a path": (b"GET http://other.example HTTP/1.1\r\nHost: a\r\n\r\n", 401),
    "an absolute target with a user": (b"GET http://u@a/livez HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an absolute target of another scheme": (b"GET ftp://a/livez HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an absolute target without a host": (b"GET http:///livez HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a fragment": (b"GET /livez#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an unknown method": (b"FOO /livez HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a method in lower case": (b"get /livez HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a space in the target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "raw UTF-8 in the target": ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "line feeds only": (b"GET /livez HTTP/1.1\nHost: a\n\n", 400),
    "TLS on the port for HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    "Redis": (b"*1\r\n$4\r\nPING\r\n", 400),
}


@pytest.mark.parametrize(("head", "status"), HEADS.values(), ids=HEADS.keys())
def test_065_every_odd_head_has_one_answer(gate: Service, head: bytes, status: int) -> None:
    with RawConnection(gate.url) as connection:
        connection.send(head)
        answer = connection.answer()
    assert answer.status == status
    if status == 400:
        assert answer.problem()["code"] == "malformed_body"
        assert answer.header("cache-control") == "no-store"


def test_065_a_refusal_keeps_the_callers_request_id_is_logged_once_and_echoes_nothing(gate: Service) -> None:
    after = len(gate.log)
    answer = exchange(gate, "GET", "/livez", "X-Request-ID: wire-1", "X-Secret: hunter2", "Host: \x1b[31m@evil", host=False)
    assert (answer.status, answer.header("x-request-id")) == (400, "wire-1")
    line = gate.wait_for("request_refused", after=after, request_id="wire-1")
    assert (line["code"], line["reason"], line["client_address"]) == ("malformed_body", "syntax", "127.0.0.1")
    assert b"evil" not in answer.body
    assert not [raw for raw in gate.raw_log[after:] if "hunter2" in raw or "evil" in raw or "\x1b" in raw]


def test_065_a_refusal_under_oauth2_has_oauths_shape(gate: Service) -> None:
    answer = exchange(gate, "POST", "/oauth2/token", "X: " + "a" * 20_000)
    body: dict[str, Any] = json.loads(answer.body)
    assert (answer.status, set(body), body["error"]) == (431, {"error", "error_description"}, "invalid_request")


def test_065_an_earlier_request_is_answered_before_a_malformed_one_ends_the_connection(gate: Service) -> None:
    with RawConnection(gate.url) as connection:
        connection.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n")
        assert connection.answer().status == 200
        with pytest.raises(ConnectionClosed):
            connection.answer()


def test_065_an_upgrade_is_ignored_and_its_body_is_a_body(gate: Service, token: str, photographs_by_name: Mapping[str, bytes]) -> None:
    upgrade = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    picture = photographs_by_name["coffee.png"]
    with RawConnection(gate.url) as connection:
        # As Java's own client sends its first request over plain HTTP; llhttp takes what follows such a head for another protocol.
        connection.request(
            "POST", "/predict", bearer(token), "Content-Type: image/png", f"Content-Length: {len(picture)}", *upgrade, body=picture
        )
        answer = connection.answer()
        assert (answer.status, json.loads(answer.body)["label"]) == (200, "espresso")
        connection.request("GET", "/livez", "Connection: Upgrade", "Upgrade: websocket")
        assert connection.answer().status == 200
        smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        connection.request("POST", "/livez", f"Content-Length: {len(smuggled)}", *upgrade, body=smuggled)
        assert connection.answer().status == 405
        connection.request("GET", "/livez")
        assert connection.answer().status == 200


def test_066_two_file_parts_on_predict_get_400(gate: Service, token: str) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + PICTURE + b"\r\n"
    for count in (2, 3, 20):
        body = part * count + b"--b--\r\n"
        headers = [bearer(token), "Content-Type: multipart/form-data; boundary=b", f"Content-Length: {len(body)}"]
        answer = exchange(gate, "POST", "/predict", *headers, body=body)
        assert (answer.status, answer.problem()["code"]) == (400, "malformed_body")
