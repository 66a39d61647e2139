"""The shapes of the answers, as they are written to the wire and into the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from inference.types import ModelInfo, Prediction

Confidence = Annotated[float, Meta(ge=0, le=1, description="Softmax probability.")]
ClassId = Annotated[int, Meta(ge=0, description="The class's index in the model's labels.")]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error (RFC 9457, `application/problem+json`). Programs read `code`, people read `detail`."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    code: Annotated[str, Meta(description="A stable word for programs.")]


class OAuthProblem(msgspec.Struct, frozen=True):
    """An error of the token endpoint (RFC 6749 section 5.2)."""

    error: str
    error_description: str


class TokenAnswer(msgspec.Struct, frozen=True):
    """An access token (RFC 6749 section 5.1)."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: Annotated[int, Meta(description="Seconds.")]
    scope: str


class IntrospectionAnswer(msgspec.Struct, frozen=True):
    """A token as RFC 7662 tells of it. One that is not active is told nothing else of."""

    active: bool
    token_type: Literal["Bearer"] | UnsetType = UNSET
    scope: str | UnsetType = UNSET
    client_id: str | UnsetType = UNSET
    sub: str | UnsetType = UNSET
    exp: int | UnsetType = UNSET
    iat: int | UnsetType = UNSET
    iss: str | UnsetType = UNSET
    aud: str | UnsetType = UNSET
    jti: str | UnsetType = UNSET


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The authorization server's metadata (RFC 8414 section 2)."""

    issuer: str
    token_endpoint: str
    revocation_endpoint: str
    introspection_endpoint: str
    jwks_uri: str
    scopes_supported: list[str]
    response_types_supported: list[str]
    grant_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]


class ScoredClass(msgspec.Struct, frozen=True):
    """One class and how probable it is."""

    class_id: ClassId
    label: str
    confidence: Confidence


class ModelName(msgspec.Struct, frozen=True):
    """Which model answered."""

    name: str
    version: str
    digest: Annotated[str, Meta(description="`sha256:` and the SHA-256 of the weights file.")]

    @classmethod
    def of(cls, model: ModelInfo) -> ModelName:
        """The three names of a served model."""
        return cls(model.name, model.version, model.digest)


class PredictionAnswer(msgspec.Struct, frozen=True):
    """The most probable classes of one picture, best first. The first is repeated on top: the shape that existing clients expect."""

    class_id: ClassId
    confidence: Confidence
    label: str
    predictions: list[ScoredClass]
    model: ModelName


class BatchPrediction(msgspec.Struct, frozen=True):
    """The most probable classes of one picture of a batch, best first."""

    class_id: ClassId
    confidence: Confidence
    label: str
    predictions: list[ScoredClass]

    @classmethod
    def of(cls, prediction: Prediction) -> BatchPrediction:
        """What the engine found, in the words of the contract."""
        classes = [ScoredClass(score.class_id, score.label, score.confidence) for score in prediction.scores]
        return cls(classes[0].class_id, classes[0].confidence, classes[0].label, classes)


class BatchError(msgspec.Struct, frozen=True):
    """Why one picture of a batch has no prediction."""

    error: Problem


class BatchAnswer(msgspec.Struct, frozen=True):
    """One result or one error for each picture, in the order in which they were sent."""

    results: list[BatchPrediction | BatchError]
    model: ModelName


class ServedModel(msgspec.Struct, frozen=True):
    """One served model."""

    name: str
    version: str
    digest: str
    input_size: Annotated[int, Meta(description="The side of the square that the model sees, in pixels.")]
    classes: Annotated[int, Meta(description="How many labels the model knows.")]
    precision: str
    device: str

    @classmethod
    def of(cls, model: ModelInfo) -> ServedModel:
        """What anyone with a token may know of a served model."""
        return cls(model.name, model.version, model.digest, model.preprocessing.crop_px, len(model.labels), model.precision, model.device)


class ModelsAnswer(msgspec.Struct, frozen=True):
    """The models served."""

    models: list[ServedModel]


class AliveAnswer(msgspec.Struct, frozen=True):
    """The process runs."""

    status: Literal["alive"] = "alive"


class ReadyAnswer(msgspec.Struct, frozen=True):
    """Predictions are served."""

    status: Literal["ready"] = "ready"


class HealthAnswer(msgspec.Struct, frozen=True):
    """Readiness, and whether a GPU is in use."""

    status: Literal["ok", "unavailable"]
    gpu: bool
