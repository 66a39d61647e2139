"""`POST /predict` and `POST /predict/batch`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog
from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import requires
from api.body import JSON_TYPE, MULTIPART_TYPE, RAW_TYPES, read_picture, read_pictures
from api.classification import classify
from api.direct_route import DirectRoute
from api.disconnect import UntilDisconnect
from api.errors import InvalidRequest, refusal_for
from api.middleware.boundary import problem
from api.openapi import BATCH_PATH, answer, problems
from api.record import RequestRecord, record_of
from api.services import Services, services_of
from inference.errors import EngineUnavailable, Overloaded
from inference.types import ModelInfo, Prediction
from security.middleware.client_limit import take_images

router = APIRouter(route_class=DirectRoute, tags=["predictions"])

DEFAULT_TOP_K: Final = 5
MAX_TOP_K: Final = 100
_BATCH_CONCURRENCY: Final = 8
"""How many pictures of one batch are decoded or in the engine's queue at once, so that one request cannot take all of either."""

_BINARY: Final = {"type": "string", "format": "binary"}
_BASE64: Final = {"type": "string", "format": "byte", "description": "Base64, or a data: URL."}
_TOP_K: Final = {
    "name": "top_k",
    "in": "query",
    "required": False,
    "description": "How many classes to return.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": DEFAULT_TOP_K},
}
_CODES: Final = (
    "malformed_body",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "overloaded",
    "not_ready",
)
_PICTURE_CODES: Final = ("image_too_large", "invalid_image", "deadline_exceeded")


def _body(by_type: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    return {"required": True, "content": {kind: {"schema": schema} for kind, schema in by_type.items()}}


def _object(name: str, schema: Mapping[str, object]) -> dict[str, object]:
    return {"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": False}


@router.post(
    "/predict",
    summary="Classify a picture",
    response_class=Response,
    responses={200: answer(schemas.PredictionAnswer, "The most probable classes."), **problems(*_CODES, *_PICTURE_CODES)},
    openapi_extra={
        "parameters": [_TOP_K],
        "requestBody": _body(
            {
                MULTIPART_TYPE: _object("file", _BINARY),
                JSON_TYPE: _object("image", {**_BASE64, "minLength": 1}),
                **dict.fromkeys(RAW_TYPES, _BINARY),
            }
        ),
    },
)
@requires("predict")
async def predict(request: Request) -> Response:
    """The most probable classes of one picture: JPEG, PNG or WebP. What it is is decided by its bytes, not by its declared type."""
    services = services_of(request)
    top_k = _top_k(request)
    model = _ready_model(services)
    picture = await read_picture(request, max_bytes=services.settings.http.max_body_bytes)
    async with UntilDisconnect(request.receive):
        prediction = await classify(services, request, model, picture, top_k)
    found = schemas.BatchPrediction.of(prediction)
    named = schemas.ModelName.of(prediction.model)
    return _json(schemas.PredictionAnswer(found.class_id, found.confidence, found.label, found.predictions, named))


@router.post(
    BATCH_PATH,
    summary="Classify several pictures",
    response_class=Response,
    responses={200: answer(schemas.BatchAnswer, "One result or one error for each picture, in order."), **problems(*_CODES)},
    openapi_extra={
        "parameters": [_TOP_K],
        "requestBody": _body(
            {
                MULTIPART_TYPE: _object("file", {"type": "array", "items": _BINARY, "minItems": 1}),
                JSON_TYPE: _object("images", {"type": "array", "items": _BASE64, "minItems": 1}),
            }
        ),
    },
)
@requires("predict")
async def predict_batch(request: Request) -> Response:
    """Classify several pictures. One that cannot be classified gets an error in its place; the others are not affected."""
    services = services_of(request)
    http = services.settings.http
    top_k = _top_k(request)
    model = _ready_model(services)
    pictures = await read_pictures(request, max_images=http.max_batch_images, max_bytes=http.max_body_bytes)
    if len(pictures) > 1:  # the client limit took one before the body
        await take_images(request.scope, services.rates, services.revocations, services.tiers, len(pictures) - 1)
    permits = asyncio.Semaphore(min(_BATCH_CONCURRENCY, services.settings.inference.queue_size))

    async def outcome_of(picture: bytes | Exception) -> Prediction | Exception:
        async with permits:
            try:
                if isinstance(picture, Exception):
                    return picture
                return await classify(services, request, model, picture, top_k)
            except Exception as error:  # noqa: BLE001 # one picture never fails the others
                return error

    async with UntilDisconnect(request.receive), asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome_of(picture)) for picture in pictures]
    outcomes = [task.result() for task in tasks]
    _refuse_if_none_was_run(outcomes)
    answered = next((outcome.model for outcome in outcomes if isinstance(outcome, Prediction)), model)
    record = record_of(request.scope)
    return _json(schemas.BatchAnswer([_result(outcome, record, services) for outcome in outcomes], schemas.ModelName.of(answered)))


def _refuse_if_none_was_run(outcomes: list[Prediction | Exception]) -> None:
    # A batch of which the server could take nothing is refused as a whole, so that its client waits as Retry-After says.
    refused = [outcome for outcome in outcomes if isinstance(outcome, (EngineUnavailable, Overloaded))]
    if len(refused) == len(outcomes):
        raise max(refused, key=lambda error: error.retry_after_s)


def _result(outcome: Prediction | Exception, record: RequestRecord, services: Services) -> schemas.BatchPrediction | schemas.BatchError:
    if isinstance(outcome, Prediction):
        return schemas.BatchPrediction.of(outcome)
    refusal = refusal_for(outcome)
    record.failed_images += 1
    services.metrics.refused(refusal.code)
    if refusal.unexpected:
        structlog.get_logger().error("internal_error", code=refusal.code, exc_info=outcome)
    return schemas.BatchError(problem(refusal, record.request_id))


def _ready_model(services: Services) -> ModelInfo:
    status = services.engine.status()
    if not status.ready or not status.models:
        raise EngineUnavailable(status.detail or "The model is not ready.")
    return status.models[0]


def _top_k(request: Request) -> int:
    query = request.scope["query_string"]
    given = QueryParams(query).getlist("top_k") if query else []
    if not given:
        return DEFAULT_TOP_K
    if len(given) == 1 and given[0].isascii() and given[0].isdigit() and len(given[0]) <= len(str(MAX_TOP_K)):
        top_k = int(given[0])
        if 1 <= top_k <= MAX_TOP_K:
            return top_k
    raise InvalidRequest(f"top_k must be a whole number from 1 to {MAX_TOP_K}, given once.")


def _json(content: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON_TYPE)
