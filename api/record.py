"""What is known of one request by the time it is answered: the layers and routes fill it in, the context layer logs it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from starlette.types import Scope

from api.trace_context import TraceContext
from inference.decoding.pool import Decoded
from inference.types import Prediction

RECORD_KEY: Final = "record"
"""Where the record stands: `scope["state"]["record"]`."""

_MAX_STAGES: Final = 6 * 64
"""A batch may be of a thousand pictures, each with three, or six; the first ones tell how it went."""


Attributes = Mapping[str, str | int]


class Stage(NamedTuple):
    """A part of what was done for a request, for its trace. Moments are those of `time.perf_counter`."""

    name: str
    began_s: float
    ended_s: float
    attributes: Attributes


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are in milliseconds; of a batch, the slowest picture counts, because that is what the caller waited for."""

    request_id: str
    trace: TraceContext
    """Our span in the trace that the request is part of."""
    client_id: str | None = None
    """The client that authenticated itself at an OAuth endpoint; elsewhere the principal says who asks."""
    token_id: str | None = None
    """The `jti` of the token that was given or revoked."""
    code: str | None = None
    """The problem's code when the answer is an error."""
    reason: str | None = None
    """What the refusal is counted as, where that is not its code."""
    cause: str | None = None
    """Why a token was refused: a fixed word that only the log shows."""
    disconnected: bool = False
    """True when the client left before its answer."""
    images: int = 0
    failed_images: int = 0
    close_calls: int = 0
    """How many of them were decoded in full and run again, or would have been."""
    image_format: str | None = None
    image_width: int | None = None
    image_height: int | None = None
    model: str | None = None
    digest: str | None = None
    engine: str | None = None
    batch_size: int | None = None
    decode_ms: float | None = None
    queue_ms: float | None = None
    infer_ms: float | None = None
    stages: list[Stage] | None = None
    """None where the trace is not recorded here."""

    def note_picture(self, decoded: Decoded, *, before: Decoded | None = None) -> None:
        """Remember a picture that was decoded just now: of a batch, the format and the size of the last one.

        Args:
            decoded: the picture.
            before: the same one, where it has been decoded before.
        """
        image = decoded.image
        self.images += before is None
        self.image_format, self.image_width, self.image_height = image.format, image.width, image.height
        self.decode_ms = max(decoded.decode_ms + (before.decode_ms if before else 0.0), self.decode_ms or 0.0)
        if self.stages is not None:
            picture: Attributes = {
                "lensgate.image.format": image.format,
                "lensgate.image.width": image.width,
                "lensgate.image.height": image.height,
            }
            self._note_stage("decode", time.perf_counter(), decoded.decode_ms, picture)

    def note_prediction(self, prediction: Prediction, *, before: Prediction | None = None) -> None:
        """Remember what a prediction took that has come just now: of a batch, the model and the engine of the last one.

        Args:
            prediction: what came.
            before: what came first, where the same picture was run before.
        """
        self.model, self.digest, self.engine = prediction.model.name, prediction.model.digest, prediction.engine
        self.batch_size = max(prediction.batch_size, self.batch_size or 0)
        self.queue_ms = max(prediction.queue_ms + (before.queue_ms if before else 0.0), self.queue_ms or 0.0)
        self.infer_ms = max(prediction.infer_ms + (before.infer_ms if before else 0.0), self.infer_ms or 0.0)
        if self.stages is not None:
            # The way to the engine and back, some 0.2 ms, is counted to neither and lies before both.
            ended_s = time.perf_counter()
            batch: Attributes = {"lensgate.model": prediction.model.name, "lensgate.batch_size": prediction.batch_size}
            engine: Attributes = {"lensgate.engine": prediction.engine} if prediction.engine is not None else {}
            self._note_stage("queue", ended_s - prediction.infer_ms / 1000, prediction.queue_ms, engine)
            self._note_stage("forward", ended_s, prediction.infer_ms, {**batch, **engine})

    def _note_stage(self, name: str, ended_s: float, took_ms: float, attributes: Attributes) -> None:
        if self.stages is not None and len(self.stages) < _MAX_STAGES:
            self.stages.append(Stage(name, ended_s - took_ms / 1000, ended_s, attributes))


def record_of(scope: Scope) -> RequestRecord:
    """The record that the context layer put into this request's scope."""
    record = scope["state"][RECORD_KEY]
    assert isinstance(record, RequestRecord)
    return record
