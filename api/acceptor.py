"""Which API worker takes a connection from the port that they share: the one that has the fewest."""

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

_LOOK_EVERY_S: Final = 0.0005
"""How soon a connection that was left to another worker is looked at again."""
_PATIENCE_S: Final = 0.01
"""How long a connection is left to a worker that does not come: it stands still, or has its hands full."""
_TAKEN_AT_ONCE: Final = 64
_BACKLOG: Final = 2048
_RETRY_S: Final = 1.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log: Final = structlog.get_logger()


class Acceptor:
    """Takes connections for one worker, in turn with the others. Made in the event loop that serves them.

    An event loop's own server takes all that wait as soon as it is awake: of sixteen clients that came at once and kept their connections,
    as reverse proxies do, four workers had nine, none, seven and none, for as long as the clients lived.

    Args:
        listener: the port's socket.
        counts: how many connections each worker has.
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
        self._no_shows: dict[int, int] = {}
        """Workers that did not come when it was their turn, and how many they had: until they have another number they have no turn."""
        self._arrivals = select.poll()
        self._arrivals.register(listener, select.POLLIN)
        self._loop = asyncio.get_running_loop()
        self._next_look: asyncio.TimerHandle | None = None
        self._is_open = True
        self.count(0)
        self._loop.add_reader(listener, self._take)

    def count(self, change: int) -> None:
        """Say how many connections more, or less, there are than those that were taken."""
        self._connections += change
        if self._is_open:  # else another process may have our place already
            self._counts.set(self._worker, self._connections)

    async def close(self, timeout_s: float) -> None:
        """Take what has connected already, and close the port.

        Args:
            timeout_s: for TLS handshakes.
        """
        if not self._is_open:
            return
        self._is_open = False
        self._counts.close(self._worker)
        self._loop.remove_reader(self._listener)
        if self._next_look is not None:
            self._next_look.cancel()
        # The kernel resets what has connected but was never accepted: requests that their clients have sent in good faith.
        with contextlib.suppress(OSError):
            for connection in self._waiting(_BACKLOG):
                self._begin(connection)
        self._listener.close()
        if self._beginning:
            _, late = await asyncio.wait(self._beginning, timeout=timeout_s)
            for task in late:
                task.cancel()

    def _take(self) -> None:
        """Take what waits, as long as it is our turn. Called by the event loop whenever something waits."""
        if self._whose_turn():
            if self._arrivals.poll(0):
                self._pause(_LOOK_EVERY_S, self._look, self._loop.time() + _PATIENCE_S)
            return
        try:
            for connection in self._waiting(_TAKEN_AT_ONCE):
                self._begin(connection)
                if self._whose_turn():
                    return  # what waits still is looked at in the loop's next turn
        except OSError as error:
            _log.error("accept_failed", reason=error.strerror)
            self._pause(_RETRY_S, self._resume)

    def _look(self, deadline_s: float) -> None:
        """See whether somebody has come whose turn it was."""
        others = self._whose_turn()
        if others and self._arrivals.poll(0):
            if self._loop.time() < deadline_s:
                self._pause(_LOOK_EVERY_S, self._look, deadline_s)
                return
            self._no_shows = others
        self._resume()

    def _pause(self, pause_s: float, then: Callable[..., None], *arguments: object) -> None:
        self._loop.remove_reader(self._listener)
        self._next_look = self._loop.call_later(pause_s, then, *arguments)

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._take)

    def _whose_turn(self) -> dict[int, int]:
        """The other workers that have fewer connections, by more than a sixteenth, and how many; without those that did not come."""
        counts = self._counts.open()
        ours = counts.pop(self._worker, 0)
        return {worker: count for worker, count in counts.items() if count < ours - ours // 16 and self._no_shows.get(worker) != count}

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
