"""Windows in memory: at most the limit, at the edge too, and no more memory than they may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.limit_windows import MemoryWindows


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(windows: MemoryWindows, tries: int, *, limit: int = 10, width_s: int = 60, key: str = "k") -> int:
    return sum(windows.take(key, limit, width_s)[0] for _ in range(tries))


def test_the_limit_is_let_through_and_no_more(clock: Clock) -> None:
    assert taken(MemoryWindows(clock=clock), 25) == 10


def test_keys_and_widths_have_counts_of_their_own(clock: Clock) -> None:
    windows = MemoryWindows(clock=clock)
    assert taken(windows, 25) == taken(windows, 25, key="other") == taken(windows, 25, width_s=10) == 10


def test_all_units_are_taken_or_none(clock: Clock) -> None:
    windows = MemoryWindows(clock=clock)
    assert windows.take("k", 10, 60, 7)[0]
    assert not windows.take("k", 10, 60, 4)[0]
    assert windows.take("k", 10, 60, 3)[0]
    assert not windows.take("k", 10, 60, 11)[0]


def test_100_around_the_edge_of_a_window_no_more_than_the_limit_and_one_get_through(clock: Clock) -> None:
    windows = MemoryWindows(clock=clock)
    clock.now_s = 1019.9  # windows turn at multiples of 60 s
    first = taken(windows, 100)
    clock.now_s = 1020.1
    assert first + taken(windows, 100) <= 11


def test_an_old_window_is_forgotten(clock: Clock) -> None:
    windows = MemoryWindows(clock=clock)
    taken(windows, 10)
    clock.now_s += 120
    assert taken(windows, 25) == 10
    clock.now_s += 1e6
    _, window = windows.take("k", 10, 60, 0)
    assert (window.previous_count, window.current_count) == (0, 0)


@given(st.lists(st.floats(0, 30), max_size=80))
def test_in_any_stretch_as_long_as_the_window_at_most_twice_the_limit_gets_through(waits_s: list[float]) -> None:
    clock = Clock()
    windows = MemoryWindows(clock=clock)
    times: list[float] = []
    for wait_s in waits_s:
        clock.now_s += wait_s
        if windows.take("k", 3, 10)[0]:
            times.append(clock.now_s)
    assert all(sum(start <= moment < start + 10 for moment in times) <= 6 for start in times)


def test_a_flood_of_keys_takes_no_more_than_its_room_and_spares_who_is_busy(clock: Clock) -> None:
    windows = MemoryWindows(max_keys=100, clock=clock)
    assert taken(windows, 10, key="busy") == 10
    for number in range(5000):
        taken(windows, 1, key=f"flood {number}")
        assert taken(windows, 1, key="busy") == 0
    assert len(windows) <= 101
    clock.now_s += 60
    for number in range(5000):
        taken(windows, 1, key=f"flood {number}")
    assert len(windows) <= 202


def test_what_another_storage_has_counted_can_be_gone_on_from(clock: Clock) -> None:
    windows = MemoryWindows(clock=clock)
    windows.remember("k", 60, 7)
    assert taken(windows, 25) == 3
    clock.now_s = 1050.0  # the window turned at 1020: half of the 10 still weighs
    windows.remember("k", 60, 7)
    assert windows.take("k", 10, 60, 0)[1].current_count == 2
    assert taken(windows, 25) == 3
