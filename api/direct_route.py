"""The route class of every endpoint: `Request` in, `Response` out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """An `APIRoute` that is documented like any other but calls its endpoint without solving dependencies.

    Our endpoints read the request themselves, within bounds that FastAPI's body parsing does not have, so that step would only cost time.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401  FastAPI's own
        super().__init__(path, endpoint, **options)
        self.app = _serving(endpoint)


def _serving(endpoint: Callable[..., Any]) -> ASGIApp:
    """The endpoint itself; a plain `def` is run in a thread."""
    respond = endpoint if inspect.iscoroutinefunction(endpoint) else partial(run_in_threadpool, endpoint)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        response = await respond(Request(scope, receive, send))
        await response(scope, receive, send)

    return serve
