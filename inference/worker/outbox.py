"""What an engine says to one API worker, from any thread: a lane's answers leave as they come, without a turn of the event loop between."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Final

from inference.frames import frame
from inference.ipc import FromEngine


class Outbox:
    """The sending half of a connection whose receiving half is the event loop's.

    Nobody waits for a worker that does not read: what the system does not take at once is kept, in order, until it does.

    Args:
        connection: not blocking; closed with the outbox.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection: Final = connection
        self._loop: Final = asyncio.get_running_loop()
        self._lock: Final = threading.Lock()
        self._kept = bytearray()
        self._closed = False

    def send(self, *messages: FromEngine) -> None:
        """Send some messages in one piece. Nothing happens when the worker has gone: the receiving half tells."""
        data = b"".join(map(frame, messages))
        with self._lock:
            if self._closed:
                return
            if not self._kept:
                data = data[self._taken(data) :]
                if not data:
                    return
                with contextlib.suppress(RuntimeError):  # the loop has closed: the engine is ending
                    self._loop.call_soon_threadsafe(self._send_when_possible)
            self._kept += data

    def close(self) -> None:
        """Close this half. Belongs to the event loop's thread, as all below."""
        with self._lock:
            self._closed = True
            self._loop.remove_writer(self._connection)
            self._connection.close()

    def _send_when_possible(self) -> None:
        if not self._closed:
            self._loop.add_writer(self._connection, self._send_kept)

    def _send_kept(self) -> None:
        with self._lock:
            del self._kept[: self._taken(self._kept)]
            if not self._kept:
                self._loop.remove_writer(self._connection)

    def _taken(self, data: bytes | bytearray) -> int:
        """How many bytes of `data` the system has taken: all of them where nobody is there to read any."""
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)
