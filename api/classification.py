"""One picture of a request, from its file to its classes: decoded, run, and both once more where that may change the answer."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request

from api.record import record_of
from api.services import Services
from inference.close_calls import RANKS, is_close_call
from inference.decoding.pool import Decoded
from inference.errors import InferenceError
from inference.types import ModelInfo, Prediction
from security.principal import STATE_KEY, Principal


async def classify(services: Services, request: Request, model: ModelInfo, picture: bytes, top_k: int) -> Prediction:
    """The `top_k` most probable classes of a picture.

    A large JPEG is decoded at a part of its size, which is three times as quick and a little inexact. Where its two most probable classes
    are close, it is decoded in full and run again. That is the server's own wish: it takes nobody's place in a queue, it must be done by
    the first run's deadline, and where it comes to nothing the first answer stands.

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
    timeout_s = services.settings.inference.deadline_s
    decoded = await _decode(services, client, model, picture)
    record.note_picture(decoded)
    until_s = loop.time() + timeout_s
    prediction = await _run(services, client, decoded, wanted, timeout_s)
    record.note_prediction(prediction)
    if decoded.image.drafted and is_close_call([score.confidence for score in prediction.scores]):
        record.close_calls += 1
        try:
            async with asyncio.timeout_at(until_s):
                in_full = await _decode(services, client, model, picture, again=True)
                record.note_picture(in_full, before=decoded)
                decided = await _run(services, client, in_full, wanted, until_s - loop.time(), again=True)
        except (InferenceError, TimeoutError):
            services.metrics.close_call("left")
        else:
            record.note_prediction(decided, before=prediction)
            services.metrics.close_call("confirmed" if decided.scores[0].class_id == prediction.scores[0].class_id else "changed")
            prediction = decided
    return prediction if top_k == wanted else msgspec.structs.replace(prediction, scores=prediction.scores[:top_k])


async def _decode(services: Services, client: str, model: ModelInfo, picture: bytes, *, again: bool = False) -> Decoded:
    decoded = await services.decoder.decode(picture, model.preprocessing, client=client, draft=not again, may_displace=not again)
    services.metrics.decode_duration.observe(decoded.decode_ms / 1000)
    return decoded


async def _run(services: Services, client: str, decoded: Decoded, top_k: int, timeout_s: float, *, again: bool = False) -> Prediction:
    pixels = decoded.image.pixels
    prediction = await services.engine.predict(pixels, top_k=top_k, timeout_s=timeout_s, client=client, may_displace=not again)
    services.metrics.queue_duration.observe(prediction.queue_ms / 1000)
    return prediction
