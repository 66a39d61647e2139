"""What a connection may send: uvicorn's httptools protocol with bounds on everything that its parser takes in."""

from __future__ import annotations

from abc import abstractmethod
from enum import Enum, auto
from typing import Any, ClassVar, Final, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from security.wire_exchange import Exchange
from security.wire_guard import WireGuard
from security.wire_request import MAX_HEADERS, MAX_TARGET_BYTES, Head, WireRefusal, check_head, malformed

MAX_PIPELINED: Final = 16
"""How many requests may wait behind the one that is served. No browser and no library pipelines any more; attackers do."""
_REQUEST_LINE_ROOM: Final = MAX_TARGET_BYTES + 1024


class Phase(Enum):
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


class BoundedProtocol(HttpToolsProtocol):
    """The half of a guarded connection that reads. What it finds wrong it hands to `refuse`; where it stands, to `enter`."""

    guard: ClassVar[WireGuard]

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 # uvicorn's own
        super().__init__(*arguments, **options)
        self.url = b""
        self.headers = []
        self.phase = Phase.HEAD
        self.begun = False
        """True once a byte of the newest head has come."""
        self.deaf = False
        """True from the moment when nothing that comes is parsed any more."""
        self.exchange: Exchange | None = None
        """The newest request."""
        self._guarded_app = self.app
        self._head_bytes = 0
        self._header_bytes = 0
        self._overhead_bytes = 0
        self._refusal: WireRefusal | None = None
        self._resume_head = b""
        self._resuming = False

    @abstractmethod
    def enter(self, phase: Phase) -> None:
        """The connection's next phase begins."""

    @abstractmethod
    def refuse(self, refusal: WireRefusal) -> None:
        """Nothing more is taken from this connection."""

    @abstractmethod
    def discard(self, count: int) -> None:
        """So many bytes came and were not parsed."""

    @abstractmethod
    def on_cancelled(self, exchange: Exchange) -> None:
        """The server does not wait any longer for a request."""

    @property
    def busy(self) -> bool:
        """True while the newest request is unanswered."""
        return self.exchange is not None and not self.exchange.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything, so that nothing waits for the garbage collector."""
        self.phase, self.deaf = Phase.CLOSING, True
        self.pipeline.clear()
        super().connection_lost(exc)
        self.exchange, self.app, self._refusal = None, self._guarded_app, None

    def _should_upgrade(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        """Parse what came, within bounds."""
        if self.deaf:
            self.discard(len(data))
            return
        self._unset_keepalive_if_required()
        phase, exchange, received_bytes = self.phase, self.exchange, self.received_bytes
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self.refuse(self._take_refusal(error))
            return
        if phase is self.phase is Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self.guard.limits.max_header_bytes + _REQUEST_LINE_ROOM:
                self.refuse(_headers_too_large())
        elif phase is self.phase is Phase.BODY and exchange is self.exchange:
            self._overhead_bytes += len(data) - (self.received_bytes - received_bytes)
            # Chunk sizes, extensions and trailers (RFC 9112 section 7.1) are work without use: in honest uploads under 1 % of the body.
            if self._overhead_bytes > self.guard.limits.max_header_bytes + self.received_bytes // 4:
                self.refuse(malformed("The chunks of the body are too small.", "chunks"))

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

    @property
    def received_bytes(self) -> int:
        """How much has come of the newest request's body."""
        return 0 if self.exchange is None else self.exchange.received_bytes

    # What the parser calls

    def on_message_begin(self) -> None:
        """Start the deadline of a further request's head."""
        if self._resuming:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(malformed("Too many requests wait on this connection.", "pipeline"))
        super().on_message_begin()
        if self.phase is not Phase.HEAD:
            self.enter(Phase.HEAD)
            self._head_bytes = 0
        self.begun = True
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
        if self._resuming or self.phase is not Phase.HEAD:
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
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110 section 10.1.1: such a client would take the invitation for the answer
        self._resume_head = _resume_head(head) if self.parser.should_upgrade() and head.has_body else b""
        exchange = Exchange(self._guarded_app, head.content_length, self.on_cancelled)
        self.app = cast("Any", exchange)
        super().on_headers_complete()
        exchange.cycle = self.cycle
        self.exchange = exchange
        self._overhead_bytes = 0
        self.enter(Phase.BODY)

    def on_body(self, body: bytes) -> None:
        """Count what came."""
        assert self.exchange is not None
        self.exchange.received_bytes += len(body)
        cycle = self.exchange.cycle
        if not cycle.body:
            # uvicorn gathers what comes in a bytearray, and the app gets a copy of that. What comes in one piece it gets as it is.
            cycle.body = b""  # bytes + bytes is the second of them, where the first is empty
        elif type(cycle.body) is bytes:
            cycle.body = bytearray(cycle.body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The upload is complete."""
        if self._resume_head:
            return  # said of the head of an upgrade, not of the body that follows it
        assert self.exchange is not None
        super().on_message_complete()
        self.exchange.body_complete = True
        self.enter(Phase.HANDLING if self.busy else Phase.IDLE)

    def _stop(self, refusal: WireRefusal) -> NoReturn:
        """Leave the parser: what a callback raises comes out of it as an error of its own."""
        self._refusal = refusal
        # No frame may hold an exception whose traceback holds the frame: the garbage collector alone would find the two.
        del refusal
        raise self._refusal

    def _take_refusal(self, error: httptools.HttpParserError) -> WireRefusal:
        refusal, self._refusal = self._refusal or malformed("The request is not valid HTTP.", "syntax", str(error)), None
        return refusal


def _headers_too_large() -> WireRefusal:
    return WireRefusal("headers_too_large", "The request's headers are too large or too many.", "header_bytes")


def _resume_head(head: Head) -> bytes:
    framing = b"transfer-encoding: chunked" if head.content_length is None else b"content-length: %d" % head.content_length
    return b"POST / HTTP/1.1\r\nhost: resumed\r\n" + framing + b"\r\n\r\n"
