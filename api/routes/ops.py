"""The probes. They need no token, no database and no limiter, so that nothing but the truth can fail them."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import public
from api.direct_route import DirectRoute
from api.openapi import answer, problems
from api.services import Services, services_of
from inference.errors import EngineUnavailable

router = APIRouter(route_class=DirectRoute, tags=["operations"])


@router.get("/livez", summary="Is the process alive?", response_class=Response, responses={200: answer(schemas.AliveAnswer, "It runs.")})
@public
async def livez(_: Request) -> Response:
    """200 from the first second on."""
    return _json(schemas.AliveAnswer())


@router.get(
    "/readyz",
    summary="Are predictions served?",
    response_class=Response,
    responses={200: answer(schemas.ReadyAnswer, "Weights loaded, engine warm, not draining."), **problems("not_ready")},
)
@public
async def readyz(request: Request) -> Response:
    """200 when a prediction asked for now would be run; else 503, and the detail says what is being waited for."""
    services = services_of(request)
    if services.lifecycle.draining:
        raise EngineUnavailable("The server is shutting down.")
    status = services.engine.status()
    if not status.ready:
        raise EngineUnavailable(status.detail or "The model is not ready.")
    return _json(schemas.ReadyAnswer())


@router.get(
    "/healthz",
    summary="Health, and whether a GPU is in use",
    response_class=Response,
    responses={200: answer(schemas.HealthAnswer, "As /readyz."), 503: answer(schemas.HealthAnswer, "Not ready, or draining.")},
)
@public
async def healthz(request: Request) -> Response:
    """Readiness in the shape that existing clients expect."""
    services = services_of(request)
    gpu = any(model.device.startswith("cuda") for model in services.engine.status().models)
    if _serving(services):
        return _json(schemas.HealthAnswer("ok", gpu))
    return _json(schemas.HealthAnswer("unavailable", gpu), status=503)


def _serving(services: Services) -> bool:
    return services.engine.status().ready and not services.lifecycle.draining


def _json(content: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
