"""How long a connection may take, and how it ends: every one has a deadline for what it must do next."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final, cast

from security.errors import MalformedRequest, SlowClient
from security.wire_exchange import MAX_DISCARDED_BYTES, Exchange
from security.wire_guard import WireGuard
from security.wire_parsing import BoundedProtocol, Phase
from security.wire_request import WireRefusal
from security.wire_transport import CountingTransport

LINGER_S: Final = 2.0
"""How long a refused upload is still read, so that its sender sees the answer and not a reset: what Apache allows. And how long TLS waits
for the peer's goodbye, which pooled clients that do not read never say."""
LAST_CALL_S: Final = 1.0
"""On shutdown: how long an idle connection is still read, for the request that was on its way when the signal came."""
_IDLE_S: Final = 5.0
"""Between two requests of a client that is at work there is less."""
_DRAIN_SHARES: Final = {
    Phase.IDLE: 0.8,
    Phase.HEAD: 0.8,
    Phase.BODY: 0.8,
    Phase.HANDLING: 0.9,
    Phase.LINGER: 0.95,
    Phase.CLOSING: 0.95,
}
"""Of the time that uvicorn waits on shutdown before it cancels what still runs: when what is still in a phase is ended in order."""


class GuardedProtocol(BoundedProtocol):
    """One connection. Times are those of the event loop's clock, in seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 # uvicorn's own
        super().__init__(*arguments, **options)
        self._entered_s = 0.0
        self._deadline_s = math.inf
        self._write_deadline_s = math.inf
        self._drain_began_s = math.inf
        self._discardable_bytes = MAX_DISCARDED_BYTES
        self._progress_mark = 0
        self._write_mark = 0

    @property
    def client_address(self) -> str | None:
        """The peer's address, for the log."""
        return self.client[0] if self.client else None

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the first head's deadline."""
        super().connection_made(transport)
        self._wire = CountingTransport(transport, self._finish)
        self.transport = cast("asyncio.Transport", self._wire)
        self.enter(Phase.HEAD)
        self.guard.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self.guard.forget(self)
        super().connection_lost(exc)
        self._wire.release()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        """Serve the next request that waits, or wait for one."""
        super().on_response_complete()
        if self.phase is Phase.HANDLING and not self.busy:
            self.enter(Phase.IDLE)

    def answer_last(self) -> None:
        """Close after the answer that is being waited for, if there is one. One that has begun has not said so, and gets a last call."""
        if self.busy and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server stops: serve what is complete or on its way, and nothing after it."""
        self._drain_began_s = now = self.loop.time()
        self.answer_last()
        if self.phase in {Phase.IDLE, Phase.HEAD} and not self.busy:
            # Closed at once, a request that is on its way at this moment would be lost.
            self._unset_keepalive_if_required()
            self._deadline_s = min(self._deadline_s, now + LAST_CALL_S) if self.phase is Phase.HEAD else now + LAST_CALL_S

    def timeout_keep_alive_handler(self) -> None:
        """Leave it to the sweep, which knows more than uvicorn about what the connection is doing."""

    # Deadlines

    def enter(self, phase: Phase) -> None:
        """Start the phase's own deadline."""
        limits = self.guard.limits
        if phase is Phase.HEAD:
            allowed_s = limits.header_timeout_s
        elif phase is Phase.BODY:
            allowed_s, self._progress_mark = limits.body_timeout_s, 0
            if self._draining or self.guard.draining:
                self.cycle.keep_alive = False
        elif phase is Phase.HANDLING:
            allowed_s = math.inf
        elif phase is Phase.IDLE:
            allowed_s, self.begun = LAST_CALL_S if self._draining else limits.idle_timeout_s, False
        else:
            allowed_s = LINGER_S
        self.phase, self._entered_s = phase, self.loop.time()
        self._deadline_s = self._entered_s + allowed_s

    def check(self, now_s: float) -> None:
        """End what has had its time. Called by the guard's sweep."""
        self._check_writing(now_s)
        if self.phase is Phase.BODY and self.received_bytes - self._progress_mark >= self.guard.limits.min_progress_bytes:
            self._progress_mark = self.received_bytes
            self._deadline_s = now_s + self.guard.limits.body_timeout_s
        if now_s >= min(self._deadline_s, self._drain_deadline_s(), self._crowd_deadline_s()):
            self._expire(now_s)

    def has_idled(self, now_s: float) -> bool:
        """Whether it has been between two requests for some seconds."""
        return self.phase is Phase.IDLE and now_s - self._entered_s >= _IDLE_S

    def _check_writing(self, now_s: float) -> None:
        waiting_bytes = self._wire.get_write_buffer_size()
        if not waiting_bytes:
            self._write_deadline_s = math.inf
            return
        taken_bytes = self._wire.written_bytes - waiting_bytes
        if self._write_deadline_s == math.inf or taken_bytes - self._write_mark >= self.guard.limits.min_progress_bytes:
            self._write_mark, self._write_deadline_s = taken_bytes, now_s + self.guard.limits.body_timeout_s
        elif now_s >= self._write_deadline_s:
            self.guard.closed_unanswered(self, "unread")
            self._abort()

    def _drain_deadline_s(self) -> float:
        return self._drain_began_s + _DRAIN_SHARES[self.phase] * self.guard.limits.drain_s

    def _crowd_deadline_s(self) -> float:
        crowded = self.phase is Phase.IDLE and self.guard.crowded
        return self._entered_s + self.guard.limits.header_timeout_s if crowded else math.inf

    def _expire(self, now_s: float) -> None:
        if self.phase in {Phase.IDLE, Phase.CLOSING} and self._wire.get_write_buffer_size() and now_s < self._drain_deadline_s():
            self.enter(self.phase)  # its time begins when the last answer has been taken; for how long that may take is another deadline
        elif self.phase in {Phase.HEAD, Phase.BODY} and not self._draining and self._we_do_not_read():
            self._deadline_s = now_s + self.guard.limits.body_timeout_s
        elif self.phase is Phase.HEAD and not self.begun:
            self.guard.closed_unanswered(self, "silent")
            self._close()
        elif self.phase in {Phase.HEAD, Phase.BODY}:
            self.refuse(WireRefusal("slow_client", str(SlowClient()), self.phase.name.lower()))
        elif self.phase is Phase.HANDLING:
            self._give_up()
        elif self.phase is Phase.CLOSING or self._is_flooded():
            self._abort()
        else:
            self._close()

    def _we_do_not_read(self) -> bool:
        return self.flow.read_paused or (self.busy and self.cycle.waiting_for_100_continue)

    def _is_flooded(self) -> bool:
        # Asked to close, TLS reads and decrypts whatever comes until the peer has said goodbye, too.
        return self.phase is Phase.LINGER and self._discardable_bytes <= 0 and not self._wire.get_write_buffer_size()

    @property
    def _draining(self) -> bool:
        return self._drain_began_s != math.inf

    # Ends

    def refuse(self, refusal: WireRefusal) -> None:
        """Answer it, where an answer would not be taken for another request's, and let the connection end."""
        if not self.busy:
            if self.phase is not Phase.BODY:  # a body that goes wrong after its answer gets no second one
                self._answer(refusal)
            self._linger()
        elif self.phase is not Phase.BODY:
            # An earlier request is being answered. That answer is the last: this request's would have to wait behind it.
            self.cycle.keep_alive = False
            self.deaf = True
            self.enter(Phase.HANDLING)
        elif self.cycle.response_started:
            self._abort()
        else:
            assert self.exchange is not None
            self.exchange.fail(SlowClient() if refusal.code == "slow_client" else MalformedRequest(refusal.detail))
            self.deaf = True
            self.enter(Phase.HANDLING)

    def _give_up(self) -> None:
        """The grace period ends before the app does."""
        if not self.pipeline and not self.cycle.response_started:
            self._answer(WireRefusal("not_ready", "The server is stopping.", "shutdown"))
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self._close()

    def on_cancelled(self, exchange: Exchange) -> None:
        """End a request for which uvicorn waits no longer."""
        exchange.cycle.disconnected = True
        self._abort()

    def _answer(self, refusal: WireRefusal) -> None:
        answer = self.guard.refuse(refusal, self.url, self.headers, self.client_address)
        self._wire.write(answer._replace(headers=(*self.server_state.default_headers, *answer.headers)).encode())

    def _finish(self) -> None:
        """End the connection: uvicorn wants it closed."""
        if self.phase is Phase.BODY or self.deaf:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        # Closed with unread data, a connection is reset, and the reset may overtake the answer (RFC 9112 section 9.6).
        if self.phase in {Phase.LINGER, Phase.CLOSING}:
            return
        self._end(Phase.LINGER)
        self._wire.half_close()
        if self._discardable_bytes > 0 and not self._wire.inner.is_closing():
            self.flow.resume_reading()

    def discard(self, count: int) -> None:
        """Read on for a while, so that the client sees its answer."""
        self._discardable_bytes -= count
        if self._discardable_bytes <= 0 and not self._wire.inner.is_closing():
            self.flow.pause_reading()

    def _close(self) -> None:
        self._end(Phase.CLOSING)
        self._wire.inner.close()

    def _abort(self) -> None:
        self._end(Phase.CLOSING)
        self._wire.inner.abort()

    def _end(self, phase: Phase) -> None:
        self.deaf = True
        self._wire.end()
        self.enter(phase)


def guarded_protocol(guard: WireGuard) -> type[asyncio.Protocol]:
    """The class for uvicorn's `http` setting."""
    return type("WireProtocol", (GuardedProtocol,), {"guard": guard})
