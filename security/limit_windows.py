"""Sliding windows in memory that all API workers of one service share, with a bound on how many there can be."""

from __future__ import annotations

import mmap
import secrets
import time
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from math import floor
from typing import Final

from security.rate_limits import Window

PLACES: Final = 131_072
"""For keys, in each worker's table: 4 MiB."""
_WAYS: Final = 8
"""How many places a key may have in a table."""
_WORDS: Final = 4
"""Of a place: the key's tag, 0 where it is free; its current count, and the previous one; when it was last asked for."""
_TAG_BYTES: Final = 8
_HEAD_BYTES: Final = 64
"""The secret. As long as a row of a table, so that no two workers write to one line of the processor's caches."""
_HEAD_WORDS: Final = _HEAD_BYTES // 8
_KNOWN_KEYS: Final = 4096
"""Of how many the tag is remembered."""
_COUNT_BITS: Final = 32
_COUNT_MASK: Final = (1 << _COUNT_BITS) - 1
"""A count is one word with the second at which its window ends above it, so that nobody ever reads half of it."""
_WIDTH_BITS: Final = 17
_WIDTH_MASK: Final = (1 << _WIDTH_BITS) - 1
"""When a key was last asked for is one word, too: in milliseconds, above how many seconds wide its windows are, at most a day."""


def memory_bytes(workers: int, places: int = PLACES) -> int:
    """How much memory that many workers share. A page takes none until a key falls into it, for whichever worker."""
    return _HEAD_BYTES + -(-places // _WAYS) * workers * _WAYS * _WORDS * 8


def prepare_memory(file: int) -> None:
    """Write what new memory, all zeros, begins with: a secret of its own, so that nobody can choose keys that displace certain others."""
    with mmap.mmap(file, 0) as memory:
        memory[:_HEAD_BYTES] = secrets.token_bytes(_HEAD_BYTES)


class SharedWindows:
    """The sliding window counter of `limits`, as its scripts for Redis count it, for all processes that have the same memory.

    The library's own memory storage belongs to one process, walks all its keys on the event loop after every hit and keeps any number of
    them: with 100,000 addresses each hit takes 58 ms. Here each worker has a table, in which it alone counts, and adds up what stands in
    all of them: there is no lock, so nobody waits, and what is counted outlives the worker that counted it. A unit is written before all
    are added up, and taken back where it was one too many: of two workers that want the last one at the same moment both may go without
    it, but never both with it.

    A key's hash says in which set of eight places it may be. Where all are taken, the key whose counts weigh for the shortest time makes
    room, and of several the one that was silent for longest.

    Args:
        file: memory of `memory_bytes` as a file descriptor, prepared by `prepare_memory`; it is not needed any more once this is made.
        worker: whose table is written, from 0.
        workers: how many there are.
        clock: seconds that never run backwards, the same in all processes.
    """

    def __init__(self, file: int, *, worker: int = 0, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        memory = mmap.mmap(file, 0)
        self._secret = memory[:_HEAD_BYTES]
        self._words = memoryview(memory).cast("Q")
        # A set is four rows, of tags, of current counts, of previous ones and of times, with eight columns for each worker.
        self._columns = workers * _WAYS
        self._own = worker * _WAYS
        self._sets = (len(self._words) - _HEAD_WORDS) // (self._columns * _WORDS)
        self._place = lru_cache(_KNOWN_KEYS)(self._find_place)

    def take(self, key: str, limit: int, width_s: int, cost: int = 1) -> tuple[bool, Window]:
        """Take `cost` units unless that would be more than `limit` in `width_s` seconds, and read the window."""
        tag, start = self._place(key, width_s)
        now_s = self._clock()
        while True:
            ends_s, left_s, seen = _moment(now_s, width_s)
            if cost:
                self._add(tag, start, ends_s, seen, cost)
            previous, count, latest_ends_s = self._read(tag, start, ends_s, width_s, seen)
            admitted = floor(previous * left_s / width_s + count) <= limit
            if cost and (not admitted or latest_ends_s > ends_s):
                self._add(tag, start, ends_s, seen, -cost)
                count -= cost
            if latest_ends_s == ends_s:
                return admitted, Window(previous, left_s, count, left_s + width_s)
            now_s = float(latest_ends_s - width_s)  # the window has turned since we read the clock

    def remember(self, key: str, width_s: int, used: int) -> None:
        """Let at least `used` units of the window be taken, as another storage has counted them."""
        tag, start = self._place(key, width_s)
        ends_s, left_s, seen = _moment(self._clock(), width_s)
        previous, count, latest_ends_s = self._read(tag, start, ends_s, width_s, seen)
        missing = used - floor(previous * left_s / width_s) - count
        if missing > 0 and latest_ends_s == ends_s:  # else it was the window before, and the next answer tells more
            self._add(tag, start, ends_s, seen, missing)

    def _find_place(self, key: str, width_s: int) -> tuple[int, int]:
        digest = blake2b(f"{width_s} {key}".encode("utf-8", "surrogatepass"), digest_size=_TAG_BYTES, key=self._secret).digest()
        tag = int.from_bytes(digest, "big") or 1  # 0 is a free place
        return tag, _HEAD_WORDS + tag % self._sets * self._columns * _WORDS

    def _read(self, tag: int, start: int, ends_s: int, width_s: int, seen: int) -> tuple[int, int, int]:
        """The counts of the previous window and of this one over all tables, and when the latest window ends that somebody counts in."""
        words, columns = self._words, self._columns
        tags = words[start : start + columns].tolist()
        previous, count, latest_ends_s, column = 0, 0, ends_s, -1
        for _ in range(tags.count(tag)):
            column = tags.index(tag, column + 1)
            at = start + column
            # In this order: when a window turns, its worker writes the previous count first.
            newest, before = words[at + columns], words[at + 2 * columns]
            if words[at] != tag:
                continue  # its worker has just given the place to another key
            words[at + 3 * columns] = seen  # in all tables: in none of them is the key silent
            newest_ends_s, before_ends_s = newest >> _COUNT_BITS, before >> _COUNT_BITS
            latest_ends_s = max(latest_ends_s, newest_ends_s, before_ends_s + width_s)
            if newest_ends_s == ends_s:
                count += newest & _COUNT_MASK
                newest, newest_ends_s = before, before_ends_s
            if newest_ends_s == ends_s - width_s:
                previous += newest & _COUNT_MASK
        return previous, count, latest_ends_s

    def _add(self, tag: int, start: int, ends_s: int, seen: int, units: int) -> None:
        """Change this worker's own count of a key."""
        words, columns, first = self._words, self._columns, start + self._own
        tags = words[first : first + _WAYS].tolist()
        known = tag in tags
        at = first + tags.index(tag) if known else self._make_room(first)
        newest = words[at + columns]
        if newest >> _COUNT_BITS != ends_s:
            words[at + 2 * columns] = newest
            newest = ends_s << _COUNT_BITS
        words[at + columns] = newest + units
        if not known:
            words[at + 3 * columns] = seen
            words[at] = tag  # last: nobody takes another key's counts for this one's

    def _make_room(self, first: int) -> int:
        words, columns = self._words, self._columns

        def rank(at: int) -> tuple[int, int]:
            seen = words[at + 3 * columns]
            weighs_until_s = (words[at + columns] >> _COUNT_BITS) + (seen & _WIDTH_MASK)
            return weighs_until_s, seen

        at = min(range(first, first + _WAYS), key=rank)
        words[at] = words[at + columns] = 0
        return at


def _moment(now_s: float, width_s: int) -> tuple[int, float, int]:
    """When the window ends that this moment is in, in how many seconds that is, and the word for a key that is asked for now."""
    number, elapsed_s = divmod(now_s, width_s)
    return (int(number) + 1) * width_s, width_s - elapsed_s, int(now_s * 1e3) << _WIDTH_BITS | width_s
