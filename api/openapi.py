"""The OpenAPI document: FastAPI's own generator for the paths, the shapes of `api.schemas`, and the errors from the one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from api import schemas
from api.access import access_of
from api.direct_route import DirectRoute
from api.errors import KINDS
from api.openapi_headers import HEADERS, headers_of
from security.access import PUBLIC

TITLE: Final = "Lensgate"
API_VERSION: Final = "0.1.0"
_DESCRIPTION: Final = (
    "The guarded gate in front of an image classifier. Get a token at `/oauth2/token` with your client id and secret "
    "(or press *Authorize* here), then send a picture to `/predict`."
)
_SCHEME_DESCRIPTION: Final = (
    "Select no scope to get all that your client has, or select only those: a scope that it lacks is refused with `invalid_scope`."
)
_SCOPES: Final = {
    "predict": "Classify pictures and list the models.",
    "metrics": "Read the metrics.",
    "introspect": "Look at tokens of any client.",
}
TOKEN_PATH: Final = "/oauth2/token"  # noqa: S105 # a path, no secret
REVOCATION_PATH: Final = "/oauth2/revoke"
INTROSPECTION_PATH: Final = "/oauth2/introspect"
BATCH_PATH: Final = "/predict/batch"
_SCHEME: Final = "clientCredentials"
_CLIENT_SCHEME: Final = "clientIdAndSecret"
_CLIENT: Final = "The client's id and secret (RFC 6749 section 2.3.1). They may stand in the form instead, but not in both."
_REF: Final = "#/components/schemas/{name}"
_SHAPES: Final = (
    schemas.Problem,
    schemas.OAuthProblem,
    schemas.TokenAnswer,
    schemas.IntrospectionAnswer,
    schemas.ServerMetadata,
    schemas.PredictionAnswer,
    schemas.BatchPrediction,
    schemas.BatchError,
    schemas.ModelsAnswer,
    schemas.AliveAnswer,
    schemas.ReadyAnswer,
    schemas.HealthAnswer,
)

Responses = dict[int | str, dict[str, Any]]


def reference(shape: type) -> dict[str, Any]:
    """A reference to the schema of one of `api.schemas`."""
    return {"$ref": _REF.format(name=shape.__name__)}


def answer(shape: type, description: str) -> dict[str, Any]:
    """A JSON answer of that shape."""
    return {"description": description, "content": {"application/json": {"schema": reference(shape)}}}


def problems(*codes: str) -> Responses:
    """The error answers of an operation, by their codes, grouped by status."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(KINDS[code].status, []).append(code)
    return {status: _problem(together) for status, together in sorted(by_status.items(), key=str)}


def _problem(codes: Sequence[str]) -> dict[str, Any]:
    return {
        "description": "; ".join(f"`{code}`: {KINDS[code].title.lower()}" for code in codes) + ".",
        "content": {"application/problem+json": {"schema": reference(schemas.Problem)}},
    }


def build_document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The document of an app's routes. Which errors and which scope go with an operation follows from its declared access."""
    documented = [route for route in routes if isinstance(route, DirectRoute) and route.include_in_schema]
    document = get_openapi(title=TITLE, version=API_VERSION, description=_DESCRIPTION, routes=documented)
    for route in documented:
        access = access_of(route)
        for operation in document["paths"][route.path].values():
            common = problems(*_COMMON_CODES) if access == PUBLIC else problems(*_GUARDED_CODES)
            for status, described in common.items():
                operation["responses"].setdefault(str(status), described)
            for status, described in operation["responses"].items():
                described["headers"] = headers_of(str(status))
            operation["security"] = _security(route.path, access)
    _, shapes = msgspec.json.schema_components(_SHAPES, ref_template=_REF)
    document["components"] = {
        "headers": HEADERS,
        "schemas": {**shapes, "BatchAnswer": _batch_answer()},
        "securitySchemes": {
            _SCHEME: {
                "type": "oauth2",
                "description": _SCHEME_DESCRIPTION,
                "flows": {"clientCredentials": {"tokenUrl": TOKEN_PATH, "scopes": _SCOPES}},
            },
            _CLIENT_SCHEME: {"type": "http", "scheme": "basic", "description": _CLIENT},
        },
    }
    return document


def _security(path: str, access: str) -> list[dict[str, list[str]]]:
    if path in {TOKEN_PATH, REVOCATION_PATH, INTROSPECTION_PATH}:
        return [{_CLIENT_SCHEME: []}, {}]  # in the header, or in the form
    return [] if access == PUBLIC else [{_SCHEME: [access]}]


_COMMON_CODES: Final = ("malformed_body", "slow_client", "uri_too_long", "headers_too_large", "rate_limited", "internal_error")
_GUARDED_CODES: Final = ("missing_token", "invalid_token", "insufficient_scope", "too_many_in_flight", "not_ready", *_COMMON_CODES)


def _batch_answer() -> dict[str, Any]:
    # By hand: msgspec describes no union of two untagged structs.
    return {
        "title": "BatchAnswer",
        "description": schemas.BatchAnswer.__doc__,
        "type": "object",
        "required": ["results", "model"],
        "properties": {
            "results": {"type": "array", "items": {"anyOf": [reference(schemas.BatchPrediction), reference(schemas.BatchError)]}},
            "model": reference(schemas.ModelName),
        },
    }
