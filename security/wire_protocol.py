"""uvicorn's httptools protocol under guard: every connection has a deadline for what it must do next, and a bound on what it may send."""

from __future__ import annotations

import asyncio
import math
from enum import Enum, auto
from typing import Any, ClassVar, Final, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from security.errors import MalformedRequest, SlowClient
from security.wire_exchange import MAX_DISCARDED_BYTES, Exchange
from security.wire_guard import WireGuard
from security.wire_request import MAX_HEADERS, MAX_TARGET_BYTES, Head, WireRefusal, check_head, malformed
from security.wire_transport import CountingTransport

MAX_PIPELINED: Final = 16
"""How many requests may wait behind the one that is served. No browser and no library pipelines any more; attackers do."""
LINGER_S: Final = 2.0
"""How long a refused upload is still read, so that its sender sees the answer and not a reset: what Apache allows."""
LAST_CALL_S: Final = 1.0
"""On shutdown: how long an idle connection is still read, for the request that was on its way when the signal came."""
_REQUEST_LINE_ROOM: Final = MAX_TARGET_BYTES + 1024


class _Phase(Enum):
    """What the connection does."""

    HEAD = auto()
    """The client must send a head, or the rest of one."""
    BODY = auto()
    """The client must send the rest of a body."""
    HANDLING = auto()
    """The app is at work: the client need not do anything."""
    IDLE = auto()
    """Between two requests."""
    LINGER = auto()
    """Answered for the last time; what still comes is thrown away."""
    CLOSING = auto()
    """The last bytes are on their way out."""


_DRAIN_SHARES: Final = {
    _Phase.IDLE: 0.8,
    _Phase.HEAD: 0.8,
    _Phase.BODY: 0.8,
    _Phase.HANDLING: 0.9,
    _Phase.LINGER: 0.95,
    _Phase.CLOSING: 0.95,
}
"""Of the time that uvicorn waits on shutdown before it cancels what still runs: when what is still in a phase is ended in order."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Times are those of the event loop's clock, in seconds."""

    guard: ClassVar[WireGuard]

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 # uvicorn's own
        super().__init__(*arguments, **options)
        self.url = b""
        self.headers = []
        self._guarded_app = self.app
        self._phase = _Phase.HEAD
        self._deadline_s = math.inf
        self._write_deadline_s = math.inf
        self._drain_began_s = math.inf
        self._begun = False
        self._deaf = False
        self._discardable_bytes = MAX_DISCARDED_BYTES
        self._head_bytes = 0
        self._header_bytes = 0
        self._overhead_bytes = 0
        self._progress_mark = 0
        self._write_mark = 0
        self._exchange: Exchange | None = None
        self._refusal: WireRefusal | None = None
        self._resume_head = b""
        self._resuming = False

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
        self._deadline_s = self.loop.time() + self.guard.limits.header_timeout_s
        self.guard.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self.guard.forget(self)
        self._phase, self._deaf = _Phase.CLOSING, True
        self.pipeline.clear()
        super().connection_lost(exc)
        self._wire.release()
        self._exchange, self.app, self._refusal = None, self._guarded_app, None

    def data_received(self, data: bytes) -> None:
        """Parse what came, within bounds."""
        if self._deaf:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        phase, received_bytes = self._phase, self._received_bytes()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            refusal, self._refusal = self._refusal, None
            if refusal is None:
                refusal = malformed("The request is not valid HTTP.", "syntax")
                refusal.__cause__ = error
            self._refuse(refusal)
            return
        if phase is self._phase is _Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self.guard.limits.max_header_bytes + _REQUEST_LINE_ROOM:
                self._refuse(_headers_too_large())
        elif phase is self._phase is _Phase.BODY:
            self._overhead_bytes += len(data) - (self._received_bytes() - received_bytes)
            # Chunk sizes, extensions and trailers (RFC 9112 section 7.1) are work without use: in honest uploads under 1 % of the body.
            if self._overhead_bytes > self.guard.limits.max_header_bytes + self._received_bytes() // 4:
                self._refuse(malformed("The chunks of the body are too small.", "chunks"))

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Upgrades are ignored, as RFC 9110 section 7.8 allows: what follows is the body, or the next request.
                data = data[upgrade.args[0] :]
                if self._resume_head:
                    self._resume_body()
            else:
                return

    def _resume_body(self) -> None:
        # llhttp holds that after the head of an upgrade there is no body of HTTP; a second parser is told that there is one.
        head, self._resume_head = self._resume_head, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._resuming = True
        self.parser.feed_data(head)
        self._resuming = False

    def _received_bytes(self) -> int:
        return 0 if self._exchange is None else self._exchange.received_bytes

    # What the parser calls

    def on_message_begin(self) -> None:
        """Start the deadline of a further request's head."""
        if self._resuming:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(malformed("Too many requests wait on this connection.", "pipeline"))
        super().on_message_begin()
        if self._phase is not _Phase.HEAD:
            self._phase = _Phase.HEAD
            self._deadline_s = self.loop.time() + self.guard.limits.header_timeout_s
            self._head_bytes = 0
        self._begun = True
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Count the target."""
        if self._resuming:
            return
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._stop(WireRefusal("uri_too_long", f"The request target is longer than {MAX_TARGET_BYTES} bytes.", "target_bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; drop a trailer, which uvicorn would take for one (RFC 9110 section 6.5.1)."""
        if self._resuming or self._phase is not _Phase.HEAD:
            return
        self._header_bytes += len(name) + len(value) + len(b": \r\n")
        if self._header_bytes > self.guard.limits.max_header_bytes or len(self.headers) >= MAX_HEADERS:
            self._stop(_headers_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the head, then let uvicorn start the request."""
        if self._resuming:
            return
        try:
            head = check_head(self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers)
        except WireRefusal as refusal:
            self._stop(refusal)
        self.url = head.target
        self._resume_head = _resume_head(head) if self.parser.should_upgrade() and head.has_body else b""
        exchange = Exchange(self._guarded_app, head.content_length, self._on_cancelled)
        self.app = cast("Any", exchange)
        super().on_headers_complete()
        exchange.cycle = self.cycle
        self._exchange = exchange
        if self._draining:
            self.cycle.keep_alive = False
        self._phase = _Phase.BODY
        self._overhead_bytes = self._progress_mark = 0
        self._deadline_s = self.loop.time() + self.guard.limits.body_timeout_s

    def on_body(self, body: bytes) -> None:
        """Count what came."""
        assert self._exchange is not None
        self._exchange.received_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The upload is complete."""
        if self._resume_head:
            return  # said of the head of an upgrade, not of the body that follows it
        assert self._exchange is not None
        super().on_message_complete()
        self._exchange.body_complete = True
        self._settle()

    # What uvicorn calls

    def _should_upgrade(self) -> bool:
        return False

    def on_response_complete(self) -> None:
        """Serve the next request that waits, or wait for one."""
        super().on_response_complete()
        if self._phase is _Phase.HANDLING:
            self._settle()

    def shutdown(self) -> None:
        """The server stops: serve what is complete or on its way, and nothing after it."""
        self._drain_began_s = now = self.loop.time()
        if self._busy:
            self.cycle.keep_alive = False
        if self._phase in {_Phase.IDLE, _Phase.HEAD} and not self._busy:
            # Closed at once, a request that is on its way at this moment would be lost.
            self._unset_keepalive_if_required()
            self._deadline_s = min(self._deadline_s, now + LAST_CALL_S) if self._phase is _Phase.HEAD else now + LAST_CALL_S

    def timeout_keep_alive_handler(self) -> None:
        """Leave it to the sweep, which knows more than uvicorn about what the connection is doing."""

    # Deadlines

    def check(self, now_s: float) -> None:
        """End what has had its time. Called by the guard's sweep."""
        self._check_writing(now_s)
        if self._phase is _Phase.BODY and self._received_bytes() - self._progress_mark >= self.guard.limits.min_progress_bytes:
            self._progress_mark = self._received_bytes()
            self._deadline_s = now_s + self.guard.limits.body_timeout_s
        if now_s >= min(self._deadline_s, self._drain_deadline_s()):
            self._expire(now_s)

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
        return self._drain_began_s + _DRAIN_SHARES[self._phase] * self.guard.limits.drain_s

    def _expire(self, now_s: float) -> None:
        if self._phase in {_Phase.HEAD, _Phase.BODY} and not self._draining and self._we_do_not_read():
            self._deadline_s = now_s + self.guard.limits.body_timeout_s
        elif self._phase is _Phase.HEAD and not self._begun:
            self.guard.closed_unanswered(self, "silent")
            self._close()
        elif self._phase in {_Phase.HEAD, _Phase.BODY}:
            self._refuse(WireRefusal("slow_client", str(SlowClient()), self._phase.name.lower()))
        elif self._phase is _Phase.HANDLING:
            self._give_up()
        elif self._phase is _Phase.CLOSING:
            self._abort()
        else:
            self._close()

    def _we_do_not_read(self) -> bool:
        return self.flow.read_paused or (self._busy and self.cycle.waiting_for_100_continue)

    @property
    def _draining(self) -> bool:
        return self._drain_began_s != math.inf

    @property
    def _busy(self) -> bool:
        return self._exchange is not None and not self._exchange.cycle.response_complete

    def _settle(self) -> None:
        """The last request has been received to its end; has it been answered, too?"""
        if self._busy:
            self._phase, self._deadline_s = _Phase.HANDLING, math.inf
        elif self._phase is not _Phase.LINGER and self._phase is not _Phase.CLOSING:
            self._phase, self._begun = _Phase.IDLE, False
            self._deadline_s = self.loop.time() + (LAST_CALL_S if self._draining else self.timeout_keep_alive)

    # Ends

    def _stop(self, refusal: WireRefusal) -> NoReturn:
        """Leave the parser: what a callback raises comes out of it as an error of its own."""
        self._refusal = refusal
        raise refusal

    def _refuse(self, refusal: WireRefusal) -> None:
        if not self._busy:
            if self._phase is not _Phase.BODY:  # a body that goes wrong after its answer gets no second one
                self._answer(refusal)
            self._linger()
        elif self._phase is not _Phase.BODY:
            # An earlier request is being answered. That answer is the last: this request's would have to wait behind it.
            self.cycle.keep_alive = False
            self._deaf, self._deadline_s = True, math.inf
        elif self.cycle.response_started:
            self._abort()
        else:
            assert self._exchange is not None
            self._exchange.fail(SlowClient() if refusal.code == "slow_client" else MalformedRequest(refusal.detail))
            self._deaf, self._phase, self._deadline_s = True, _Phase.HANDLING, math.inf

    def _give_up(self) -> None:
        """The grace period ends before the app does."""
        if not self.pipeline and not self.cycle.response_started:
            self._answer(WireRefusal("not_ready", "The server is stopping.", "shutdown"))
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self._close()

    def _on_cancelled(self, exchange: Exchange) -> None:
        exchange.cycle.disconnected = True
        self._abort()

    def _answer(self, refusal: WireRefusal) -> None:
        answer = self.guard.refuse(refusal, self.url, self.headers, self.client_address)
        self._wire.write(answer._replace(headers=(*self.server_state.default_headers, *answer.headers)).encode())

    def _finish(self) -> None:
        """End the connection: uvicorn wants it closed."""
        if self._phase is _Phase.BODY or self._deaf:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        # Closed with unread data, a connection is reset, and the reset may overtake the answer (RFC 9112 section 9.6).
        if self._phase in {_Phase.LINGER, _Phase.CLOSING}:
            return
        self._deaf, self._phase = True, _Phase.LINGER
        self._deadline_s = self.loop.time() + LINGER_S
        self._wire.ending = True
        self._wire.half_close()
        if self._discardable_bytes > 0 and not self._wire.inner.is_closing():
            self.flow.resume_reading()

    def _discard(self, count: int) -> None:
        self._discardable_bytes -= count
        if self._discardable_bytes <= 0 and not self._wire.inner.is_closing():
            self.flow.pause_reading()

    def _close(self) -> None:
        self._phase, self._deaf = _Phase.CLOSING, True
        self._deadline_s = self.loop.time() + self.guard.limits.body_timeout_s
        self._wire.ending = True
        self._wire.inner.close()

    def _abort(self) -> None:
        self._phase, self._deaf, self._deadline_s = _Phase.CLOSING, True, math.inf
        self._wire.ending = True
        self._wire.inner.abort()


def guarded_protocol(guard: WireGuard) -> type[asyncio.Protocol]:
    """The class for uvicorn's `http` setting."""
    return type("WireProtocol", (GuardedProtocol,), {"guard": guard})


def _headers_too_large() -> WireRefusal:
    return WireRefusal("headers_too_large", "The request's headers are too large or too many.", "header_bytes")


def _resume_head(head: Head) -> bytes:
    framing = b"transfer-encoding: chunked" if head.content_length is None else b"content-length: %d" % head.content_length
    return b"POST / HTTP/1.1\r\nhost: resumed\r\n" + framing + b"\r\n\r\n"
