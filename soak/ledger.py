"""What a soak writes down while it runs: answers, losses, wrong answers, and when faults were in force."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from soak.wire import Endpoint

_KEPT: Final = 20
"""Of each kind of complaint, how many are kept word for word."""


class Window(NamedTuple):
    """When a fault was in force, by `time.monotonic`."""

    fault: str
    began_s: float
    ended_s: float


class Complaints:
    """Counts, and keeps the first few word for word."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, text: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < _KEPT:
            self.first.append(text)


class Ledger:
    """One soak's."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int, bool]] = Counter()
        """By who asked (`honest`, or the kind of hostility), the status, and whether a fault was in force."""
        self.requests: Counter[str] = Counter()
        """By who asked."""
        self.images: int = 0
        """Pictures of honest clients that were classified, each of them rightly."""
        self.latencies_s: dict[bool, array[float]] = {False: array("d"), True: array("d")}
        """Of honest requests of one picture that were answered 200; True: while a fault was in force."""
        self.lost = Complaints()
        """Honest requests that were out, whole, and got no well-formed answer."""
        self.cut = Complaints()
        """The same, where the API worker that held the connection was killed: nobody is left who could answer."""
        self.held_by_killed = 0
        """How many connections the killed workers held: no more than that can be cut."""
        self.wrong = Complaints()
        """Answers that are not right."""
        self.not_sent: Counter[str] = Counter()
        """Connections that ended before the request was out, by who asked; the client asks again."""
        self.windows: list[Window] = []
        self.faults: Counter[str] = Counter()
        self._current: tuple[str, float] | None = None
        self._killed: frozenset[Endpoint] = frozenset()

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """While the block runs, a fault is in force."""
        began_s = time.monotonic()
        self._current = (name, began_s)
        self.faults[name] += 1
        try:
            yield
        finally:
            self._current = None
            self._killed = frozenset()
            self.windows.append(Window(name, began_s, time.monotonic()))

    def worker_is_killed(self, endpoints: frozenset[Endpoint]) -> None:
        """What these connections hold cannot be answered any more. Said while the worker stands still, before it is killed."""
        self._killed = endpoints
        self.held_by_killed += len(endpoints)

    def faulted(self, since_s: float) -> bool:
        """Whether a fault was in force at any time since then."""
        return self._current is not None or (bool(self.windows) and self.windows[-1].ended_s > since_s)

    def answered(self, who: str, status: int, since_s: float) -> None:
        """A well-formed answer to a request that began at `since_s`."""
        self.answers[who, status, self.faulted(since_s)] += 1

    def served(self, seconds: float, since_s: float) -> None:
        """One picture of an honest client was classified, rightly, in so many seconds."""
        self.latencies_s[self.faulted(since_s)].append(seconds)

    def unanswered(self, endpoint: Endpoint, text: str) -> None:
        """An honest request that was out, whole, got no well-formed answer on this connection."""
        described = f"{text} ({self._current[0] if self._current else 'no fault'} in force)"
        (self.cut if endpoint in self._killed else self.lost).add(described)
