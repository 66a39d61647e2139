"""Windows in memory: at most the limit, at the edge and over several processes too, and no more memory than they may have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.limit_windows import SharedWindows
from support.limit_memory import limit_memory

PROCESSES = 4
TRIES = 3000
_TIMEOUT_S = 60

_TAKE = f"""
import sys
from security.limit_windows import SharedWindows
windows = SharedWindows(int(sys.argv[1]), clock=lambda: 1000.0)
sys.stdin.read(1)
print(sum(windows.take("k", int(sys.argv[2]), 60)[0] for _ in range({TRIES})))
"""
_HOLD = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def windows(limits_file: int, clock: Clock) -> SharedWindows:
    return SharedWindows(limits_file, clock=clock)


def taken(windows: SharedWindows, tries: int, *, limit: int = 10, width_s: int = 60, key: str = "k") -> int:
    return sum(windows.take(key, limit, width_s)[0] for _ in range(tries))


def test_the_limit_is_let_through_and_no_more(windows: SharedWindows) -> None:
    assert taken(windows, 25) == 10


def test_keys_and_widths_have_counts_of_their_own(windows: SharedWindows) -> None:
    assert taken(windows, 25) == taken(windows, 25, key="other") == taken(windows, 25, width_s=10) == 10


def test_all_units_are_taken_or_none(windows: SharedWindows) -> None:
    assert windows.take("k", 10, 60, 7)[0]
    assert not windows.take("k", 10, 60, 4)[0]
    assert windows.take("k", 10, 60, 3)[0]
    assert not windows.take("k", 10, 60, 11)[0]


def test_100_around_the_edge_of_a_window_no_more_than_the_limit_and_one_get_through(windows: SharedWindows, clock: Clock) -> None:
    clock.now_s = 1019.9  # windows turn at multiples of 60 s
    first = taken(windows, 100)
    clock.now_s = 1020.1
    assert first + taken(windows, 100) <= 11


def test_an_old_window_is_forgotten(windows: SharedWindows, clock: Clock) -> None:
    taken(windows, 10)
    clock.now_s += 120
    assert taken(windows, 25) == 10
    clock.now_s += 1e6
    _, window = windows.take("k", 10, 60, 0)
    assert (window.previous_count, window.current_count) == (0, 0)


def test_a_window_that_has_turned_weighs_once_however_often_it_is_asked(windows: SharedWindows, clock: Clock) -> None:
    taken(windows, 10)
    clock.now_s = 1050.0  # the window turned at 1020: half of the 10 still weighs
    assert taken(windows, 2) == 2
    assert [windows.take("k", 10, 60, 0)[1][::2] for _ in range(3)] == [(10, 2)] * 3
    assert taken(windows, 25) == 3


@given(st.lists(st.floats(0, 30), max_size=80))
def test_in_any_stretch_as_long_as_the_window_at_most_twice_the_limit_gets_through(waits_s: list[float]) -> None:
    clock = Clock()
    times: list[float] = []
    with limit_memory(max_keys=8) as file:
        windows = SharedWindows(file, clock=clock)
        for wait_s in waits_s:
            clock.now_s += wait_s
            if windows.take("k", 3, 10)[0]:
                times.append(clock.now_s)
    assert all(sum(start <= moment < start + 10 for moment in times) <= 6 for start in times)


def test_a_flood_of_keys_takes_no_more_than_its_room_and_spares_who_is_busy(clock: Clock) -> None:
    with limit_memory(max_keys=96) as file:
        room_bytes = os.fstat(file).st_size
        windows = SharedWindows(file, clock=clock)
        assert taken(windows, 10, key="busy") == 10
        for number in range(5000):
            clock.now_s += 1e-5
            taken(windows, 1, key=f"flood {number}")
            assert taken(windows, 1, key="busy") == 0
        assert os.fstat(file).st_size == room_bytes


def test_a_full_set_forgets_the_key_that_was_silent_for_longest_and_only_then(clock: Clock) -> None:
    with limit_memory(max_keys=8) as file:
        windows = SharedWindows(file, clock=clock)
        for key in (*"abcdefgh", "a", "i"):
            clock.now_s += 1
            assert windows.take(key, 10, 60)[0]
        assert {key: windows.take(key, 10, 60, 0)[1].current_count for key in "abcdefghi"} == dict.fromkeys("cdefghi", 1) | {"a": 2, "b": 0}


def test_what_is_refused_is_not_silent(clock: Clock) -> None:
    with limit_memory(max_keys=8) as file:
        windows = SharedWindows(file, clock=clock)
        taken(windows, 10, key="refused")
        for number in range(100):
            clock.now_s += 0.1
            assert taken(windows, 1, key="refused") == 0
            taken(windows, 1, key=str(number))


def test_nobody_can_foresee_which_keys_displace_one_another() -> None:
    with limit_memory() as one, limit_memory() as other:
        places = [[SharedWindows(file)._place(str(number), 60) for number in range(20)] for file in (one, other)]
    assert not set(places[0]) & set(places[1])


def test_what_another_storage_has_counted_can_be_gone_on_from(windows: SharedWindows, clock: Clock) -> None:
    windows.remember("k", 60, 7)
    assert taken(windows, 25) == 3
    clock.now_s = 1050.0  # the window turned at 1020: half of the 10 still weighs
    windows.remember("k", 60, 7)
    assert windows.take("k", 10, 60, 0)[1].current_count == 2
    assert taken(windows, 25) == 3


@contextmanager
def other_process(script: str, *arguments: int, file: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, str(file), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(file,), text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def locked_elsewhere(file: int) -> Iterator[subprocess.Popen[str]]:
    with other_process(_HOLD, file=file) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def many_at_once(file: int, limit: int) -> list[int]:
    with ExitStack() as stack:
        processes = [stack.enter_context(other_process(_TAKE, limit, file=file)) for _ in range(PROCESSES)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("now")
            process.stdin.flush()
        return [int(process.communicate(timeout=_TIMEOUT_S)[0]) for process in processes]


def test_096_many_processes_at_once_let_the_limit_through_once(limits_file: int) -> None:
    assert sum(many_at_once(limits_file, TRIES)) == TRIES


def test_096_no_unit_that_a_process_takes_is_lost_to_another(limits_file: int) -> None:
    most = PROCESSES * TRIES
    assert many_at_once(limits_file, most) == [TRIES] * PROCESSES
    assert SharedWindows(limits_file, clock=lambda: 1000.0).take("k", most, 60) == (False, (0, 20.0, most, 80.0))


def test_what_a_process_counted_outlives_it(limits_file: int) -> None:
    with other_process(_TAKE, 10, file=limits_file) as process:
        assert process.communicate("now", timeout=_TIMEOUT_S)[0] == "10\n"
    assert taken(SharedWindows(limits_file, clock=lambda: 1000.0), 25) == 0


def test_nobody_waits_for_a_process_that_stands_still_with_the_lock(limits_file: int, windows: SharedWindows) -> None:
    with locked_elsewhere(limits_file) as holder:
        os.kill(holder.pid, signal.SIGSTOP)
        assert taken(windows, 25) == 10
        windows.remember("other", 60, 7)
        assert taken(windows, 25, key="other") == 3


def test_a_process_that_dies_with_the_lock_takes_it_along(limits_file: int, windows: SharedWindows) -> None:
    with locked_elsewhere(limits_file) as holder:
        with windows._lock:
            assert not windows._lock.held
        holder.kill()
        holder.wait(_TIMEOUT_S)
        with windows._lock:
            assert windows._lock.held


def test_the_lock_is_given_back_whatever_happens(limits_file: int) -> None:
    def no_time() -> float:
        raise OverflowError

    windows = SharedWindows(limits_file, clock=no_time)
    for call in (windows.take, windows.remember):
        with pytest.raises(OverflowError):
            call("k", 1, 60)
        with locked_elsewhere(limits_file):
            pass
