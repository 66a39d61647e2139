"""What a limit says, and when what was refused may come back."""

from __future__ import annotations

import limits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.limit_windows import SharedWindows
from security.rate_limits import Limit, Quota, Window, check_storage_url, judge, parse_limit, rate_limit_headers
from support.limit_memory import limit_memory


@pytest.mark.parametrize(
    "text",
    ["600/minute", "1/second", "10 per 5 minutes", "10 per minute", "5/10 seconds", "100/hour", "7 / day", " 3/minute ", "60/60second"],
)
def test_a_limit_means_what_the_library_means(text: str) -> None:
    theirs = limits.parse(text)
    assert parse_limit(text) == Limit(theirs.amount, theirs.get_expiry())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "600",
        "minute",
        "0/minute",
        "-1/minute",
        "1/0 minutes",
        "1.5/minute",
        "600/minute; 1/second",
        "600/min",
        "1/2 days",
        "1/month",
        "1e3/minute",
        "٣/minute",
        "9999999999/minute",
        "600/minute\n600/minute",
    ],
)
def test_what_is_no_single_sane_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_limit(text)


@pytest.mark.parametrize("url", ["memory://", "redis://h", "redis://:secret@h:6379/0", "rediss://u:p@[::1]:6380/2?ssl_cert_reqs=none"])
def test_the_storages_that_there_are_can_be_named(url: str) -> None:
    check_storage_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory://x",
        "redis://",
        "redis:///0",
        "redis://h:port-secret",
        "redis://:secret/s@h:1",
        "http://secret",
        "redis+cluster://h",
    ],
)
def test_any_other_storage_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="URL of a Redis") as refusal:
        check_storage_url(url)
    assert "secret" not in str(refusal.value)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(
    amount=st.integers(1, 50),
    width_s=st.sampled_from([1, 10, 60]),
    steps=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60)), min_size=1, max_size=30),
)
def test_what_is_refused_is_let_through_after_the_time_that_was_told(amount: int, width_s: int, steps: list[tuple[float, int]]) -> None:
    clock, quota = Clock(), Quota("images", Limit(amount, width_s))
    with limit_memory() as file:
        windows = SharedWindows(file, clock=clock)
        for wait_s, cost in steps:
            clock.now_s += wait_s
            admitted, window = windows.take("k", amount, width_s, cost)
            verdict = judge(quota, window, admitted=admitted, cost=cost)
            assert verdict.admitted is admitted
            assert 0 <= verdict.remaining <= amount
            if admitted:
                assert (verdict.retry_after_s, 1 <= verdict.reset_s <= width_s) == (0, True)
            else:
                assert 1 <= verdict.retry_after_s == verdict.reset_s <= 2 * width_s
                if cost <= amount:
                    clock.now_s += verdict.retry_after_s
                    assert windows.take("k", amount, width_s, cost)[0]


def test_redis_tells_no_current_window_before_the_first_unit() -> None:
    verdict = judge(Quota("images", Limit(3, 60)), Window(0, 0.0, 0, 0.0), admitted=True, cost=0)
    assert (verdict.remaining, verdict.reset_s) == (3, 60)


def test_the_headers_are_structured_lists() -> None:
    images, address = Quota("images", Limit(600, 60)), Quota("address", Limit(1200, 60))
    verdicts = [
        judge(images, Window(0, 0.0, 1, 90.0), admitted=True, cost=1),
        judge(address, Window(0, 0.0, 1200, 119.5), admitted=False, cost=1),
    ]
    assert rate_limit_headers(verdicts) == [
        (b"ratelimit-policy", b'"images";q=600;w=60, "address";q=1200;w=60'),
        (b"ratelimit", b'"images";r=599;t=30, "address";r=0;t=60'),
    ]
