"""One request on the wire, between uvicorn and the app: what the guard must tell the app, and what the app must not do to the wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from security.errors import SecurityError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_DISCARDED_BYTES: Final = 1024 * 1024
"""How much of a body is still read after its request has been answered."""


class Exchange:
    """Stands in for the app for one request.

    Args:
        app: the app.
        content_length: the declared size of the body; None when it is chunked.
        on_cancelled: called when the server stops and does not wait any longer for this request.
    """

    __slots__ = ("_app", "_on_cancelled", "_receive", "_send", "body_complete", "content_length", "cycle", "failure", "received_bytes")

    def __init__(self, app: ASGIApp, content_length: int | None, on_cancelled: Callable[[Exchange], None]) -> None:
        self._app = app
        self._on_cancelled = on_cancelled
        self.content_length = content_length
        self.received_bytes = 0
        self.body_complete = False
        self.failure: SecurityError | None = None
        self.cycle: Any = None
        """uvicorn's own record of the request (`RequestResponseCycle`)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        self._receive, self._send = receive, send
        try:
            await self._app(scope, self._receive_body, self._send_answer)
        except asyncio.CancelledError:
            # uvicorn would log it as the app's exception and answer 500: at the end of the grace period it is neither.
            self._on_cancelled(self)
        finally:
            # Its traceback holds every frame of the app, and they hold the body: together a cycle that only the collector would find.
            self.failure = None
            del self._receive, self._send

    def fail(self, failure: SecurityError) -> None:
        """End the upload: the app's next `receive` raises, so that its error boundary answers. What has been buffered is let go."""
        self.failure = failure
        self.cycle.body = bytearray()
        self.cycle.keep_alive = False
        self.cycle.message_event.set()

    async def _receive_body(self) -> Message:
        if self.failure is None:
            message = await self._receive()
            if self.failure is None:
                return message
        raise self.failure

    async def _send_answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not self.body_complete and not self._rest_is_small():
                self.cycle.keep_alive = False
            self.cycle.transport.hold()
            await self._send(message)
        else:
            await self._send(message)
            self.cycle.transport.let_go()

    def _rest_is_small(self) -> bool:
        # A client that still waits for 100 Continue may never send its body (RFC 9110 section 10.1.1): what comes next would be ambiguous.
        if self.content_length is None or self.cycle.waiting_for_100_continue:
            return False
        return self.content_length - self.received_bytes <= MAX_DISCARDED_BYTES
