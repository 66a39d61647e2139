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

    def send(self, *messages: FromEngine) -> None:
        """Send some messages in one piece, from any thread. Where that cannot be done the connection ends, as the receiving half tells."""
        data = b"".join(map(frame, messages))
        with self._lock:
            if not self._kept:
                data = data[self._taken(data) :]
                if not data:
                    return
                with contextlib.suppress(RuntimeError):  # the loop has closed: the engine is ending
                    self._loop.call_soon_threadsafe(self._send_when_possible)
            self._kept += data

    def close(self) -> None:
        """Close this half, on the event loop's thread. Nothing happens the second time."""
        with self._lock:
            if self._connection.fileno() < 0:
                return
            self._kept.clear()
            self._loop.remove_writer(self._connection)
            self._connection.close()

    def _send_when_possible(self) -> None:
        if self._kept:  # else it was closed meanwhile
            self._loop.add_writer(self._connection, self._send_kept)

    def _send_kept(self) -> None:
        with self._lock:
            del self._kept[: self._taken(self._kept)]
            if not self._kept:
                self._loop.remove_writer(self._connection)

    def _taken(self, data: bytes | bytearray) -> int:
        """How many bytes of `data` the system has taken: all of them where it will take no more at all, and the connection ends."""
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # Mostly the worker has gone. Where it has not (no memory for the message, say), it must not read on in the middle of an answer.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            return len(data)
