"""`GET /models`."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import requires
from api.direct_route import DirectRoute
from api.openapi import answer
from api.services import services_of

router = APIRouter(route_class=DirectRoute, tags=["predictions"])


@router.get(
    "/models",
    summary="List the models",
    response_class=Response,
    responses={200: answer(schemas.ModelsAnswer, "The models served; none while the first is being loaded.")},
)
@requires("predict")
async def models(request: Request) -> Response:
    """The models served: names, versions, digests, input sizes and how many labels each knows."""
    served = [schemas.ServedModel.of(model) for model in services_of(request).engine.status().models]
    return Response(msgspec.json.encode(schemas.ModelsAnswer(served)), media_type="application/json")
