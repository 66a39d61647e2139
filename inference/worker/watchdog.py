"""Notices a lane that is stuck in a forward pass. It looks from outside, because the lane's own thread cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

LOOK_EVERY_S: Final = 1.0
_PATIENCE: Final = 20.0
"""A pass may take so many times as long as such a pass usually does, however long that is."""


class ForwardPass(NamedTuple):
    """One that runs at this moment."""

    number: int
    """Of its lane: another pass has another one."""
    usual_s: float
    """What a pass of as many pictures takes, as measured."""


class LaneStuck(Exception):
    """A forward pass does not end: the device, or the driver, hangs."""


class Watchdog:
    """Counts for how many looks in a row each lane has been in the same pass.

    Looks are counted and not seconds: a machine that was suspended, or a container that was frozen, costs one look.

    Args:
        passes: what each lane runs at this moment; None for one that is idle.
        stuck_after_s: how long any pass may take.
    """

    def __init__(self, passes: Callable[[], Sequence[ForwardPass | None]], *, stuck_after_s: float) -> None:
        self._passes = passes
        self._stuck_after_s = stuck_after_s
        self._seen: dict[int, tuple[int, int]] = {}
        """By lane: the pass, and how often in a row it was seen."""

    def look(self) -> None:
        """Look once; call it every `LOOK_EVERY_S`.

        Raises:
            LaneStuck: a lane has been in one pass for too long.
        """
        for lane, running in enumerate(self._passes()):
            if running is None:
                self._seen.pop(lane, None)
                continue
            number, looks = self._seen.get(lane, (running.number, 0))
            looks = looks + 1 if number == running.number else 1
            self._seen[lane] = (running.number, looks)
            # The first look only says that it has begun.
            took_s = (looks - 1) * LOOK_EVERY_S
            if took_s >= max(self._stuck_after_s, _PATIENCE * running.usual_s):
                raise LaneStuck(f"Lane {lane} has been in one forward pass for {took_s:.0f} s; such a pass takes {running.usual_s:.3f} s.")
