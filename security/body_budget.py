"""The bound on what the bodies of all requests of one process take of its memory together."""

from __future__ import annotations

import math
import time
from typing import Final

from security.errors import TooManyBodies

_SMOOTHING: Final = 0.1
"""The weight of the newest body in the running mean: about the last twenty count."""


class BodyBudget:
    """Counts the bytes that have been received for requests that are not answered yet.

    Bytes that are there, and not those that are announced: else a few clients that announce much and send little would shut everybody out.
    No client may hold more than half, so that one client's flood leaves room for the others.

    Args:
        max_bytes: the most that all may hold together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._by_client: dict[str, int] = {}
        self._mean_s = 0.0

    def open(self, client: str) -> HeldBody:
        """The body of one more request of a client."""
        return HeldBody(self, client)

    def take(self, client: str, count: int) -> None:
        """Hold so many bytes more.

        Raises:
            TooManyBodies: there is no room for them; nothing was taken.
        """
        of_client = self._by_client.get(client, 0) + count
        if self._held_bytes + count > self._max_bytes or of_client > self._max_bytes // 2:
            raise TooManyBodies(retry_after_s=max(1, math.ceil(self._mean_s)))
        self._held_bytes += count
        self._by_client[client] = of_client

    def give_back(self, client: str, count: int, held_s: float) -> None:
        """Let go of a request's bytes."""
        self._held_bytes -= count
        left = self._by_client[client] - count
        if left:
            self._by_client[client] = left
        else:
            del self._by_client[client]
        self._mean_s += (held_s - self._mean_s) * (_SMOOTHING if self._mean_s else 1.0)


class HeldBody:
    """What one request holds."""

    __slots__ = ("_began_s", "_budget", "_bytes", "_client")

    def __init__(self, budget: BodyBudget, client: str) -> None:
        self._budget = budget
        self._client = client
        self._bytes = 0
        self._began_s = time.monotonic()

    def add(self, count: int) -> None:
        """So much more has come.

        Raises:
            TooManyBodies: there is no room for it.
        """
        if count:
            self._budget.take(self._client, count)
            self._bytes += count

    def close(self) -> None:
        """The request has been answered."""
        if self._bytes:
            self._budget.give_back(self._client, self._bytes, time.monotonic() - self._began_s)
            self._bytes = 0
