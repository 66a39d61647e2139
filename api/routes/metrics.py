"""`GET /metrics`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.access import requires
from api.direct_route import DirectRoute
from api.metrics import CONTENT_TYPE
from api.services import services_of

router = APIRouter(route_class=DirectRoute, tags=["operations"])


@router.get(
    "/metrics",
    summary="What is counted and measured",
    response_class=Response,
    responses={
        200: {"description": "Prometheus's text format, version 0.0.4.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
@requires("metrics")
def metrics(request: Request) -> Response:
    """The metrics of all workers and engines together, for Prometheus: its scrape setting `oauth2` gets the token by itself."""
    return Response(services_of(request).metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})
