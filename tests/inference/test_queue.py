"""The queue that the engine's batches are drawn from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from inference.worker.queue import Entry, FairQueue

FAR_NS = 10**18


def entry(number: int, client: str = "a", *, deadline_ns: int | None = None) -> Entry:
    deadline_ns = time.monotonic_ns() + FAR_NS if deadline_ns is None else deadline_ns
    return Entry(number, number, np.zeros((1, 1, 3), np.uint8), 1, deadline_ns, client, lambda *_: None)


def up_to(pictures: int) -> Callable[[int], int]:
    return lambda waiting: min(waiting, pictures)


def ids(entries: list[Entry]) -> list[int]:
    return [entry.id for entry in entries]


def test_how_many_wait_may_decide_how_many_are_taken() -> None:
    queue = FairQueue(10)
    for number in range(7):
        queue.put(entry(number))
    asked: list[int] = []

    def batch_size(waiting: int) -> int:
        asked.append(waiting)
        return 4 if waiting >= 4 else 2

    assert ids(queue.take(batch_size)[0]) == [0, 1, 2, 3]
    assert ids(queue.take(batch_size)[0]) == [4, 5]
    assert asked == [7, 3]


def test_a_batch_takes_no_more_than_it_may() -> None:
    queue = FairQueue(10)
    for number in range(5):
        assert queue.put(entry(number)) is None
    assert ids(queue.take(up_to(3))[0]) == [0, 1, 2]
    assert ids(queue.take(up_to(3))[0]) == [3, 4]


def test_a_full_queue_refuses_one_more_and_has_room_again_after_a_batch() -> None:
    queue = FairQueue(2)
    assert queue.put(entry(1)) is None
    assert queue.put(entry(2)) is None
    third = entry(3)
    assert queue.put(third) is third
    queue.take(up_to(1))
    assert queue.put(third) is None


def test_a_full_queue_turns_out_the_newest_of_the_longest_line_for_a_client_with_a_shorter_one() -> None:
    queue = FairQueue(5)
    flood = [entry(number, "flood") for number in range(4)]
    for one in (*flood, entry(10, "other")):
        assert queue.put(one) is None
    assert queue.put(entry(100, "single")) is flood[3]
    assert queue.put(entry(11, "other")) is flood[2]
    assert len(queue) == 5
    # Two, two and one: nobody's line is longer by two, so nobody has to give way.
    late = entry(101, "single")
    assert queue.put(late) is late
    assert ids(queue.take(up_to(8))[0]) == [0, 10, 100, 1, 11]


def test_a_flood_turns_out_nobody_but_itself() -> None:
    queue = FairQueue(4)
    for number, client in enumerate(("a", "b", "c")):
        queue.put(entry(number, client))
    refused = [queue.put(entry(100 + number, "flood")) for number in range(50)]
    assert refused[0] is None
    assert {one.client for one in refused[1:] if one is not None} == {"flood"}
    assert None not in refused[1:]


def test_what_is_ahead_of_a_client_is_one_of_each_other_for_each_of_its_own() -> None:
    queue = FairQueue(1000)
    for number in range(200):
        queue.put(entry(number, "flood"))
    queue.put(entry(1000, "other"))
    assert (queue.ahead_of("new"), queue.ahead_of("other"), queue.ahead_of("flood")) == (2, 3, 201)


def test_clients_are_served_in_turn_so_a_flood_costs_another_one_place() -> None:
    queue = FairQueue(100)
    for number in range(20):
        queue.put(entry(number, "flood"))
    queue.put(entry(100, "single"))
    queue.put(entry(200, "other"))
    assert ids(queue.take(up_to(4))[0]) == [0, 100, 200, 1]


def test_turns_go_on_where_the_last_batch_ended() -> None:
    queue = FairQueue(100)
    for number in range(3):
        queue.put(entry(number, "a"))
        queue.put(entry(10 + number, "b"))
        queue.put(entry(20 + number, "c"))
    assert ids(queue.take(up_to(2))[0]) == [0, 10]
    assert ids(queue.take(up_to(2))[0]) == [20, 1]


def test_a_picture_whose_deadline_has_passed_is_handed_back_and_not_run() -> None:
    queue = FairQueue(10)
    queue.put(entry(1, deadline_ns=time.monotonic_ns() - 1))
    queue.put(entry(2))
    batch, late = queue.take(up_to(8))
    assert (ids(batch), ids(late)) == ([2], [1])


def test_the_place_of_a_caller_who_left_is_freed_at_once() -> None:
    queue = FairQueue(2)
    queue.put(entry(1))
    queue.put(entry(2))
    queue.discard(1)
    assert len(queue) == 1
    assert queue.put(entry(3)) is None
    assert ids(queue.take(up_to(8))[0]) == [2, 3]


def test_discarding_what_is_not_there_changes_nothing() -> None:
    queue = FairQueue(2)
    queue.put(entry(1))
    queue.discard(7)
    assert len(queue) == 1


def test_everything_of_a_lost_connection_is_dropped_and_nothing_else() -> None:
    queue = FairQueue(10)
    for number in range(6):
        queue.put(entry(number, "a" if number % 2 else "b"))
    queue.discard_where(lambda key: isinstance(key, int) and key < 4)
    assert sorted(ids(queue.take(up_to(8))[0])) == [4, 5]


def test_taking_waits_for_work_and_closing_ends_the_wait() -> None:
    queue = FairQueue(10)
    taken: list[tuple[list[Entry], list[Entry]]] = []
    first = threading.Event()

    def work() -> None:
        taken.append(queue.take(up_to(8)))
        first.set()
        taken.append(queue.take(up_to(8)))

    thread = threading.Thread(target=work)
    thread.start()
    queue.put(entry(1))
    assert first.wait(10)
    assert queue.close() == []
    thread.join(10)
    assert ids(taken[0][0]) == [1]
    assert taken[1] == ([], [])


def test_a_closed_queue_hands_back_what_waited_and_takes_no_more() -> None:
    queue = FairQueue(10)
    queue.put(entry(1))
    assert ids(queue.close()) == [1]
    late = entry(2)
    assert queue.put(late) is late


def test_nothing_is_taken_while_the_taker_may_not_and_wake_lets_it_look_again() -> None:
    queue = FairQueue(4)
    assert queue.put(entry(1)) is None
    assert queue.take(up_to(4), timeout_s=0.01, if_true=lambda: False) == ([], [])
    allowed, looked, taken = threading.Event(), threading.Event(), list[int]()

    def may() -> bool:
        looked.set()
        return allowed.is_set()

    taker = threading.Thread(target=lambda: taken.extend(ids(queue.take(up_to(4), if_true=may)[0])))
    taker.start()
    assert looked.wait(30)
    allowed.set()
    queue.wake()
    taker.join(30)
    assert taken == [1]


def test_a_picture_wakes_nobody_who_may_not_take_it() -> None:
    queue = FairQueue(4)
    looked, woken, taken = threading.Event(), list[int](), list[int]()

    def never() -> bool:
        if threading.get_ident() == barred.ident:
            woken.append(1)
            looked.set()
        return False

    barred = threading.Thread(target=lambda: queue.take(up_to(4), if_true=never))
    queue.put(entry(0))
    barred.start()  # looks once, and waits
    assert looked.wait(30)
    assert ids(queue.take(up_to(4))[0]) == [0]
    for number in range(1, 100):
        taker = threading.Thread(target=lambda: taken.extend(ids(queue.take(up_to(4))[0])))
        taker.start()
        queue.put(entry(number))
        taker.join(30)
    assert taken == list(range(1, 100))
    assert len(woken) == 1
    queue.close()
    barred.join(30)
    assert not barred.is_alive()


def test_what_one_taker_leaves_wakes_the_next() -> None:
    queue = FairQueue(8)
    taken: list[list[int]] = []
    takers = [threading.Thread(target=lambda: taken.append(ids(queue.take(up_to(1))[0]))) for _ in range(4)]
    for number in range(4):
        queue.put(entry(number))
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(30)
    assert sorted(taken) == [[0], [1], [2], [3]]


def test_many_takers_and_many_pictures_lose_none() -> None:
    queue = FairQueue(10_000)
    taken: list[int] = []
    first_is_busy = threading.Event()

    def take(lane: int) -> None:
        while not queue.closed:
            batch, _ = queue.take(up_to(3), if_true=lambda: lane == 0 or first_is_busy.is_set())
            if lane == 0:
                first_is_busy.set()
                queue.wake()
            taken.extend(ids(batch))
            if lane == 0:
                first_is_busy.clear()

    takers = [threading.Thread(target=take, args=(lane,)) for lane in range(3)]
    for taker in takers:
        taker.start()
    for number in range(5_000):
        queue.put(entry(number))
    deadline_s = time.monotonic() + 30
    while len(taken) < 5_000 and time.monotonic() < deadline_s:
        pass
    queue.close()
    for taker in takers:
        taker.join(30)
    assert sorted(taken) == list(range(5_000))


def test_a_closed_queue_asks_nobody_how_many_of_none_to_take() -> None:
    queue = FairQueue(10)
    queue.put(entry(1))
    assert ids(queue.close()) == [1]
    asked: list[int] = []

    def batch_size(waiting: int) -> int:
        asked.append(waiting)
        return max(size for size in (1, 2) if size <= waiting)  # as a compiled model's

    assert queue.take(batch_size) == ([], [])
    assert asked == []
