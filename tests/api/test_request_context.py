from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from security.limit_storage import Patience

if TYPE_CHECKING:
    from api.conftest import Gate

Picture = Callable[..., bytes]

_TIMING = re.compile(r"auth;dur=[\d.]+, decode;dur=[\d.]+, queue;dur=0\.25, infer;dur=1\.50")


def _raw(gate: Gate, request: bytes) -> bytes:
    """Send bytes that no well-behaved client would send; return the whole answer."""
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize("given", ["a", "Az09._-", "x" * 64])
def test_a_well_formed_request_id_of_the_caller_is_kept(gate: Gate, given: str) -> None:
    assert gate.http.get("/livez", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "né", "a/b", "${jndi}"])
def test_any_other_request_id_is_replaced(gate: Gate, given: str) -> None:
    answered = gate.http.get("/livez", headers=[(b"X-Request-ID", given.encode())]).headers["x-request-id"]

    assert re.fullmatch(r"[0-9a-f]{32}", answered)


def test_two_request_ids_are_replaced_by_one_of_ours(gate: Gate) -> None:
    response = gate.http.get("/livez", headers=[("X-Request-ID", "one"), ("X-Request-ID", "two")])

    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/livez", 200), ("GET", "/nowhere", 401), ("GET", "/oauth2/token", 405), ("POST", "/predict", 401), ("GET", "/docs", 200)],
)
def test_every_answer_has_an_id_and_the_common_headers(gate: Gate, method: str, path: str, status: int) -> None:
    response = gate.http.request(method, path)

    assert response.status_code == status
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", response.headers["traceparent"])
    assert response.headers["cache-control"] == "no-store"
    assert "server" not in response.headers


def test_a_prediction_tells_where_its_time_went(gate: Gate, picture: Picture) -> None:
    response = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"})

    assert _TIMING.fullmatch(response.headers["server-timing"])


def test_a_refused_prediction_tells_the_stages_that_it_reached(gate: Gate) -> None:
    response = gate.predict(content=b"no picture", headers={"Content-Type": "image/jpeg"})

    assert re.fullmatch(r"auth;dur=[\d.]+", response.headers["server-timing"])


def test_the_log_line_of_a_prediction_says_who_what_and_how_long(gate: Gate, picture: Picture) -> None:
    data = picture(size=(48, 40))
    response = gate.predict(content=data, headers={"Content-Type": "image/jpeg"})

    line = gate.log.request(response)
    assert {name: line[name] for name in ("method", "route", "path", "status", "client_id", "scopes", "client_address", "level")} == {
        "method": "POST",
        "route": "/predict",
        "path": "/predict",
        "status": 200,
        "client_id": gate.clients["camera"].client_id,
        "scopes": ["predict"],
        "client_address": "127.0.0.1",
        "level": "info",
    }
    assert (line["image_format"].lower(), line["image_width"], line["image_height"]) == ("jpeg", 48, 40)
    assert (line["model"], line["batch_size"], line["images"]) == ("colours", 1, 1)
    assert (line["queue_ms"], line["infer_ms"]) == (0.25, 1.5)
    assert (line["bytes_in"], line["bytes_out"]) == (len(data), len(response.content))
    assert line["duration_ms"] >= line["decode_ms"] > 0
    assert line["auth_ms"] > 0
    assert (line["digest"], line["engine"], line["tier"]) == (gate.model.INFO.digest, "engine-0", "standard")
    assert (line["process"], line["pid"]) == ("api-0", os.getpid())


def test_requests_of_one_connection_are_told_apart_in_the_log_even_after_its_reading_was_paused(gate: Gate) -> None:
    long = gate.predict(content=b"x" * 200_000, headers={"Content-Type": "image/jpeg"})
    next_ones = [gate.http.get("/livez") for _ in range(2)]

    for response, route in ((long, "/predict"), *((one, "/livez") for one in next_ones)):
        line = gate.log.request(response)
        assert (line["route"], line["status"]) == (route, response.status_code)
    assert len({response.headers["x-request-id"] for response in (long, *next_ones)}) == 3


def test_the_log_line_of_a_refusal_has_the_problem_code(gate: Gate) -> None:
    response = gate.http.get("/models", headers={"Authorization": "Bearer nonsense"})

    line = gate.log.request(response)
    assert (line["status"], line["code"], line["cause"]) == (401, "invalid_token", "malformed")


def test_the_log_line_of_a_limit_that_was_hit_names_it(gate: Gate) -> None:
    gate.clients["greedy"] = client = gate.run(gate.services.registry.create("greedy", ["predict"]))
    tier = gate.services.tiers.get("standard")
    gate.run(gate.services.rates.take(tier.quota, f"standard/{client.client_id}", tier.quota.amount, Patience()))

    line = gate.log.request(gate.http.get("/models", headers={"Authorization": f"Bearer {gate.token('greedy')}"}))
    assert (line["status"], line["code"], line["limit"], line["tier"]) == (429, "rate_limited", "images", "standard")


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_trace_of_the_callers_is_taken_up_logged_and_answered(gate: Gate, flags: str) -> None:
    response = gate.http.get("/livez", headers={"traceparent": f"00-{TRACE}-{SPAN}-{flags}", "tracestate": "a=1"})

    line = gate.log.request(response)
    assert (line["trace_id"], line["span_id"] == SPAN) == (TRACE, False)
    assert response.headers["traceparent"] == f"00-{TRACE}-{line['span_id']}-{flags}"
    assert "tracestate" not in response.headers


@pytest.mark.parametrize(
    "given",
    [[], [f"00-{'0' * 32}-{SPAN}-01"], [f"00-{TRACE}-{SPAN}-01"] * 2, ["${jndi:ldap://x}"], [f"00-{TRACE}-{SPAN}-01-more"]],
    ids=["none", "zeros", "two", "injection", "more behind it"],
)
def test_without_one_good_traceparent_a_new_trace_begins(gate: Gate, given: list[str]) -> None:
    response = gate.http.get("/livez", headers=[(b"traceparent", value.encode()) for value in given])

    line = gate.log.request(response)
    assert response.headers["traceparent"] == f"00-{line['trace_id']}-{line['span_id']}-00"
    assert line["trace_id"] != TRACE


def test_what_is_logged_while_a_request_is_served_names_its_trace(gate: Gate, picture: Picture) -> None:
    gate.model.failure = RuntimeError("nobody expects this")
    response = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg", "traceparent": f"00-{TRACE}-{SPAN}-01"})

    wanted = response.headers["x-request-id"]
    line = gate.log.wait_for(lambda line: line["event"] == "internal_error" and line["request_id"] == wanted)
    assert line["trace_id"] == TRACE


def test_one_request_writes_one_log_line(gate: Gate) -> None:
    response = gate.http.get("/nowhere/at/all")
    gate.log.request(response)

    assert len([line for line in gate.log.lines() if line.get("request_id") == response.headers["x-request-id"]]) == 1


def test_an_unknown_path_is_logged_as_unmatched_and_cut(gate: Gate) -> None:
    line = gate.log.request(gate.http.get("/" + "a" * 1000))

    assert (line["route"], line["path"]) == ("unmatched", "/" + "a" * 255)


def test_attack_102_control_characters_in_the_path_make_one_json_line(gate: Gate) -> None:
    response = gate.http.get("/a%0D%0A%1B%5B31m%00%C2%9B%E2%80%AEb")

    assert gate.log.request(response)["path"] == r"/a\r\n\x1b[31m\x00\x9b\u202eb"
    assert "\x1b" not in gate.log.text


def test_attack_102_control_characters_in_a_file_name_are_not_logged(gate: Gate, picture: Picture) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a\x1b[31m"\r\n\r\n' + picture() + b"\r\n--x--\r\n"
    response = gate.predict(content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})

    assert gate.log.request(response)["status"] == response.status_code
    assert "\x1b" not in gate.log.text
    assert "[31m" not in str(gate.log.request(response))


def test_attack_22_a_token_in_the_query_is_401_and_in_no_log(gate: Gate) -> None:
    token = gate.token()
    response = gate.http.get(f"/models?access_token={token}")

    assert (response.status_code, response.json()["code"]) == (401, "missing_token")
    gate.log.request(response)
    assert token not in gate.log.text


def test_attack_104_no_token_and_no_secret_is_ever_logged(gate: Gate, picture: Picture) -> None:
    client = gate.clients["camera"]
    token = gate.token()
    responses = [
        gate.http.post("/oauth2/token", data={"client_id": client.client_id, "client_secret": client.client_secret}),
        gate.http.post(f"/oauth2/token?client_secret={client.client_secret}"),
        gate.http.post("/oauth2/token", content=client.client_secret, headers={"Content-Type": "application/json"}),
        gate.http.post("/predict", content=picture(), headers={"Authorization": f"Bearer {token}", "Content-Type": "text/plain"}),
        gate.http.get("/models", headers={"Authorization": f"Bearer {token}x"}),
    ]
    for response in responses:
        gate.log.request(response)
        assert response.status_code >= 400
        assert client.client_secret not in response.text

    assert client.client_secret not in gate.log.text
    assert token not in gate.log.text
    assert token.rsplit(".", 1)[1] not in gate.log.text


def test_a_client_that_leaves_during_its_upload_is_no_error(gate: Gate) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gate.token()}\r\nX-Request-ID: half-upload\r\n"
    with socket.create_connection(("127.0.0.1", gate.port)) as connection:
        connection.sendall(head.encode() + b"Content-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\nhalf")

    line = gate.log.wait_for(lambda line: line.get("request_id") == "half-upload")
    assert (line["event"], line["status"], line["level"]) == ("request", 499, "info")


def test_a_bad_host_header_does_not_change_what_path_is_guarded(gate: Gate) -> None:
    answer = _raw(gate, b"GET /models HTTP/1.1\r\nHost: x/livez?\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 401 ")
