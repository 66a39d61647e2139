"""When a lane is taken for stuck."""

from __future__ import annotations

import pytest

from inference.worker.watchdog import LOOK_EVERY_S, ForwardPass, LaneStuck, Watchdog

STUCK_AFTER_S = 5 * LOOK_EVERY_S


class Lanes:
    """What the lanes run."""

    def __init__(self, *running: ForwardPass | None) -> None:
        self.running = list(running)
        self.watchdog = Watchdog(lambda: self.running, stuck_after_s=STUCK_AFTER_S)

    def looks_until_stuck(self, most: int = 1000) -> int | None:
        for looks in range(1, most + 1):
            try:
                self.watchdog.look()
            except LaneStuck:
                return looks
        return None


def test_a_pass_that_does_not_end_is_stuck_after_the_floor() -> None:
    assert Lanes(None, ForwardPass(7, 0.01)).looks_until_stuck() == 6  # the first look is the beginning


def test_a_pass_that_always_takes_long_has_twenty_times_as_long() -> None:
    assert Lanes(ForwardPass(7, 2.0)).looks_until_stuck() == 41


def test_a_lane_that_always_works_at_another_pass_is_not_stuck() -> None:
    lanes = Lanes(ForwardPass(1, 0.01))
    for number in range(1, 100):
        lanes.running[0] = ForwardPass(number, 0.01)
        assert lanes.looks_until_stuck(5) is None


def test_a_lane_that_was_idle_in_between_begins_again() -> None:
    lanes = Lanes(ForwardPass(1, 0.01))
    assert lanes.looks_until_stuck(5) is None
    lanes.running[0] = None
    assert lanes.looks_until_stuck() is None
    lanes.running[0] = ForwardPass(1, 0.01)
    assert lanes.looks_until_stuck(5) is None


def test_what_is_said_names_the_lane() -> None:
    lanes = Lanes(None, ForwardPass(1, 0.25))
    assert lanes.looks_until_stuck(5) is None
    with pytest.raises(LaneStuck, match=r"^Lane 1 has been in one forward pass for 5 s; such a pass takes 0\.250 s\.$"):
        lanes.watchdog.look()
