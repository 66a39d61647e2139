"""The layer that bounds how much of a request's body is ever read, and how much of all of them is held."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from security.body_budget import BodyBudget, HeldBody
from security.errors import BodyTooLarge, TooManyBodies, UnsupportedContentEncoding
from security.principal import STATE_KEY, Principal

DEFAULT_MAX_BODIES_BYTES: Final = 256 * 1024 * 1024
_MAX_LENGTH_DIGITS: Final = 18


class BodyLimitMiddleware:
    """Refuses a body that is too large: by its Content-Length before anything is read, by count where it has none.

    Also refuses compressed bodies, whose size says nothing, and what all bodies together have no room for. Refusals are raised, for the
    boundary outside to answer: `BodyTooLarge`, `UnsupportedContentEncoding` and `TooManyBodies`. What lies inside may turn the error that
    it gets from `receive` into an answer of its own (FastAPI answers 400); that answer is stopped, and the refusal is raised instead.

    Args:
        app: the next layer.
        max_body_bytes: the most bytes in a body; exactly so many are accepted.
        path_limits: a smaller or larger limit for some exact paths.
        max_bodies_bytes: the most bytes that are held of the bodies of all requests that are not answered yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        path_limits: Mapping[str, int] = MappingProxyType({}),
        max_bodies_bytes: int = DEFAULT_MAX_BODIES_BYTES,
    ) -> None:
        self._app = app
        self._budget = BodyBudget(max_bodies_bytes)
        self._max_body_bytes = max_body_bytes
        self._path_limits = path_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_bytes = self._path_limits.get(scope["path"], self._max_body_bytes)
        _check_headers(scope["headers"], limit_bytes)
        principal = scope.get("state", {}).get(STATE_KEY)
        held = self._budget.open(principal.client_id if isinstance(principal, Principal) else "")
        body = _CountedBody(receive, send, limit_bytes, held)
        try:
            await self._app(scope, body.receive, body.send)
            body.raise_if_refused()
        except Exception as error:
            if body.refusal is None or error is body.refusal:
                raise
            raise body.refusal from error
        finally:
            held.close()
            # Its traceback holds every frame inside, and they hold the body: together a cycle that only the garbage collector would find.
            body.refusal = None


class _CountedBody:
    """One request's `receive` and `send`, with the count between them."""

    def __init__(self, receive: Receive, send: Send, limit_bytes: int, held: HeldBody) -> None:
        self._receive = receive
        self._send = send
        self._limit_bytes = limit_bytes
        self._held = held
        self._received_bytes = 0
        self.refusal: BodyTooLarge | TooManyBodies | None = None

    def raise_if_refused(self) -> None:
        """Raise the refusal, if there is one."""
        if self.refusal is not None:
            raise self.refusal

    async def receive(self) -> Message:
        self.raise_if_refused()
        message = await self._receive()
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self._received_bytes += count
            if self._received_bytes > self._limit_bytes:
                self.refusal = BodyTooLarge(self._limit_bytes)
                raise self.refusal
            try:
                self._held.add(count)
            except TooManyBodies as refusal:
                self.refusal = refusal
                raise
        return message

    async def send(self, message: Message) -> None:
        self.raise_if_refused()
        await self._send(message)


def _check_headers(headers: list[tuple[bytes, bytes]], limit_bytes: int) -> None:
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise UnsupportedContentEncoding
        if name == b"content-length" and not (value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS and int(value) <= limit_bytes):
            raise BodyTooLarge(limit_bytes)
