"""Which API worker takes a connection from the port that they share: one that has not clearly more than another."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import structlog

from api.connection_counts import ConnectionCounts
from api.listener import BACKLOG

_LOOK_EVERY_S: Final = 0.001
"""How soon a connection that was left to another worker is looked at again. uvloop rounds to milliseconds: with less we would spin."""
_PATIENCE_S: Final = 0.01
"""How long connections are left to a worker whose number then is what it was: it stands still, or has its hands full."""
_ABSENCE_S: Final = 1.0
"""For how long nothing is left to a worker that did not come, unless its number changes."""
_LEAD: Final = 2
"""A worker takes a connection unless another has fewer by more than this and a sixteenth of its own, rounded up: while they have few they
differ by four at most. With less, workers whose clients come for a single request leave those to one another, and wait."""
_TAKEN_AT_ONCE: Final = 64
_RETRY_S: Final = 1.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log: Final = structlog.get_logger()


class Acceptor:
    """Takes connections for one worker, in turn with the others. Made in the event loop that serves them.

    An event loop's own server takes all that wait as soon as it is awake: of sixteen clients that came at once and kept their connections,
    as reverse proxies do, four workers had 12, 2, 2 and none, for as long as the clients lived.

    Args:
        listener: the port's socket.
        counts: how many connections each worker has that are at work.
        worker: which of them this is.
        serve: serves a connection; returns once that is its protocol's. Whenever one ends, `count` must hear of it.
    """

    def __init__(
        self,
        listener: socket.socket,
        counts: ConnectionCounts,
        worker: int,
        serve: Callable[[socket.socket], Coroutine[Any, Any, object]],
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._counts = counts
        self._worker = worker
        self._serve = serve
        self._connections = 0
        self._beginning: set[asyncio.Task[object]] = set()
        self._absent: dict[int, tuple[int, float]] = {}
        """Workers that did not come when it was their turn: they have none while they have that many connections, until then."""
        self._arrivals = select.poll()
        self._arrivals.register(listener, select.POLLIN)
        self._loop = asyncio.get_running_loop()
        self._next_look: asyncio.TimerHandle | None = None
        self._resume()

    def count(self, change: int) -> None:
        """Say that there are so many connections more or less, other than by taking them."""
        self._connections += change
        self._publish()

    async def close(self, timeout_s: float) -> None:
        """Take what has connected already, and close the port.

        Args:
            timeout_s: for TLS handshakes.
        """
        self._withdraw()
        self._loop.remove_reader(self._listener)
        if self._next_look is not None:
            self._next_look.cancel()
        # The kernel resets what has connected but was never accepted: requests that their clients have sent in good faith.
        with contextlib.suppress(OSError):
            for connection in self._waiting(BACKLOG):
                self._begin(connection)
        self._listener.close()
        if self._beginning:
            _, late = await asyncio.wait(self._beginning, timeout=timeout_s)
            for task in late:
                task.cancel()

    def _take(self) -> None:
        """Take what waits, as long as it is our turn. Called by the event loop whenever something waits."""
        if others := self._whose_turn():
            if self._arrivals.poll(0):
                self._pause(_LOOK_EVERY_S, self._look, others, self._loop.time() + _PATIENCE_S)
            return
        try:
            for connection in self._waiting(_TAKEN_AT_ONCE):
                self._begin(connection)
                if self._whose_turn():
                    return  # what waits still is looked at in the loop's next turn
        except OSError as error:
            _log.error("accept_failed", reason=error.strerror)
            self._withdraw()
            self._pause(_RETRY_S, self._resume)

    def _look(self, before: dict[int, int], deadline_s: float) -> None:
        """See whether somebody has come whose turn it was: `before`, with their counts of then."""
        others, now_s = self._whose_turn(), self._loop.time()
        if others and self._arrivals.poll(0):
            if now_s < deadline_s:
                self._pause(_LOOK_EVERY_S, self._look, before, deadline_s)
                return
            self._absent |= {worker: (count, now_s + _ABSENCE_S) for worker, count in others.items() if before.get(worker) == count}
        self._resume()

    def _pause(self, pause_s: float, then: Callable[..., None], *arguments: object) -> None:
        self._loop.remove_reader(self._listener)
        self._next_look = self._loop.call_later(pause_s, then, *arguments)

    def _resume(self) -> None:
        self._is_open = True
        self._publish()
        self._loop.add_reader(self._listener, self._take)

    def _publish(self) -> None:
        if self._is_open:
            self._counts.set(self._worker, self._connections)

    def _withdraw(self) -> None:
        self._is_open = False  # and what ends now is not told: another process may have our place already
        self._counts.close(self._worker)

    def _whose_turn(self) -> dict[int, int]:
        """The other workers that have clearly fewer connections, and how many; without those that just did not come."""
        most = self._connections * 15 // 16 - _LEAD
        return {worker: count for worker, count in self._counts.open().items() if count < most and not self._is_absent(worker, count)}

    def _is_absent(self, worker: int, count: int) -> bool:
        missed_at, until_s = self._absent.get(worker, (-1, 0.0))
        return count == missed_at and self._loop.time() < until_s

    def _waiting(self, most: int) -> Iterator[socket.socket]:
        """Accept up to so many connections that wait.

        Raises:
            OSError: the process or the system has no room for another.
        """
        for _ in range(most):
            if not self._arrivals.poll(0):  # cheaper than an accept that fails
                return
            try:
                connection, _ = self._listener.accept()
            except OSError as error:  # somebody else was quicker, or the client has gone again
                if error.errno in _EXHAUSTED:
                    raise
            else:
                yield connection

    def _begin(self, connection: socket.socket) -> None:
        self.count(1)
        task = self._loop.create_task(self._serve(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
