"""Limits in a real Redis: shared, bounded in what they cost when it is gone, and back by themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
import structlog

from security.limit_storage import PENALTY_S, Patience, RateLimiter
from security.limit_windows import SharedWindows
from security.rate_limits import Limit, Quota
from security.redis_windows import RedisWindows, StorageLost
from support.limit_memory import limit_memory
from support.redis_server import RedisServer, redis_server

IMAGES = Quota("images", Limit(10, 60))
_SLACK_S = 0.1
"""What a busy machine may add to a wait of 50 ms."""
_keys = count()


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    shared_redis.stop()
    shared_redis.start()
    return shared_redis


@pytest.fixture
async def rates(redis: RedisServer, windows: SharedWindows) -> AsyncIterator[RateLimiter]:
    rates = RateLimiter(windows, redis.url)
    await rates.start()
    assert not is_lost(rates)
    yield rates
    await rates.aclose()


async def admitted(rates: RateLimiter, tries: int, key: str = "k") -> int:
    return sum([(await rates.take(IMAGES, key)).admitted for _ in range(tries)])


def is_lost(rates: RateLimiter) -> bool:
    return rates.health.active


async def until_back(rates: RateLimiter) -> None:
    async with asyncio.timeout(32):
        while is_lost(rates):  # noqa: ASYNC110 # the product has no event for it: nothing in it waits for this
            await asyncio.sleep(0.05)


async def test_memory_is_the_default_and_never_a_fallback(windows: SharedWindows) -> None:
    rates = RateLimiter(windows)
    await rates.start()
    assert await admitted(rates, 25) == 10
    assert (rates.health.active, rates.health.fallbacks) == (False, 0)
    await rates.aclose()


@pytest.fixture
def other_windows() -> Iterator[SharedWindows]:
    """Those of another replica."""
    with limit_memory() as file:
        yield SharedWindows(file)


async def test_two_replicas_with_one_redis_let_the_limit_through_once(
    redis: RedisServer, rates: RateLimiter, other_windows: SharedWindows
) -> None:
    other = RateLimiter(other_windows, redis.url)
    await other.start()
    both = await asyncio.gather(*[one.take(IMAGES, "k") for _ in range(15) for one in (rates, other)])
    await other.aclose()
    assert sum(verdict.admitted for verdict in both) == 10
    assert rates.health.fallbacks == other.health.fallbacks == 0


async def test_what_is_told_is_what_redis_counts(rates: RateLimiter) -> None:
    first = await rates.take(IMAGES, "k", 7)
    assert (first.admitted, first.remaining, first.retry_after_s) == (True, 3, 0)
    refused = await rates.take(IMAGES, "k", 4)
    assert (refused.admitted, refused.remaining) == (False, 3)
    assert 59 <= refused.retry_after_s <= 61
    assert (await rates.take(IMAGES, "k", 3)).remaining == 0


async def test_many_at_once_go_out_together_and_each_gets_its_own_answer(rates: RateLimiter) -> None:
    costs = [1 + number % 10 for number in range(1000)]
    verdicts = await asyncio.gather(*[rates.take(IMAGES, f"key {number}", cost, Patience(10)) for number, cost in enumerate(costs)])
    assert [verdict.remaining for verdict in verdicts] == [10 - cost for cost in costs]


async def test_112_a_redis_that_is_gone_costs_nothing_and_limits_are_local(redis: RedisServer, rates: RateLimiter) -> None:
    redis.stop()
    with structlog.testing.capture_logs() as log:
        began_s = time.monotonic()
        assert await admitted(rates, 25) == 10
        assert time.monotonic() - began_s < PENALTY_S + _SLACK_S
    assert [(line["event"], line["server"]) for line in log] == [("rate_limit_storage_lost", f"127.0.0.1:{redis.port}")]
    assert "does Redis run" in log[0]["hint"]
    assert (rates.health.active, rates.health.fallbacks) == (True, 25)


async def test_a_redis_that_refuses_the_password_is_named_and_neither_it_nor_its_address_is_taken_for_the_fault(
    redis: RedisServer, windows: SharedWindows
) -> None:
    redis.command("CONFIG SET requirepass hunter2")
    for login in ("", ":a-wrong-password@"):
        rates = RateLimiter(windows, redis.url.replace("//", f"//{login}"))
        with structlog.testing.capture_logs() as log:
            await rates.start()
        await rates.aclose()
        (line,) = log
        assert (line["event"], line["cause"]) == ("rate_limit_storage_lost", "AuthenticationError")
        assert line["server"] == f"127.0.0.1:{redis.port}"
        assert "refuses the user or the password" in line["hint"]
        assert "a-wrong-password" not in str(line)


async def test_112_a_redis_that_hangs_costs_one_bounded_wait_and_the_loop_is_never_blocked(redis: RedisServer, rates: RateLimiter) -> None:
    redis.hang()
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - before_s)

    async def one() -> float:
        began_s = time.monotonic()
        patience = Patience()
        await rates.take(IMAGES, "address", 1, patience)
        await rates.take(IMAGES, "client", 1, patience)
        return time.monotonic() - began_s

    watching = asyncio.create_task(watch())
    try:
        waits_s = await asyncio.gather(*[one() for _ in range(50)])
        later_s = await one()
    finally:
        watching.cancel()
        redis.resume()
    assert max(waits_s) < PENALTY_S + _SLACK_S
    assert later_s < PENALTY_S / 2
    assert longest_s < _SLACK_S
    assert is_lost(rates)


async def test_who_loses_redis_goes_on_from_what_it_was_told(redis: RedisServer, rates: RateLimiter, other_windows: SharedWindows) -> None:
    other = RateLimiter(other_windows, redis.url)
    await other.start()
    assert await admitted(other, 7) == 7
    assert await admitted(rates, 1) == 1
    redis.stop()
    assert await admitted(rates, 25) == 2
    await other.aclose()


@pytest.fixture
def workers(redis: RedisServer) -> Iterator[list[SharedWindows]]:
    """Of two workers of one service."""
    with limit_memory(2) as file:
        yield [SharedWindows(file, worker=worker, workers=2) for worker in range(2)]


async def test_112_workers_of_one_service_that_lose_redis_let_the_limit_through_once_together(
    redis: RedisServer, workers: list[SharedWindows]
) -> None:
    one, other = (RateLimiter(windows, redis.url) for windows in workers)
    await one.start()
    await other.start()
    assert await admitted(one, 3) == await admitted(other, 3) == 3
    redis.stop()
    assert await admitted(one, 2) + await admitted(other, 25) + await admitted(one, 1) == 4
    await one.aclose()
    await other.aclose()


async def test_112_a_worker_that_has_lost_redis_gets_no_unit_back_from_one_that_has_not(
    redis: RedisServer, workers: list[SharedWindows]
) -> None:
    well, lost = RateLimiter(workers[0], redis.url), RateLimiter(workers[1], "redis://127.0.0.1:1")
    await well.start()
    await lost.start()
    assert sum([await admitted(one, 1) for _ in range(50) for one in (well, lost)]) <= 20  # ten in Redis, ten here
    assert not is_lost(well)
    await well.aclose()
    await lost.aclose()


async def test_a_redis_that_is_lost_again_and_again_is_looked_for_less_often(redis: RedisServer, rates: RateLimiter) -> None:
    pauses_s = []
    for _ in range(4):
        redis.empty()  # it has forgotten the scripts
        await asyncio.gather(*[rates.take(IMAGES, "k") for _ in range(20)])
        assert is_lost(rates)
        pauses_s.append(rates._pause_s)
        await rates.start()
        assert not is_lost(rates)
    assert pauses_s[1:] == [2 * pause_s for pause_s in pauses_s[:-1]]


async def test_a_wait_that_was_spent_is_not_spent_again(redis: RedisServer, rates: RateLimiter) -> None:
    spent = Patience(0.0)
    redis.hang()
    try:
        began_s = time.monotonic()
        assert (await rates.take(IMAGES, "k", 1, spent)).admitted
        assert time.monotonic() - began_s < PENALTY_S / 2
    finally:
        redis.resume()
    assert not is_lost(rates)  # this request's patience says nothing about Redis


async def test_113_a_redis_that_is_back_is_used_again(redis: RedisServer, rates: RateLimiter) -> None:
    looking = asyncio.create_task(rates.run())
    redis.stop()
    await rates.take(IMAGES, "k")
    assert is_lost(rates)
    with structlog.testing.capture_logs() as log:
        redis.start()
        await until_back(rates)
    looking.cancel()
    assert [line["event"] for line in log] == ["rate_limit_storage_back"]
    fallbacks = rates.health.fallbacks
    assert await admitted(rates, 25, "fresh") == 10
    assert rates.health.fallbacks == fallbacks


async def test_no_answer_of_a_redis_that_hung_meets_another_question(redis: RedisServer, rates: RateLimiter) -> None:
    redis.hang()
    await asyncio.gather(*[rates.take(IMAGES, f"old {number}", 9) for number in range(20)])
    assert is_lost(rates)
    redis.resume()
    await rates.start()
    assert not is_lost(rates)
    verdicts = await asyncio.gather(*[rates.take(IMAGES, f"new {number}", 1 + number % 5) for number in range(20)])
    assert [verdict.remaining for verdict in verdicts] == [9 - number % 5 for number in range(20)]


async def test_a_redis_that_is_not_there_at_the_start_is_found_later(redis: RedisServer, windows: SharedWindows) -> None:
    redis.stop()
    rates = RateLimiter(windows, redis.url)
    with structlog.testing.capture_logs() as log:
        await rates.start()
    assert [line["event"] for line in log] == ["rate_limit_storage_lost"]
    assert await admitted(rates, 25) == 10
    redis.start()
    await rates.start()
    assert await admitted(rates, 25) == 10
    assert not is_lost(rates)
    await rates.aclose()


async def test_a_redis_that_has_forgotten_the_scripts_is_taught_them_again(redis: RedisServer, rates: RateLimiter) -> None:
    redis.empty()
    assert (await rates.take(IMAGES, "k")).admitted
    assert is_lost(rates)
    await rates.start()
    assert not is_lost(rates)


async def test_a_caller_that_leaves_while_redis_is_asked_harms_nobody(rates: RateLimiter) -> None:
    leaving = [asyncio.create_task(rates.take(IMAGES, "left")) for _ in range(5)]
    staying = [asyncio.create_task(rates.take(IMAGES, "stayed")) for _ in range(5)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    assert [verdict.remaining for verdict in await asyncio.gather(*staying)] == [9, 8, 7, 6, 5]
    assert not is_lost(rates)


async def test_nobody_waits_for_ever_when_the_service_ends(redis: RedisServer) -> None:
    windows = RedisWindows(redis.url)
    await windows.connect(5)
    redis.hang()
    try:
        asked = asyncio.create_task(windows.take("k", 1, 60, 1, 30))
        await asyncio.sleep(0.01)
        await windows.aclose()
        with pytest.raises(StorageLost):
            await asked
    finally:
        redis.resume()


async def test_a_lost_redis_is_named_without_its_password(redis: RedisServer, windows: SharedWindows) -> None:
    redis.stop()
    rates = RateLimiter(windows, f"redis://:hunter2@127.0.0.1:{redis.port}/0")
    with structlog.testing.capture_logs() as log:
        await rates.start()
    await rates.aclose()
    assert [line["event"] for line in log] == ["rate_limit_storage_lost"]
    assert "hunter2" not in str(log)
