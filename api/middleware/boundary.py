"""The one place where an exception becomes an answer. The layers inside raise their own package's errors and answer nothing themselves."""

from __future__ import annotations

from typing import Final

import msgspec
import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Refusal, oauth_code, refusal_for
from api.metrics import REGISTRY_LOST
from api.record import record_of
from api.schemas import OAuthProblem, Problem
from security.errors import InvalidToken, RegistryUnavailable

OAUTH_PREFIX: Final = "/oauth2/"


def problem(refusal: Refusal, request_id: str) -> Problem:
    """The body of a refusal (RFC 9457)."""
    return Problem(title=refusal.title, status=refusal.status, detail=refusal.detail, request_id=request_id, code=refusal.code)


class BoundaryMiddleware:
    """Answers `application/problem+json`, or RFC 6749's shape under `/oauth2/`; logs what nobody expected, once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        record = record_of(scope)
        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            record.disconnected = True
        except Exception as error:  # noqa: BLE001 # this is the boundary
            refusal = refusal_for(error)
            record.code = refusal.code
            if isinstance(error, RegistryUnavailable) and scope["path"].startswith(OAUTH_PREFIX):
                record.reason = REGISTRY_LOST
            record.cause = error.cause if isinstance(error, InvalidToken) else None
            if refusal.unexpected:
                self._log.error("internal_error", code=refusal.code, exc_info=error)
            # With half an answer sent there is nothing to add: returning makes the server close the connection.
            if not started:
                await _answer(scope, send, refusal, record.request_id)


def encode_refusal(refusal: Refusal, path: str, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body that tell a caller of `path` of a refusal."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in refusal.headers.items()]
    if path.startswith(OAUTH_PREFIX):
        body = msgspec.json.encode(OAuthProblem(oauth_code(refusal), refusal.detail))
        headers += [(b"content-type", b"application/json"), (b"pragma", b"no-cache")]
    else:
        body = msgspec.json.encode(problem(refusal, request_id))
        headers += [(b"content-type", b"application/problem+json")]
    headers.append((b"cache-control", b"no-store"))
    return headers, body


async def _answer(scope: Scope, send: Send, refusal: Refusal, request_id: str) -> None:
    headers, body = encode_refusal(refusal, scope["path"], request_id)
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
