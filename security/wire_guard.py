"""The guard of one API worker's connections: their limits, their deadlines, and the answers to what is no request yet.

uvicorn has no read timeout and, with httptools, no limit on a head. Every connection here has one deadline for what it must do next, and
one sweep looks at all of them twice a second, so that a request costs no timer of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

import structlog

from security.wire_request import WireRefusal

SWEEP_S: Final = 0.5
MIN_BYTES_PER_S: Final = 8 * 1024
"""Slower than a telephone line of 1998 in both directions is no honest client: about 64 kbit/s."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class WireLimits:
    """What a connection may do.

    Args:
        header_timeout_s: from the opening of a connection, or from the first byte of a further request, to the end of that request's head.
        body_timeout_s: the longest time in which a body, or an answer that the client must take, may fall short of `MIN_BYTES_PER_S`.
        max_header_bytes: the most bytes in one request's header fields.
        drain_s: how long after the start of a shutdown uvicorn waits for requests.
        idle_timeout_s: between two requests. Longer than reverse proxies keep theirs (60 s), so that none meets a closed one.
        crowd: while there are more connections than this, one between two requests is kept no longer than one that is new and silent.
    """

    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    max_header_bytes: int = 16 * 1024
    drain_s: float = 22.0
    idle_timeout_s: float = 75.0
    crowd: int = 4096

    @property
    def min_progress_bytes(self) -> int:
        """What must pass within `body_timeout_s`, unless the end comes sooner."""
        return int(MIN_BYTES_PER_S * self.body_timeout_s)


class Answer(NamedTuple):
    """A whole answer, rendered."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    request_id: str

    def encode(self) -> bytes:
        """The bytes of an HTTP/1.1 answer that is the connection's last."""
        lines = [b"HTTP/1.1 %d %s" % (self.status, HTTPStatus(self.status).phrase.encode())]
        lines += [b"%s: %s" % header for header in self.headers]
        lines += [b"content-length: %d" % len(self.body), b"connection: close", b"", self.body]
        return b"\r\n".join(lines)


class Render(Protocol):
    """Makes the answer to a refusal; the package that owns the HTTP answers supplies it."""

    def __call__(self, code: str, detail: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Answer:
        """Render one answer.

        Args:
            code: the problem's code.
            detail: public text.
            target: the request's target, as far as it is known.
            headers: the request's headers, as far as they are known, names in lower case.
        """


class Connection(Protocol):
    """What the guard knows of a connection."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that serves it."""

    @property
    def client_address(self) -> str | None:
        """The peer's address, for the log."""

    def check(self, now_s: float) -> None:
        """End what has had its time."""

    def has_idled(self, now_s: float) -> bool:
        """Whether it has been between two requests for so long that it is no work to speak of."""

    def answer_last(self) -> None:
        """Close after the answer that is being waited for, if there is one."""


class WireGuard:
    """What the connections of one server share.

    Args:
        limits: what each may do.
        render: makes the answers.
        on_refused: called with a code for every refusal, for metrics: a problem's code, or `silent` or `unread` for a connection that is
            closed without an answer because nothing was sent or nothing is read.
        on_change: called with how many connections more or less there are: some have ended, or have been idle for long, or no longer.
    """

    def __init__(
        self,
        limits: WireLimits,
        render: Render,
        on_refused: Callable[[str], None] | None = None,
        on_change: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.limits = limits
        self._render = render
        self._on_refused = on_refused
        self._on_change = on_change
        self._connections: set[Connection] = set()
        self._idle: set[Connection] = set()
        """Those that have been idle for long, when the sweep last looked."""
        self.draining = False
        """True once every answer is its connection's last."""
        self._next_sweep: asyncio.TimerHandle | None = None

    def watch(self, connection: Connection) -> None:
        """Look after a connection until `forget`."""
        self._connections.add(connection)
        if self._next_sweep is None:
            self._next_sweep = connection.loop.call_later(SWEEP_S, self._sweep, connection.loop)

    @property
    def crowded(self) -> bool:
        """True while there are so many connections that idle ones must make room."""
        return len(self._connections) > self.limits.crowd

    def drain(self) -> None:
        """From now on every answer is its connection's last, and says so."""
        self.draining = True
        for connection in self._connections:
            connection.answer_last()

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.discard(connection)
        else:
            self._on_change(-1)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_sweep = loop.call_later(SWEEP_S, self._sweep, loop) if self._connections else None
        # The next look comes too late for what falls due before it: nothing ever outlives its deadline.
        due_s = loop.time() + SWEEP_S
        for connection in tuple(self._connections):
            connection.check(due_s)
        idle = {connection for connection in self._connections if connection.has_idled(due_s)}
        self._on_change(len(self._idle) - len(idle))
        self._idle = idle

    def refuse(self, refusal: WireRefusal, target: bytes, headers: Sequence[tuple[bytes, bytes]], client_address: str | None) -> Answer:
        """Log and count a refusal.

        Args:
            refusal: why.
            target: the request's target, as far as it is known.
            headers: the request's headers, as far as they are known.
            client_address: the peer's, for the log.

        Returns:
            What to answer.
        """
        answer = self._render(refusal.code, refusal.detail, target, headers)
        cause = {} if refusal.cause is None else {"cause": refusal.cause}
        _log.info(
            "request_refused",
            code=refusal.code,
            status=answer.status,
            reason=refusal.reason,
            request_id=answer.request_id,
            client_address=client_address,
            **cause,
        )
        self._count(refusal.code)
        return answer

    def closed_unanswered(self, connection: Connection, code: str) -> None:
        """Log and count a connection that is closed without an answer: `silent` or `unread`."""
        # One that never said a word is a port scan, or a load balancer that looks whether the port is open: no line for each.
        if code != "silent":
            _log.info("connection_closed", reason=code, client_address=connection.client_address)
        self._count(code)

    def _count(self, code: str) -> None:
        if self._on_refused is not None:
            self._on_refused(code)
