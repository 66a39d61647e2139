"""The pictures that wait for the device: bounded, in turn by client, and rid of those nobody waits for any more."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from inference.ipc import Failure, Result
from inference.types import Pixels


@dataclass(slots=True, eq=False)
class Entry:
    """One picture on its way through the engine. `reply` belongs to its connection and to the event loop's thread."""

    key: Hashable
    """Unique among the waiting: the connection and the prediction's id on it."""
    id: int
    pixels: Pixels
    top_k: int
    deadline_ns: int
    client: str
    reply: Callable[[Result | Failure], object]
    received_ns: int = field(default_factory=time.monotonic_ns)


class FairQueue:
    """A bounded queue drawn from clients in turn: one client's flood costs another's single picture one place, not the whole flood.

    When it is full, the client with the longest line gives up its newest picture for one of a client with a shorter line: a flood fills the
    queue with its own pictures, and then with no more of them. Filled and pruned from the event loop, emptied by the compute threads.
    """

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._clients: OrderedDict[str, dict[Hashable, Entry]] = OrderedDict()
        self._owners: dict[Hashable, str] = {}
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """How many pictures wait."""
        return len(self._owners)

    def put(self, entry: Entry) -> Entry | None:
        """Add one picture to the end of its client's line.

        Returns:
            The picture that there is no place for: none, the newest of the client with the longest line, or `entry` itself.
        """
        with self._changed:
            if self._closed:
                return entry
            line = self._clients.get(entry.client, {})
            turned_out = None
            if len(self._owners) >= self._max_images:
                longest = max(self._clients.values(), key=len)
                if len(longest) <= len(line) + 1:
                    return entry
                turned_out = longest[next(reversed(longest))]
                self._remove(turned_out.key)
            line[entry.key] = entry
            self._clients.setdefault(entry.client, line)
            self._owners[entry.key] = entry.client
            self._changed.notify_all()
            return turned_out

    def ahead_of(self, client: str) -> int:
        """How many pictures would be drawn before one that this client put in now; one too many for each client that has had its turn."""
        with self._changed:
            own = len(self._clients.get(client, ()))
            return own + sum(min(len(line), own + 1) for other, line in self._clients.items() if other != client)

    def discard(self, key: Hashable) -> None:
        """Free the place of a picture whose caller has left; nothing happens when it is running or gone."""
        with self._changed:
            if key in self._owners:
                self._remove(key)

    def _remove(self, key: Hashable) -> None:
        client = self._owners.pop(key)
        line = self._clients[client]
        del line[key]
        if not line:
            del self._clients[client]

    def discard_where(self, belongs: Callable[[Hashable], bool]) -> None:
        """Free the places of every picture whose key `belongs`."""
        with self._changed:
            keys = [key for key in self._owners if belongs(key)]
        for key in keys:
            self.discard(key)

    @property
    def closed(self) -> bool:
        """True once nothing comes any more."""
        return self._closed

    def wake(self) -> None:
        """Let those who wait in `take` look again whether they may."""
        with self._changed:
            if self._owners:
                self._changed.notify_all()

    def take(
        self, max_images: int, *, timeout_s: float | None = None, if_true: Callable[[], bool] = lambda: True
    ) -> tuple[list[Entry], list[Entry]]:
        """Wait for work, then take up to `max_images` pictures, one of each client in turn.

        Args:
            max_images: the most to run.
            timeout_s: how long to wait.
            if_true: nothing is taken while it is false; `wake` tells that it has changed.

        Returns:
            The pictures to run, and those whose deadline has passed. Both are empty when the queue was closed or `timeout_s` passed.
        """
        with self._changed:
            batch: list[Entry] = []
            late: list[Entry] = []
            if not self._changed.wait_for(lambda: self._closed or (self._owners and if_true()), timeout_s):
                return batch, late
            now_ns = time.monotonic_ns()
            while self._clients and len(batch) < max_images:
                client, line = self._clients.popitem(last=False)
                key = next(iter(line))
                entry = line.pop(key)
                del self._owners[key]
                if line:
                    self._clients[client] = line  # to the back of the round
                (late if entry.deadline_ns <= now_ns else batch).append(entry)
            return batch, late

    def close(self) -> list[Entry]:
        """Take no more, wake the compute thread, and hand back what still waited."""
        with self._changed:
            self._closed = True
            left = [entry for line in self._clients.values() for entry in line.values()]
            self._clients.clear()
            self._owners.clear()
            self._changed.notify_all()
            return left
