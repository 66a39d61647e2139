"""Rate limits (38, 39, 53, 93 to 101): the real gate with small limits, from several addresses of loopback."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from http.client import HTTPConnection
from itertools import count
from typing import Any, Final, NamedTuple

import httpx
import pytest

from security.client_records import CreatedClient
from security.clients import ClientRegistry
from security.database import Database
from support.oauth import operate
from support.redis_server import RedisServer, redis_server
from support.service import Service

ADDRESS_LIMIT: Final = 100
IMAGES: Final = 12
_FORM: Final = {"grant_type": "client_credentials"}
_hosts = iter(range(2, 250))
_names = count()


@pytest.fixture(scope="module")
def limited(start_gate: Callable[..., Service]) -> Service:
    """One worker, limits that a test can use up, and a trusted proxy at 127.0.0.250."""
    return start_gate(
        {
            "LENSGATE_HTTP__ADDRESS_LIMIT": f"{ADDRESS_LIMIT}/hour",
            "LENSGATE_HTTP__TRUSTED_PROXIES": "127.0.0.250",
            "LENSGATE_HTTP__CORS_ORIGINS": "https://app.example.com",
            "LENSGATE_SECURITY__TIERS": json.dumps(
                {
                    "standard": {"images": f"{IMAGES}/hour", "in_flight": 2},
                    "gold": {"images": "40/hour", "in_flight": 8},
                    "edge": {"images": "10/10 seconds", "in_flight": 8},
                }
            ),
        }
    )


@pytest.fixture
def caller(limited: Service) -> Iterator[httpx.Client]:
    """A caller with an address that no other test has."""
    with caller_at(limited, f"127.0.0.{next(_hosts)}") as client:
        yield client


def caller_at(service: Service, address: str) -> httpx.Client:
    return httpx.Client(
        base_url=service.url, transport=httpx.HTTPTransport(verify=False, local_address=address), headers={"x-address": address}, timeout=30
    )


def new_client(service: Service, tier: str = "standard") -> dict[str, Any]:
    """As `lensgate clients create` makes one, without starting a process for each of many."""

    async def create() -> CreatedClient:
        database = Database(f"sqlite+aiosqlite:///{service.folder}/lensgate.db")
        try:
            return await ClientRegistry(database).create(f"limited-{next(_names)}", ["predict"], tier)
        finally:
            await database.aclose()

    return asdict(asyncio.run(create()))


def get_token(caller: httpx.Client, client: dict[str, Any]) -> str:
    answer = caller.post("/oauth2/token", data=_FORM, auth=(client["client_id"], client["client_secret"]))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def statuses(caller: httpx.Client, count: int, path: str = "/nowhere", **request: Any) -> list[int]:  # noqa: ANN401 # httpx's own arguments
    return [caller.get(path, **request).status_code for _ in range(count)]


def assert_limited(answer: httpx.Response) -> None:
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "rate_limited"
    assert answer.headers["retry-after"].isdigit()
    assert int(answer.headers["retry-after"]) >= 1


def test_093_the_request_after_the_last_one_is_refused_and_told_when_to_come_back(caller: httpx.Client) -> None:
    assert set(statuses(caller, ADDRESS_LIMIT)) == {401}
    answer = caller.get("/nowhere")
    assert_limited(answer)
    assert answer.headers["ratelimit-policy"] == f'"address";q={ADDRESS_LIMIT};w=3600'
    assert answer.headers["ratelimit"] == f'"address";r=0;t={answer.headers["retry-after"]}'


def test_093_a_client_is_limited_by_its_tier_and_told_what_is_left(limited: Service, caller: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {get_token(caller, new_client(limited))}"}
    answer = caller.get("/models", headers=bearer)
    assert answer.status_code == 200
    assert answer.headers["ratelimit-policy"] == f'"images";q={IMAGES};w=3600, "address";q={ADDRESS_LIMIT};w=3600'
    assert answer.headers["ratelimit"].startswith(f'"images";r={IMAGES - 1};t=')
    assert set(statuses(caller, IMAGES - 1, "/models", headers=bearer)) == {200}
    assert_limited(caller.get("/models", headers=bearer))


def test_094_x_forwarded_for_of_a_stranger_is_ignored(caller: httpx.Client) -> None:
    invented = [
        caller.get("/nowhere", headers={"X-Forwarded-For": f"203.0.113.{number}"}).status_code for number in range(ADDRESS_LIMIT + 5)
    ]
    assert invented.count(429) == 5


def test_094_behind_a_trusted_proxy_each_caller_has_its_own_limit_and_cannot_choose_another(limited: Service) -> None:
    with caller_at(limited, "127.0.0.250") as proxy:
        loud = [
            proxy.get("/nowhere", headers={"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.5"}).status_code
            for number in range(ADDRESS_LIMIT + 5)
        ]
        assert loud.count(429) == 5
        assert proxy.get("/nowhere", headers={"X-Forwarded-For": "203.0.113.6"}).status_code == 401
        # IPv6 callers have a /64 each.
        answers = [proxy.get("/nowhere", headers={"X-Forwarded-For": f"2001:db8::{n:x}"}).headers["ratelimit"] for n in range(2)]
        assert [f"r={ADDRESS_LIMIT - 1};" in answers[0], f"r={ADDRESS_LIMIT - 2};" in answers[1]] == [True, True]
        line = limited.wait_for("request", client_address="203.0.113.6")
        assert line["status"] == 401


def test_097_every_route_is_limited_and_the_probes_have_a_bucket_of_their_own(limited: Service, caller: httpx.Client) -> None:
    paths = limited.get("/openapi.json").json()["paths"]
    statuses(caller, ADDRESS_LIMIT)
    probes = {"/livez", "/readyz", "/healthz"}
    routes = [(method, path) for path, methods in paths.items() for method in methods if path not in probes]
    for method, path in [
        *routes,
        ("get", "/docs"),
        ("get", "/openapi.json"),
        ("get", "/static/swagger-ui.css"),
        ("put", "/predict"),
        ("get", "/"),
    ]:
        assert caller.request(method, path).status_code == 429, path
    assert statuses(caller, 3, "/livez") == statuses(caller, 3, "/readyz") == [200] * 3
    assert caller.get("/livez").headers["ratelimit"].startswith('"probes";')
    assert 429 in statuses(caller, ADDRESS_LIMIT, "/healthz")


def test_097_a_refusal_under_oauth_has_the_shape_of_oauth(caller: httpx.Client) -> None:
    statuses(caller, ADDRESS_LIMIT)
    answer = caller.post("/oauth2/token", data=_FORM)
    assert (answer.status_code, answer.json()["error"]) == (429, "temporarily_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def test_093_another_tier_has_other_limits_in_a_bucket_of_its_own(limited: Service, caller: httpx.Client) -> None:
    # From its first request on, although the registry is polled.
    answer = caller.get("/models", headers={"Authorization": f"Bearer {get_token(caller, new_client(limited, 'gold'))}"})
    assert answer.headers["ratelimit-policy"].startswith('"images";q=40;')
    assert answer.headers["ratelimit"].startswith('"images";r=39;')


def test_093_another_tier_holds_within_the_poll_for_a_token_that_is_out_there(limited: Service, caller: httpx.Client) -> None:
    client = new_client(limited)
    bearer = {"Authorization": f"Bearer {get_token(caller, client)}"}
    assert f'"images";q={IMAGES};' in caller.get("/nowhere", headers=bearer).headers["ratelimit-policy"]
    operate(limited, "clients", "set-tier", client["client_id"], "gold")
    deadline_s = time.monotonic() + 20
    while '"images";q=40;' not in caller.get("/nowhere", headers=bearer).headers["ratelimit-policy"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


def test_098_two_tokens_of_one_client_share_a_bucket(limited: Service, caller: httpx.Client) -> None:
    client = new_client(limited)
    one, two = get_token(caller, client), get_token(caller, client)
    assert one != two
    answers = [caller.get("/models", headers={"Authorization": f"Bearer {token}"}) for token in (one, two) * 7]
    assert [answer.status_code for answer in answers] == [200] * IMAGES + [429] * (14 - IMAGES)


def test_098_another_client_at_the_same_address_is_not_touched(limited: Service, caller: httpx.Client) -> None:
    loud, quiet = (get_token(caller, new_client(limited)) for _ in range(2))
    assert 429 in statuses(caller, IMAGES + 1, "/models", headers={"Authorization": f"Bearer {loud}"})
    assert caller.get("/models", headers={"Authorization": f"Bearer {quiet}"}).status_code == 200


def test_099_another_path_or_query_is_the_same_bucket(limited: Service, caller: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {get_token(caller, new_client(limited))}"}
    for number in range(IMAGES):
        path = ("/models", f"/models?{number}", f"/nowhere/{number}", "/MODELS")[number % 4]
        assert caller.get(path, headers=bearer).status_code in {200, 404}
    assert caller.get("/models?fresh", headers=bearer).status_code == 429


def test_100_around_the_edge_of_a_window_hardly_more_than_the_limit_gets_through(limited: Service, caller: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {get_token(caller, new_client(limited, 'edge'))}"}
    # Windows turn at multiples of their width of the monotonic clock, which is one for the whole machine.
    edge_s = (time.monotonic() // 10 + 2) * 10
    time.sleep(max(0.0, edge_s - 1 - time.monotonic()))
    before = statuses(caller, 15, headers=bearer).count(404)
    time.sleep(max(0.0, edge_s + 0.05 - time.monotonic()))
    after = statuses(caller, 25, headers=bearer).count(404)
    assert before + after <= 10 + 2 + max(0.0, time.monotonic() - edge_s)  # one a second becomes free as the old window fades


def test_101_the_refusal_goes_out_before_the_body_is_read(limited: Service, caller: httpx.Client) -> None:
    token = get_token(caller, new_client(limited))
    bearer = {"Authorization": f"Bearer {token}"}
    statuses(caller, IMAGES, "/models", headers=bearer)
    host, port = limited.url.removeprefix("http://").split(":")
    address = caller.headers["x-address"]

    def first_line(authorization: str) -> bytes:
        with socket.create_connection((host, int(port)), timeout=10, source_address=(address, 0)) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: gate\r\n{authorization}Content-Type: image/png\r\nContent-Length: 1000000\r\n\r\n"
            connection.sendall(head.encode())  # and not one byte of the body
            return connection.recv(65536).partition(b"\r\n")[0]

    assert first_line(f"Authorization: Bearer {token}\r\n") == b"HTTP/1.1 429 Too Many Requests"
    statuses(caller, ADDRESS_LIMIT)
    assert first_line("") == b"HTTP/1.1 429 Too Many Requests"


def test_093_a_batch_takes_one_unit_for_each_picture_and_nothing_is_run_when_it_is_refused(
    limited: Service, caller: httpx.Client, photographs_by_name: dict[str, bytes]
) -> None:
    bearer = {"Authorization": f"Bearer {get_token(caller, new_client(limited))}"}
    picture = photographs_by_name["chelsea.png"]

    def batch(size: int) -> httpx.Response:
        return caller.post("/predict/batch", headers=bearer, files=[("file", picture)] * size)

    answer = batch(8)
    assert (answer.status_code, len(answer.json()["results"])) == (200, 8)
    assert answer.headers["ratelimit"].startswith(f'"images";r={IMAGES - 8};t=')
    before = len(limited.log)
    assert_limited(batch(5))
    line = limited.wait_for("request", after=before, route="/predict/batch", status=429)
    assert "images" not in line  # not one picture was decoded
    assert batch(3).status_code == 200
    assert_limited(batch(1))


def test_093_a_batch_that_no_waiting_would_let_through_is_told_so(limited: Service, caller: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {get_token(caller, new_client(limited))}"}

    def batch(size: int) -> httpx.Response:
        return caller.post("/predict/batch", headers=bearer, files=[("file", b"no picture")] * size)

    answer = batch(IMAGES + 1)
    assert_limited(answer)
    assert f"at most {IMAGES} images in 3600 seconds" in answer.json()["detail"]
    assert batch(IMAGES - 1).status_code == 200


def test_093_only_so_many_requests_of_one_client_are_served_at_once(limited: Service, caller: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {get_token(caller, new_client(limited))}", "Content-Type": "image/png", "Content-Length": "100"}
    host, port = limited.url.removeprefix("http://").split(":")
    head = "POST /predict HTTP/1.1\r\nHost: gate\r\n" + "".join(f"{name}: {value}\r\n" for name, value in bearer.items()) + "\r\n"
    held = [socket.create_connection((host, int(port)), timeout=10) for _ in range(2)]
    try:
        for connection in held:
            connection.sendall(head.encode())
        deadline_s = time.monotonic() + 10
        while (answer := caller.get("/models", headers={"Authorization": bearer["Authorization"]})).status_code == 200:
            assert time.monotonic() < deadline_s
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "too_many_in_flight", "1")
    finally:
        for connection in held:
            connection.close()
    deadline_s = time.monotonic() + 10
    while caller.get("/models", headers={"Authorization": bearer["Authorization"]}).json().get("code") == "too_many_in_flight":
        assert time.monotonic() < deadline_s, "a request that left is still counted"


def test_053_a_preflight_needs_no_token_and_is_limited_by_address(caller: httpx.Client) -> None:
    asked = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    answers = [caller.options("/predict", headers=asked) for _ in range(ADDRESS_LIMIT + 1)]
    assert {answer.status_code for answer in answers[:-1]} <= {200, 204}
    assert answers[-1].status_code == 429
    assert answers[-1].headers["access-control-allow-origin"] == "https://app.example.com"


def fail(caller: httpx.Client, client_id: str) -> httpx.Response:
    return caller.post("/oauth2/token", data=_FORM, auth=(client_id, "wrong"))


def test_038_the_eleventh_failure_of_one_address_for_one_client_is_refused_and_nobody_is_locked_out(
    limited: Service, caller: httpx.Client
) -> None:
    client, other = new_client(limited), new_client(limited)
    assert [fail(caller, client["client_id"]).status_code for _ in range(10)] == [401] * 10
    answer = fail(caller, client["client_id"])
    assert (answer.status_code, answer.json()["error"]) == (429, "temporarily_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 600
    # Another client at this address, this client elsewhere, and whoever knows the secret, here too.
    assert fail(caller, other["client_id"]).status_code == 401
    with caller_at(limited, f"127.0.0.{next(_hosts)}") as elsewhere:
        assert fail(elsewhere, client["client_id"]).status_code == 401
        get_token(elsewhere, client)
    get_token(caller, client)


def test_038_an_unknown_client_is_counted_alike(caller: httpx.Client) -> None:
    assert [fail(caller, "client_unknown").status_code for _ in range(11)] == [401] * 10 + [429]


def test_039_two_hundred_failures_at_once_leave_predictions_alone(gate: Service, token: str, photographs_by_name: dict[str, bytes]) -> None:
    picture = photographs_by_name["chelsea.png"]
    host, port = gate.url.removeprefix("http://").split(":")
    body = b"grant_type=client_credentials&client_id=client_%03d&client_secret=wrong"
    head = "POST /oauth2/token HTTP/1.1\r\nHost: gate\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n"
    with ExitStack() as opened:
        # Twenty addresses, so that no address's limit spares the registry the work.
        guessers = [
            opened.enter_context(socket.create_connection((host, int(port)), timeout=30, source_address=(f"127.0.1.{number % 20 + 1}", 0)))
            for number in range(200)
        ]
        for number, guesser in enumerate(guessers):
            guess = body % number
            guesser.sendall(head.format(len(guess)).encode() + guess)
        assert [gate.predict(picture, token).status_code for _ in range(5)] == [200] * 5
        assert {guesser.recv(65536).partition(b"\r\n")[0] for guesser in guessers} == {b"HTTP/1.1 401 Unauthorized"}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def test_096_four_workers_with_redis_let_the_limit_through_once(start_gate: Callable[..., Service], redis: RedisServer) -> None:
    service = start_gate(
        {
            "LENSGATE_HTTP__WORKERS": "4",
            "LENSGATE_HTTP__ADDRESS_LIMIT": "60/hour",
            "LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url,
            "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "10/hour", "in_flight": 64}}',
        },
    )
    # A worker that Redis does not answer within its 50 ms counts for itself, and says so: what it let through then proves nothing.
    deadline_s = time.monotonic() + 80
    for attempt in count(1):
        began = wait_until_redis_counts(service, deadline_s)
        with caller_at(service, f"127.0.3.{attempt}") as caller:
            bearer = f"Bearer {get_token(caller, new_client(service))}"
        answers = ask_many(service, f"127.0.2.{attempt}", bearer)
        # A worker's lines come in their order: once the requests are there, so is what it lost before them.
        lines = [service.wait_for("request", after=began, request_id=answer.request_id, timeout_s=10) for answer in answers]
        if not any(line["event"] == "rate_limit_storage_lost" for line in service.log[began:]):
            break
    codes = [answer.status for answer in answers]
    assert (codes.count(200), codes.count(429)) == (10, 70)
    assert sum('"images"' in answer.limits for answer in answers) == 60  # of the 80, the client's limit refused 50 and the address's 20
    assert len({line["pid"] for line in lines}) > 1


def wait_until_redis_counts(service: Service, deadline_s: float) -> int:
    """Wait until every worker counts in Redis; where the log ends then."""
    while True:
        end = len(service.log)
        events = [line["event"] for line in service.log[:end]]
        if events.count("rate_limit_storage_lost") == events.count("rate_limit_storage_back"):
            return end
        assert time.monotonic() < deadline_s, "Redis does not answer the workers in time"
        time.sleep(0.1)


class Answer(NamedTuple):
    status: int
    limits: str
    request_id: str


def ask_many(service: Service, address: str, authorization: str) -> list[Answer]:
    """80 requests, four at once, each on a connection of its own, so that they meet all workers."""
    host, port = service.url.removeprefix("http://").split(":")

    def ask(_: int) -> Answer:
        # Not httpx: making 80 of its clients takes more of the machine than answering them, and Redis has 50 ms.
        connection = HTTPConnection(host, int(port), timeout=30, source_address=(address, 0))
        try:
            connection.request("GET", "/models", headers={"Authorization": authorization})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers["RateLimit"], answer.headers["X-Request-ID"])
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as callers:
        return list(callers.map(ask, range(80)))


def test_096_four_workers_without_redis_let_the_limit_through_once_and_their_successors_forget_nothing(
    start_gate: Callable[..., Service],
) -> None:
    service = start_gate(
        {
            "LENSGATE_HTTP__WORKERS": "4",
            "LENSGATE_HTTP__ADDRESS_LIMIT": "60/hour",
            "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "10/hour", "in_flight": 64}}',
        },
    )
    with caller_at(service, "127.0.4.1") as caller:
        bearer = f"Bearer {get_token(caller, new_client(service))}"
    answers = ask_many(service, "127.0.4.2", bearer)
    codes = [answer.status for answer in answers]
    assert (codes.count(200), codes.count(429)) == (10, 70)
    assert sum('"images"' in answer.limits for answer in answers) == 60  # of the 80, the client's limit refused 50 and the address's 20
    assert len({service.wait_for("request", request_id=answer.request_id, timeout_s=10)["pid"] for answer in answers}) > 1

    killed = len(service.log)
    for worker in service.children("api.worker_process"):
        worker.kill()
    for number in range(4):
        started = service.wait_for("child_started", after=killed, child=f"api-{number}")
        service.wait_for("worker_serving", after=killed, pid=started["child_pid"])
    assert {answer.status for answer in ask_many(service, "127.0.4.3", bearer)} == {429}

    renewed = len(service.log)
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("workers_renewed", after=renewed)
    assert {answer.status for answer in ask_many(service, "127.0.4.4", bearer)} == {429}
