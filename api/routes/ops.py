"""The probes. They ask no token, no database and no limiter, so that nothing but the truth can fail them."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import public
from api.direct_route import DirectRoute
from api.errors import refusal_for
from api.openapi import answer, problems
from api.services import Services, services_of
from inference.errors import EngineUnavailable

router = APIRouter(route_class=DirectRoute, tags=["operations"])


@router.get("/livez", summary="Is the process alive?", response_class=Response, responses={200: answer(schemas.AliveAnswer, "It runs.")})
@public
async def livez(_: Request) -> Response:
    """200 as soon as the first API worker serves, a few seconds after the start; until then a connection waits for its answer."""
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
    waiting_for = _waiting_for(services_of(request))
    if waiting_for is not None:
        raise EngineUnavailable(waiting_for)
    return _json(schemas.ReadyAnswer())


@router.get(
    "/healthz",
    summary="Health, and whether a GPU is in use",
    response_class=Response,
    responses={
        200: answer(schemas.HealthAnswer, "As /readyz."),
        503: answer(schemas.HealthAnswer, "Not ready, or draining."),
    },
)
@public
async def healthz(request: Request) -> Response:
    """Readiness in the shape that existing clients expect."""
    services = services_of(request)
    gpu = any(model.device.startswith("cuda") for model in services.engine.status().models)
    waiting_for = _waiting_for(services)
    if waiting_for is None:
        return _json(schemas.HealthAnswer("ok", gpu))
    answered = _json(schemas.HealthAnswer("unavailable", gpu), status=503)
    answered.headers.update(refusal_for(EngineUnavailable(waiting_for)).headers)
    return answered


def _waiting_for(services: Services) -> str | None:
    """Why no prediction would be run now, for the caller of a probe; None when one would be."""
    if services.lifecycle.draining:
        return "The server is shutting down."
    if not services.revocations.informed:
        return "The client registry does not answer."
    status = services.engine.status()
    return None if status.ready else status.detail or "The model is not ready."


def _json(content: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
