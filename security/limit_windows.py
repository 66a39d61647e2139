"""Sliding windows in this process's own memory, with a bound on how many there can be."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import floor
from typing import Final

from security.rate_limits import Window

MAX_KEYS: Final = 65_536
"""In each half of a window: some 20 MB at worst. A flood of addresses then forgets those that were silent for longest."""


class _Halves:
    """The counts of the current window and of the one before it, for every key with the same width."""

    __slots__ = ("current", "number", "previous")

    def __init__(self) -> None:
        self.number = -1
        self.current: OrderedDict[str, int] = OrderedDict()
        self.previous: OrderedDict[str, int] = OrderedDict()

    def turn_to(self, number: int) -> None:
        if number != self.number:
            self.previous = self.current if number == self.number + 1 else OrderedDict()
            self.current = OrderedDict()
            self.number = number


class MemoryWindows:
    """The sliding window counter of `limits`, as its scripts for Redis count it.

    The library's own memory storage walks all its keys on the event loop after every hit and keeps any number of them: with 100,000
    addresses each hit takes 58 ms. Here a whole window is forgotten at once, and one that is full forgets its least recent key.

    Args:
        max_keys: how many keys are counted in one window.
        clock: seconds that never run backwards.
    """

    def __init__(self, *, max_keys: int = MAX_KEYS, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_keys = max_keys
        self._clock = clock
        self._by_width: dict[int, _Halves] = {}

    def __len__(self) -> int:
        """How many counts are held."""
        return sum(len(halves.current) + len(halves.previous) for halves in self._by_width.values())

    def take(self, key: str, limit: int, width_s: int, cost: int = 1) -> tuple[bool, Window]:
        """Take `cost` units unless that would be more than `limit` in `width_s` seconds, and read the window."""
        halves, elapsed_s = self._at(width_s)
        previous, count, left_s = halves.previous.get(key, 0), halves.current.get(key, 0), width_s - elapsed_s
        admitted = floor(previous * left_s / width_s + count) + cost <= limit
        if admitted:
            count += cost
        if count:
            self._set(halves, key, count)
        return admitted, Window(previous, left_s, count, left_s + width_s)

    def remember(self, key: str, width_s: int, used: int) -> None:
        """Let `used` units of the window be taken, as another storage has counted them."""
        halves, elapsed_s = self._at(width_s)
        carried = floor(halves.previous.get(key, 0) * (width_s - elapsed_s) / width_s)
        self._set(halves, key, max(0, used - carried))

    def _set(self, halves: _Halves, key: str, count: int) -> None:
        halves.current[key] = count
        halves.current.move_to_end(key)
        if len(halves.current) > self._max_keys:
            halves.current.popitem(last=False)

    def _at(self, width_s: int) -> tuple[_Halves, float]:
        number, elapsed_s = divmod(self._clock(), width_s)
        halves = self._by_width.get(width_s)
        if halves is None:
            halves = self._by_width[width_s] = _Halves()
        halves.turn_to(int(number))
        return halves, elapsed_s
