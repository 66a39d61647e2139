"""The route class of every endpoint: `Request` in, `Response` out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class DirectRoute(APIRoute):
    """An `APIRoute` that is documented like any other but calls its endpoint without solving dependencies.

    Our endpoints read the request themselves, within bounds that FastAPI's body parsing does not have, so that step would only cost time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself; a plain `def` is run in a thread."""
        return self.endpoint
