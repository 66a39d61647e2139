"""Windows in memory: at most the limit, at the edge and over several processes too, and no more memory than they may have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.limit_windows import PLACES, SharedWindows, memory_bytes
from support.limit_memory import limit_memory

PROCESSES = 4
TRIES = 3000
_TIMEOUT_S = 60

_TAKE = f"""
import sys
from security.limit_windows import PLACES, SharedWindows
windows = SharedWindows(int(sys.argv[1]), worker=int(sys.argv[2]), workers={PROCESSES}, clock=lambda: 1000.0)
sys.stdin.read(1)
print(sum(windows.take("k", int(sys.argv[3]), 60)[0] for _ in range({TRIES})), flush=True)
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
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        for wait_s in waits_s:
            clock.now_s += wait_s
            if windows.take("k", 3, 10)[0]:
                times.append(clock.now_s)
    assert all(sum(start <= moment < start + 10 for moment in times) <= 6 for start in times)


def test_a_flood_of_keys_takes_no_more_than_its_room_and_spares_who_is_busy(clock: Clock) -> None:
    with limit_memory(places=96) as file:
        room_bytes = os.fstat(file).st_size
        windows = SharedWindows(file, clock=clock)
        assert taken(windows, 10, key="busy") == 10
        for number in range(5000):
            clock.now_s += 0.002
            taken(windows, 1, key=f"flood {number}")
            assert taken(windows, 1, key="busy") == 0
        assert os.fstat(file).st_size == room_bytes


def test_a_quarter_as_many_keys_as_places_are_all_counted(clock: Clock) -> None:
    with limit_memory(places=8192) as file:
        windows = SharedWindows(file, clock=clock)
        keys = [str(number) for number in range(2048)]
        for key in keys:
            clock.now_s += 1e-5
            windows.take(key, 10, 60)
        assert sum(windows.take(key, 10, 60, 0)[1].current_count for key in keys) >= 2040


def test_a_full_set_forgets_the_key_that_was_silent_for_longest_and_only_then(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        for key in (*"abcdefgh", "a", "i"):
            clock.now_s += 1
            assert windows.take(key, 10, 60)[0]
        assert {key: windows.take(key, 10, 60, 0)[1].current_count for key in "abcdefghi"} == dict.fromkeys("cdefghi", 1) | {"a": 2, "b": 0}


def test_whoever_has_another_keys_place_has_none_of_its_counts(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        for key in "abcdefgh":
            taken(windows, 10, key=key)
        clock.now_s += 60
        for key in "abcdefgh":
            taken(windows, 10, key=key)
        assert windows.take("i", 10, 60) == (True, (0, 20.0, 1, 80.0))


def test_short_windows_never_make_a_long_one_be_forgotten(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        assert taken(windows, 10, key="of a day", width_s=86_400) == 10
        for number in range(1000):
            clock.now_s += 20
            taken(windows, 1, key=str(number))
        assert taken(windows, 1, key="of a day", width_s=86_400) == 0


def test_short_windows_never_make_a_long_one_be_forgotten_that_has_turned(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        clock.now_s = 86_400.0
        assert taken(windows, 100, limit=100, key="of a day", width_s=86_400) == 100
        clock.now_s = 2 * 86_400.0
        for number in range(200):
            clock.now_s += 20
            taken(windows, 1, key=str(number))
        assert windows.take("of a day", 100, 86_400, 0)[1].previous_count == 100
        assert taken(windows, 100, limit=100, key="of a day", width_s=86_400) == 5


def test_what_weighs_no_more_makes_room_before_what_does(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        taken(windows, 1, key="of a minute")
        clock.now_s = 1145.0  # its counts weighed until 1080, and the hour's until 7200
        for key in "abcdefg":
            taken(windows, 1, key=key)
            clock.now_s += 0.5
        taken(windows, 1, key="h")
        assert [windows.take(key, 10, 60, 0)[1].current_count for key in "abcdefgh"] == [1] * 8


def test_what_is_refused_is_not_silent(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        taken(windows, 10, key="refused")
        for number in range(100):
            clock.now_s += 0.1
            assert taken(windows, 1, key="refused") == 0
            taken(windows, 1, key=str(number))


def test_what_is_refused_for_what_its_last_window_took_is_not_silent(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        clock.now_s = 1019.0
        taken(windows, 10, key="refused")
        clock.now_s = 1020.1
        for number in range(30):
            clock.now_s += 0.01
            assert not windows.take("refused", 10, 60, 2)[0]
            taken(windows, 1, key=str(number))


def test_what_is_refused_by_one_worker_is_not_silent_for_the_others(clock: Clock) -> None:
    with limit_memory(2, places=16) as file:
        one, other = (SharedWindows(file, worker=worker, workers=2, clock=clock) for worker in range(2))
        assert taken(one, 10, key="refused") == 10
        for number in range(100):
            clock.now_s += 0.1
            assert taken(other, 1, key="refused") == 0
            taken(one, 1, key=str(number))


def test_each_worker_has_4_mib_for_its_table() -> None:
    assert [memory_bytes(workers) - memory_bytes(0) for workers in (1, 2, 9)] == [2**22, 2 * 2**22, 9 * 2**22]


def test_a_key_may_be_any_text(windows: SharedWindows) -> None:
    assert taken(windows, 2, limit=1, key="\ud800") == 1


def test_nobody_can_foresee_which_keys_displace_one_another() -> None:
    with limit_memory() as one, limit_memory() as other:
        places = [[SharedWindows(file)._place(str(number), 60) for number in range(20)] for file in (one, other)]
    assert not set(places[0]) & set(places[1])


def test_keys_fall_into_all_sets_and_each_has_a_tag_of_its_own(limits_file: int) -> None:
    windows = SharedWindows(limits_file)
    places = [windows._find_place(str(number), 60) for number in range(100_000)]
    assert len({tag for tag, _ in places}) == 100_000
    assert len({start for _, start in places}) > 0.99 * PLACES / 8
    assert max(start for _, start in places) <= len(windows._words) - 8 * 4


def test_widths_that_end_together_have_counts_of_their_own(clock: Clock, windows: SharedWindows) -> None:
    clock.now_s = 1019.5  # at 1020 end windows of 60 and of 10 s
    assert [windows.take("k", 1, width_s)[0] for width_s in (60, 10, 60, 10)] == [True, True, False, False]


def test_what_another_storage_has_counted_lowers_no_count(windows: SharedWindows, clock: Clock) -> None:
    assert taken(windows, 5) == 5
    windows.remember("k", 60, 3)
    assert windows.take("k", 10, 60, 0)[1].current_count == 5
    clock.now_s = 1020.0
    windows.remember("k", 60, 3)  # five of the last window weigh more
    assert windows.take("k", 10, 60, 0) == (True, (5, 60.0, 0, 120.0))


def test_a_worker_that_is_told_of_another_storage_refunds_nothing_that_another_worker_counts_here(clock: Clock) -> None:
    with limit_memory(2) as file:
        told, counting = (SharedWindows(file, worker=worker, workers=2, clock=clock) for worker in range(2))
        admitted = 0
        for used in range(1, 11):
            told.remember("k", 60, used)
            admitted += taken(counting, 1)
        assert admitted + 10 <= 20
        assert taken(counting, 25) == 0


def test_what_another_storage_has_counted_can_be_gone_on_from(windows: SharedWindows, clock: Clock) -> None:
    windows.remember("k", 60, 7)
    assert taken(windows, 25) == 3
    clock.now_s = 1050.0  # the window turned at 1020: half of the 10 still weighs
    windows.remember("k", 60, 7)
    assert windows.take("k", 10, 60, 0)[1].current_count == 2
    assert taken(windows, 25) == 3


def test_what_another_storage_has_counted_is_without_the_whole_units_that_the_last_window_still_weighs(
    windows: SharedWindows, clock: Clock
) -> None:
    taken(windows, 10)
    clock.now_s = 1052.4  # 4.6 of the ten still weigh
    windows.remember("k", 60, 7)
    assert windows.take("k", 10, 60, 0)[1].current_count == 3


def test_what_another_storage_has_counted_is_not_silent(clock: Clock) -> None:
    with limit_memory(places=8) as file:
        windows = SharedWindows(file, clock=clock)
        for key in "bcdefgh":
            clock.now_s += 1
            taken(windows, 1, key=key)
        clock.now_s += 1
        windows.remember("told", 60, 7)
        taken(windows, 1, key="i")
        assert windows.take("told", 10, 60, 0)[1].current_count == 7


@contextmanager
def other_process(file: int, worker: int, limit: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _TAKE, *map(str, (file, worker, limit))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(file,), text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("now")
    process.stdin.flush()


def many_at_once(file: int, limit: int) -> list[int]:
    with ExitStack() as stack:
        processes = [stack.enter_context(other_process(file, worker, limit)) for worker in range(PROCESSES)]
        for process in processes:
            begin(process)
        return [said(process) for process in processes]


@pytest.fixture
def shared_file() -> Iterator[int]:
    with limit_memory(PROCESSES) as file:
        yield file


def worker(file: int, number: int, clock: Callable[[], float] = lambda: 1000.0) -> SharedWindows:
    return SharedWindows(file, worker=number, workers=PROCESSES, clock=clock)


def test_096_many_processes_at_once_let_no_more_than_the_limit_through(shared_file: int) -> None:
    first = sum(many_at_once(shared_file, TRIES))
    assert TRIES - PROCESSES < first <= TRIES  # who wants the last ones at the same moment may all go without them
    assert first + taken(worker(shared_file, 0), PROCESSES, limit=TRIES) == TRIES


def test_096_no_unit_that_a_process_takes_is_lost_to_another(shared_file: int) -> None:
    most = PROCESSES * TRIES
    assert many_at_once(shared_file, most) == [TRIES] * PROCESSES
    assert worker(shared_file, 0).take("k", most, 60) == (False, (0, 20.0, most, 80.0))


def test_what_a_worker_counted_outlives_it_and_its_successor_goes_on(shared_file: int) -> None:
    with other_process(shared_file, 1, 10) as process:
        begin(process)
        assert said(process) == 10
    assert taken(worker(shared_file, 0), 25) == 0
    assert taken(worker(shared_file, 1), 25, limit=15) == 5
    assert worker(shared_file, 2).take("k", 15, 60, 0)[1].current_count == 15


def test_what_all_workers_counted_weighs_in_the_next_window(shared_file: int, clock: Clock) -> None:
    workers = [worker(shared_file, number, clock) for number in range(3)]
    assert [taken(one, units) for one, units in zip(workers, (2, 3, 5), strict=True)] == [2, 3, 5]
    clock.now_s = 1050.0  # half of the ten still weighs
    assert taken(workers[0], 2) == 2
    for one in workers:
        assert one.take("k", 10, 60, 0) == (True, (10, 30.0, 2, 90.0))
    assert sum(taken(one, 9) for one in workers) == 3


def test_a_worker_whose_clock_is_behind_a_turn_counts_in_the_window_of_the_others(shared_file: int) -> None:
    moments = {"ahead": 1019.0, "behind": 1019.99}
    ahead, behind = worker(shared_file, 0, lambda: moments["ahead"]), worker(shared_file, 1, lambda: moments["behind"])
    assert taken(ahead, 10) == 10
    moments["ahead"] = 1020.01
    assert ahead.take("k", 10, 60, 1)[0]  # 9.998 still weigh
    assert behind.take("k", 10, 60, 1) == (False, (10, 60.0, 1, 120.0))
    assert behind.take("k", 10, 60, 0) == (False, (10, 60.0, 1, 120.0))
    behind.remember("k", 60, 500)
    assert ahead.take("k", 12, 60, 1)[1][::2] == (10, 2)


def test_a_worker_whose_clock_is_behind_sees_what_others_began_to_count_after_the_turn(shared_file: int) -> None:
    assert taken(worker(shared_file, 0, lambda: 1020.01), 10) == 10
    assert worker(shared_file, 1, lambda: 1019.99).take("k", 10, 60, 1) == (False, (0, 60.0, 10, 120.0))


def test_a_worker_that_is_amid_a_turn_loses_no_count_for_another(shared_file: int) -> None:
    turning, other = (worker(shared_file, number, lambda: 1019.0) for number in range(2))
    assert taken(turning, 10) == 10
    words, columns = turning._words, turning._columns
    (at,) = (at for at in range(len(words)) if words[at] == turning._place("k", 60)[0])
    words[at + 2 * columns] = words[at + columns]  # it has written the previous count, and the present one not yet
    assert other.take("k", 10, 60, 1) == (False, (10, 60.0, 0, 120.0))


def test_a_worker_that_is_halted_holds_nobody_up(shared_file: int) -> None:
    with other_process(shared_file, 1, TRIES) as process:
        begin(process)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        halted = worker(shared_file, 0).take("k", TRIES, 60, 0)[1].current_count
        here = taken(worker(shared_file, 0), TRIES, limit=TRIES)
        assert here == TRIES - halted
        os.kill(process.pid, signal.SIGCONT)
        assert here + said(process) <= TRIES
