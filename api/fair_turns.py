"""A few places that many want: given to clients in turn, with a bound on how many wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class NoTurn(Exception):
    """Too many wait already, and this one is the newest of the client with the longest line."""


class FairTurns:
    """Places that are held for a while each. Belongs to one event loop's thread.

    As in the engine's queue (`inference/worker/queue.py`), clients are served in turn, and where as many wait as may, the client with the
    longest line gives up its newest turn for one of a client with a shorter line.

    Args:
        places: how many there are.
        max_waiting: how many more may wait for one.
    """

    def __init__(self, places: int, max_waiting: int) -> None:
        self._free = places
        self._max_waiting = max_waiting
        self._lines: OrderedDict[str, dict[asyncio.Future[None], None]] = OrderedDict()
        self.waiting = 0
        """How many wait."""

    async def take(self, client: str) -> None:
        """Wait for a place. Whoever got one gives it back.

        Raises:
            NoTurn: too many wait.
        """
        if self._free:  # then nobody waits
            self._free -= 1
            return
        turn = self._queue(client)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.give_back()  # it came in the same moment
            else:
                self._leave(client, turn)
            raise

    def give_back(self) -> None:
        """Let the next one have the place."""
        while self._lines:
            client, line = self._lines.popitem(last=False)
            turn = next(iter(line))
            del line[turn]
            self.waiting -= 1
            if line:
                self._lines[client] = line  # to the back of the round
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _queue(self, client: str) -> asyncio.Future[None]:
        line = self._lines.get(client, {})
        if self.waiting >= self._max_waiting:
            longest = max(self._lines.values(), key=len, default={})
            if len(longest) <= len(line) + 1:
                raise NoTurn
            newest, _ = longest.popitem()
            self.waiting -= 1
            if not newest.done():
                newest.set_exception(NoTurn())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line[turn] = None
        self._lines.setdefault(client, line)
        self.waiting += 1
        return turn

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(client, {})
        if turn in line:
            del line[turn]
            self.waiting -= 1
            if not line:
                del self._lines[client]
