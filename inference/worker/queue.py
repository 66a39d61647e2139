"""The pictures that wait for the device: bounded, in turn by client, and rid of those nobody waits for any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

from inference.fair_lines import FairLines
from inference.ipc import Failure, Result
from inference.types import Pixels


class Reply(Protocol):
    """Sends answers to whoever asked, from any thread."""

    def __call__(self, *answers: Result | Failure) -> object:
        """All of them in one piece."""
        ...


@dataclass(slots=True, eq=False)
class Entry:
    """One picture on its way through the engine."""

    key: Hashable
    """Unique among the waiting: the connection and the prediction's id on it."""
    id: int
    pixels: Pixels
    top_k: int
    deadline_ns: int
    client: str
    reply: Reply
    may_displace: bool = True
    received_ns: int = field(default_factory=time.monotonic_ns)


@dataclass(frozen=True, slots=True, eq=False)
class _Taker:
    """A thread that waits in `take`."""

    changed: threading.Condition
    if_true: Callable[[], bool]


class FairQueue:
    """A bounded queue drawn from clients in turn (`FairLines`). Filled and pruned from the event loop, emptied by the compute threads."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._lines: FairLines[Entry] = FairLines()
        self._entries: dict[Hashable, Entry] = {}
        self._lock = threading.Lock()
        self._takers: list[_Taker] = []
        self._closed = False

    def __len__(self) -> int:
        """How many pictures wait."""
        return len(self._entries)

    def put(self, entry: Entry) -> Entry | None:
        """Add one picture to the end of its client's line.

        Returns:
            The picture that there is no place for: none, the newest of the client with the longest line, or `entry` itself.
        """
        with self._lock:
            if self._closed:
                return entry
            full = len(self._entries) >= self._max_images
            turned_out = self._lines.put(entry.client, entry, full=full, may_displace=entry.may_displace)
            if turned_out is entry:
                return entry
            if turned_out is not None:
                del self._entries[turned_out.key]
            self._entries[entry.key] = entry
            self._wake_one()
            return turned_out

    def ahead_of(self, client: str) -> int:
        """How many pictures would be drawn before one that this client put in now; one too many for each client that has had its turn."""
        with self._lock:
            return self._lines.ahead_of(client)

    def discard(self, key: Hashable) -> bool:
        """Free the place of a picture whose caller has left; False, and nothing else, when it is running or gone."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._lines.discard(entry.client, entry)
            return entry is not None

    def discard_where(self, belongs: Callable[[Hashable], bool]) -> None:
        """Free the places of every picture whose key `belongs`."""
        with self._lock:
            keys = [key for key in self._entries if belongs(key)]
        for key in keys:
            self.discard(key)

    @property
    def closed(self) -> bool:
        """True once nothing comes any more."""
        return self._closed

    def wake(self) -> None:
        """Let those who wait in `take` look again whether they may."""
        with self._lock:
            self._wake_one()

    def _wake_one(self) -> None:
        # Not all of them: to wake a thread that may not take anything costs as much as to hand it a picture.
        taker = next((taker for taker in self._takers if taker.if_true()), None) if self._entries else None
        if taker is not None:
            taker.changed.notify()

    def take(
        self, batch_size: Callable[[int], int], *, timeout_s: float | None = None, if_true: Callable[[], bool] = lambda: True
    ) -> tuple[list[Entry], list[Entry]]:
        """Wait for work, then take some pictures, one of each client in turn.

        Args:
            batch_size: says of how many wait, at least one, the most to run.
            timeout_s: how long to wait.
            if_true: nothing is taken while it is false; `wake` tells that it has changed.

        Returns:
            The pictures to run, and those whose deadline has passed. Both are empty when the queue was closed or `timeout_s` passed.
        """
        with self._lock:
            batch: list[Entry] = []
            late: list[Entry] = []
            if not self._wait(if_true, timeout_s):
                return batch, late
            now_ns = time.monotonic_ns()
            wanted = batch_size(len(self._lines))
            while self._lines and len(batch) < wanted:
                entry = self._lines.take()
                del self._entries[entry.key]
                (late if entry.deadline_ns <= now_ns else batch).append(entry)
            self._wake_one()  # for what is left
            return batch, late

    def _wait(self, if_true: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until something may be taken; False where the queue was closed or `timeout_s` passed."""
        taker = _Taker(threading.Condition(self._lock), if_true)
        self._takers.append(taker)
        try:
            taker.changed.wait_for(lambda: self._closed or (self._entries and if_true()), timeout_s)
        finally:
            self._takers.remove(taker)
        return not self._closed and bool(self._entries) and if_true()

    def close(self) -> list[Entry]:
        """Take no more, wake the compute thread, and hand back what still waited."""
        with self._lock:
            self._closed = True
            left = list(self._lines)
            self._lines.clear()
            self._entries.clear()
            for taker in self._takers:
                taker.changed.notify()
            return left
