"""Clients that ask without a pause, and count what they sent in full and were not served."""

from __future__ import annotations

import select
import threading
import time
from typing import Final

from support.raw_http import ConnectionClosed, RawConnection
from support.service import Service

_MAX_S: Final = 600.0


class Load:
    """One client after another's answer, until it is ended or the port is closed. `failures`: sent and not served.

    It does what HTTP allows (RFC 9112 section 9.3.1): a request of which the server cannot have seen the end is sent again on another
    connection. Once all of it has been sent, nothing but an answer will do.
    """

    def __init__(self, service: Service, picture: bytes, token: str, *, keep_alive: bool, url: str | None = None) -> None:
        self._url, self._keep_alive = url or service.url, keep_alive
        lines = ["POST /predict HTTP/1.1", "Host: a", f"Authorization: Bearer {token}", "Content-Type: image/png"]
        self._request = "\r\n".join([*lines, f"Content-Length: {len(picture)}", "", ""]).encode() + picture
        self.served = 0
        self.failures: list[object] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        deadline_s = time.monotonic() + _MAX_S
        while time.monotonic() < deadline_s:
            try:
                connection = RawConnection(self._url)
            except ConnectionRefusedError:
                return
            with connection:
                while not self._ended.is_set() and self._ask(connection) and self._keep_alive:
                    pass
            if self._ended.is_set():
                return
        self.failures.append("the port was never closed")

    def _ask(self, connection: RawConnection) -> bool:
        """Whether the connection can be used again."""
        if select.select([connection.socket], [], [], 0)[0]:
            return False  # closed before a byte was sent
        try:
            connection.send(self._request)
        except ConnectionError:
            return False  # closed before the upload was complete
        try:
            answer = connection.answer()
        except (ConnectionClosed, TimeoutError) as error:
            self.failures.append(error)
            return False
        if answer.status != 200:
            self.failures.append(answer)
        self.served += 1
        return "connection" not in answer.headers

    def wait(self) -> None:
        """Wait until the port is closed."""
        self._thread.join(100)
        assert not self._thread.is_alive()

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()
        self.wait()
