"""The transport that uvicorn is given: it counts, sends an answer's head with its body, and lets the guard decide how a connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class CountingTransport:
    """The part of `asyncio.Transport` that uvicorn's HTTP protocol uses.

    Args:
        inner: the real one.
        on_close: called instead of closing it.
    """

    __slots__ = ("_held", "_on_close", "ending", "inner", "written_bytes")

    def __init__(self, inner: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self.inner = inner
        self._on_close = on_close
        self.written_bytes = 0
        self.ending = False
        """True from the moment when nothing more is to be written."""
        self._held: list[bytes] | None = None

    def write(self, data: bytes) -> None:
        """Write, and count; what the app still says after the end goes nowhere."""
        if self.ending:
            return
        self.written_bytes += len(data)
        if self._held is None:
            self.inner.write(data)
        elif data:
            self._held.append(data)

    def hold(self) -> None:
        """Keep what is written until `let_go`: uvicorn writes the head of an answer before its body, and each would be a packet."""
        if self._held is None:
            self._held = []

    def let_go(self) -> None:
        """Write what was held."""
        held, self._held = self._held, None
        if held:
            self.inner.writelines(held)

    def end(self) -> None:
        """Nothing more is to be written; what was, goes out."""
        self.let_go()
        self.ending = True

    def close(self) -> None:
        """Ask for the end."""
        if not self.is_closing():
            self._on_close()

    def release(self) -> None:
        """The connection is gone: hold on to nobody, so that nothing waits for the garbage collector."""
        self.ending, self._held = True, None
        self._on_close = _do_nothing

    def is_closing(self) -> bool:
        """True when no further request will be served."""
        return self.ending or self.inner.is_closing()

    def half_close(self) -> None:
        """Tell the peer that nothing more will come, where the transport can (TLS cannot)."""
        if not self.inner.is_closing() and self.inner.can_write_eof():
            self.inner.write_eof()

    def get_write_buffer_size(self) -> int:
        """How many bytes the kernel has not taken yet."""
        return self.inner.get_write_buffer_size()


def _do_nothing() -> None:
    pass
