"""Redis slow, gone and back (112, 113): the real gate with two workers and a real Redis that is stopped and hung."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest

from support.redis_server import RedisServer, redis_server
from support.scrape import scraper
from support.service import Service

ADDRESS_LIMIT: Final = 30
FALLBACKS: Final = "lensgate_redis_fallbacks_total"
_PENALTY_S: Final = 0.05
_hosts = iter(range(2, 250))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def service(start_gate: Callable[..., Service], redis: RedisServer) -> Service:
    return start_gate({"LENSGATE_HTTP__ADDRESS_LIMIT": f"{ADDRESS_LIMIT}/hour", "LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url})


@pytest.fixture
def caller(service: Service) -> Iterator[httpx.Client]:
    """A caller with an address that no other test has."""
    transport = httpx.HTTPTransport(verify=False, local_address=f"127.0.0.{next(_hosts)}")
    with httpx.Client(base_url=service.url, transport=transport, timeout=30) as client:
        yield client


@pytest.fixture(autouse=True)
def well(service: Service, redis: RedisServer) -> Iterator[int]:
    """The test begins and ends with a Redis that is used. The value: where its part of the log begins."""
    began = len(service.log)
    yield began
    if not redis._answers():
        redis.resume() if redis._process else redis.start()
    if service_is_lost(service):
        wait_for_back(service, began)


def service_is_lost(service: Service) -> bool:
    events = [line["event"] for line in service.log if line["event"].startswith("rate_limit_storage_")]
    return events[-1:] == ["rate_limit_storage_lost"]


def wait_for_back(service: Service, after: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + 32
    while service_is_lost(service):
        assert time.monotonic() < deadline_s, "Redis is not used again"
        time.sleep(0.05)
    return service.wait_for("rate_limit_storage_back", after=after, timeout_s=1)


def durations_s(service: Service, caller: httpx.Client, count: int) -> list[float]:
    """How long the service itself had each of `count` requests."""
    answers = [caller.get("/nowhere") for _ in range(count)]
    lines = [service.wait_for("request", request_id=answer.headers["x-request-id"], timeout_s=5) for answer in answers]
    return [line["duration_ms"] / 1000 for line in lines]


def test_112_a_redis_that_refuses_costs_one_moment_and_the_limit_holds_locally(
    service: Service, redis: RedisServer, caller: httpx.Client, well: int
) -> None:
    scrape = scraper(service)
    before = scrape()(FALLBACKS)
    redis.stop()
    took_s = durations_s(service, caller, ADDRESS_LIMIT)
    assert [caller.get("/nowhere").status_code for _ in range(3)] == [429] * 3
    assert service.wait_for("rate_limit_storage_lost", after=well, timeout_s=1)["level"] == "error"
    assert scrape()(FALLBACKS) - before >= ADDRESS_LIMIT
    # One request may have met the moment; a busy machine may add to it, but not to most.
    assert sum(took > _PENALTY_S for took in took_s) <= 2
    assert sorted(took_s)[len(took_s) // 2] < _PENALTY_S / 2


def test_112_a_redis_that_hangs_never_blocks_the_loop(service: Service, redis: RedisServer, caller: httpx.Client, well: int) -> None:
    redis.hang()
    took_s = durations_s(service, caller, ADDRESS_LIMIT - 5)
    assert service.wait_for("rate_limit_storage_lost", after=well, timeout_s=1)
    assert sum(took > _PENALTY_S * 2 for took in took_s) <= 2
    assert sorted(took_s)[len(took_s) // 2] < _PENALTY_S / 2
    assert caller.get("/livez").status_code == caller.get("/readyz").status_code == 200
    # The token endpoint's own limits (slowapi) wait for it no more than the others do.
    answers = [caller.post("/oauth2/token", data={"grant_type": "client_credentials"}) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {401}
    lines = [service.wait_for("request", request_id=answer.headers["x-request-id"], timeout_s=5) for answer in answers]
    assert min(line["duration_ms"] for line in lines) / 1000 < _PENALTY_S


def test_113_a_redis_that_is_back_is_used_again_within_32_s(service: Service, redis: RedisServer, caller: httpx.Client, well: int) -> None:
    redis.stop()
    caller.get("/nowhere")
    service.wait_for("rate_limit_storage_lost", after=well, timeout_s=1)
    redis.start()
    assert wait_for_back(service, well)["fallbacks"] >= 1
    assert redis.command("DBSIZE").startswith(b":")
    before = int(redis.command("DBSIZE")[1:])
    caller.get("/nowhere")
    assert int(redis.command("DBSIZE")[1:]) > before


def test_112_the_service_starts_without_its_redis_and_says_so(start_gate: Callable[..., Service], redis: RedisServer) -> None:
    redis.stop()
    try:
        service = start_gate({"LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url})
        service.wait_for("rate_limit_storage_lost")
        assert service.get("/readyz").status_code == 200
    finally:
        redis.start()
    service.wait_for("rate_limit_storage_back", timeout_s=32)
