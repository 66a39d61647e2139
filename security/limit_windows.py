"""Sliding windows in memory that all API workers of one service share, with a bound on how many there can be."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import time
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from math import floor
from typing import Final

from security.rate_limits import Window

_WAYS: Final = 8
"""Keys whose hashes fall together; the ninth displaces the one that was silent for longest."""
_TAG, _NUMBER, _COUNT, _PREVIOUS, _SEEN = (word * _WAYS for word in range(5))
"""Where a set has its keys' words: the key's hash, the window counted, its count, the one before it's, and when it was last asked for."""
_SET_WORDS: Final = 5 * _WAYS
_SECRET_BYTES: Final = 32
_SECRET_WORDS: Final = _SECRET_BYTES // 8
_TAG_BYTES: Final = 8

MAX_KEYS: Final = 65_536
"""In all windows together."""

_KNOWN_PLACES: Final = 4096
"""Of how many keys the place is remembered."""

_LOCK_TRIES: Final = 200
"""With the processor given away between them: a worker holds the lock for microseconds."""


def memory_bytes(max_keys: int = MAX_KEYS) -> int:
    """How much memory the windows of so many keys need; what is never written to takes none."""
    return _SECRET_BYTES + -(-max_keys // _WAYS) * _SET_WORDS * 8


def prepare_memory(file: int) -> None:
    """Write what new memory, all zeros, begins with: a secret of its own, so that nobody can choose keys that displace one another's."""
    with mmap.mmap(file, 0) as memory:
        memory[:_SECRET_BYTES] = secrets.token_bytes(_SECRET_BYTES)


class _Lock:
    """One process at a time, unless another one stands still with it: nobody waits longer than a moment."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.held = False

    def __enter__(self) -> None:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another has it
                os.sched_yield()
            else:
                self.held = True
                return

    def __exit__(self, *_: object) -> None:
        if self.held:
            self.held = False
            fcntl.lockf(self._file, fcntl.LOCK_UN)


class SharedWindows:
    """The sliding window counter of `limits`, as its scripts for Redis count it, for all processes that have the same memory.

    The library's own memory storage belongs to one process, walks all its keys on the event loop after every hit and keeps any number of
    them: with 100,000 addresses each hit takes 58 ms. Here a key has one of few places, found by its hash. What is counted outlives the
    worker that counted it.

    A lock of the file (`fcntl`) makes what one worker does visible to the others at once, and the kernel takes it from a worker that dies.
    Nobody waits for one that stands still with it: after a moment a unit is taken without it, and may then be counted as another one is.

    Args:
        file: memory of `memory_bytes` as a file descriptor, prepared by `prepare_memory`; it stays the caller's.
        clock: seconds that never run backwards, the same in all processes.
    """

    def __init__(self, file: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = _Lock(file)
        self._clock = clock
        memory = mmap.mmap(file, 0)
        self._secret = memory[:_SECRET_BYTES]
        self._words = memoryview(memory).cast("Q")
        self._sets = (len(self._words) - _SECRET_WORDS) // _SET_WORDS
        self._place = lru_cache(_KNOWN_PLACES)(self._find_place)

    def take(self, key: str, limit: int, width_s: int, cost: int = 1) -> tuple[bool, Window]:
        """Take `cost` units unless that would be more than `limit` in `width_s` seconds, and read the window."""
        tag, start = self._place(key, width_s)
        with self._lock:
            now_s = self._clock()
            number, elapsed_s = divmod(now_s, width_s)
            way, previous, count = self._read(tag, start, int(number))
            left_s = width_s - elapsed_s
            admitted = floor(previous * left_s / width_s + count) + cost <= limit
            if admitted:
                count += cost
            if count:
                self._write(tag, start, way, (int(number), count, previous), now_s)
        return admitted, Window(previous, left_s, count, left_s + width_s)

    def remember(self, key: str, width_s: int, used: int) -> None:
        """Let `used` units of the window be taken, as another storage has counted them."""
        tag, start = self._place(key, width_s)
        with self._lock:
            now_s = self._clock()
            number, elapsed_s = divmod(now_s, width_s)
            way, previous, _ = self._read(tag, start, int(number))
            carried = floor(previous * (width_s - elapsed_s) / width_s)
            self._write(tag, start, way, (int(number), max(0, used - carried), previous), now_s)

    def _find_place(self, key: str, width_s: int) -> tuple[int, int]:
        digest = blake2b(f"{width_s} {key}".encode("utf-8", "surrogatepass"), digest_size=_TAG_BYTES, key=self._secret).digest()
        tag = int.from_bytes(digest, "big") or 1  # 0 is a free place
        return tag, _SECRET_WORDS + tag % self._sets * _SET_WORDS

    def _read(self, tag: int, start: int, number: int) -> tuple[int | None, int, int]:
        words = self._words
        tags = words[start : start + _WAYS].tolist()
        if tag not in tags:
            return None, 0, 0
        way = tags.index(tag)
        at = start + way
        held, count = words[at + _NUMBER], words[at + _COUNT]
        if held == number:
            return way, words[at + _PREVIOUS], count
        return way, count if held == number - 1 else 0, 0

    def _write(self, tag: int, start: int, way: int | None, counts: tuple[int, int, int], now_s: float) -> None:
        words = self._words
        if way is None:
            seen = words[start + _SEEN : start + _SEEN + _WAYS].tolist()
            way = seen.index(min(seen))
        at = start + way
        words[at] = tag
        words[at + _NUMBER], words[at + _COUNT], words[at + _PREVIOUS] = counts
        words[at + _SEEN] = int(now_s * 1e6)
