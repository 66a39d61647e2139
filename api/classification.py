"""One picture of a request, from its file to its classes: decoded, run, and both once more where that may change the answer."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request

from api.record import record_of
from api.services import Services
from inference.close_calls import RANKS, is_close_call
from inference.decoding.pool import Decoded
from inference.errors import DeadlineExceeded, DecoderExhausted, EngineUnavailable, Overloaded
from inference.types import ModelInfo, Prediction
from security.principal import STATE_KEY, Principal


async def classify(services: Services, request: Request, model: ModelInfo, picture: bytes, top_k: int) -> Prediction:
    """The `top_k` most probable classes of a picture.

    A large JPEG is decoded at a part of its size, which is three times as quick and a little inexact. Where its two most probable classes
    are close, it is decoded in full and run again; the first answer stands where the server has no room or no time for that.

    Args:
        services: of the app.
        request: whose the picture is; its record hears what it took.
        model: whose preprocessing the picture gets.
        picture: a file.
        top_k: how many classes.

    Raises:
        InferenceError: as `DecodePool.decode` and `Engine.predict` do.
    """
    principal = request.scope["state"][STATE_KEY]
    assert isinstance(principal, Principal)
    client, record, loop = principal.client_id, record_of(request.scope), asyncio.get_running_loop()
    wanted = max(top_k, RANKS)
    first = await _decode(services, client, model, picture, draft=True)
    record.note_picture(first)
    until_s = loop.time() + services.settings.inference.deadline_s
    prediction = await _run(services, client, first, wanted, until_s - loop.time())
    record.note_prediction(prediction)
    if first.image.drafted and is_close_call([score.confidence for score in prediction.scores]):
        record.close_calls += 1
        try:
            again = await _decode(services, client, model, picture, draft=False)
            record.note_picture(again, before=first)
            decided = await _run(services, client, again, wanted, until_s - loop.time())
        except (DeadlineExceeded, DecoderExhausted, EngineUnavailable, Overloaded):
            services.metrics.close_call("left")
        else:
            record.note_prediction(decided, before=prediction)
            services.metrics.close_call("confirmed" if decided.scores[0].class_id == prediction.scores[0].class_id else "changed")
            prediction = decided
    return prediction if top_k == wanted else msgspec.structs.replace(prediction, scores=prediction.scores[:top_k])


async def _decode(services: Services, client: str, model: ModelInfo, picture: bytes, *, draft: bool) -> Decoded:
    decoded = await services.decoder.decode(picture, model.preprocessing, client=client, draft=draft)
    services.metrics.decode_duration.observe(decoded.decode_ms / 1000)
    return decoded


async def _run(services: Services, client: str, decoded: Decoded, top_k: int, timeout_s: float) -> Prediction:
    prediction = await services.engine.predict(decoded.image.pixels, top_k=top_k, timeout_s=timeout_s, client=client)
    services.metrics.queue_duration.observe(prediction.queue_ms / 1000)
    return prediction
