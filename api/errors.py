"""The one table from what went wrong to what the caller is told. Nothing else in the program chooses an error's status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from inference.errors import (
    DeadlineExceeded,
    DecoderExhausted,
    EngineUnavailable,
    ImageTooLarge,
    InvalidImage,
    Overloaded,
    UnsupportedImage,
)
from security.errors import (
    BodyTooLarge,
    InsufficientScope,
    InvalidToken,
    MalformedRequest,
    MissingToken,
    OAuthError,
    PreflightRefused,
    RateLimited,
    RegistryUnavailable,
    SlowClient,
    TooManyBodies,
    TooManyInFlight,
    TooManyRevocations,
    UnsupportedContentEncoding,
)


class ApiError(Exception):
    """What the HTTP layer itself refuses. `str(error)` is safe to show: it never holds what the caller sent."""


class MalformedBody(ApiError):
    """The body is not what its content type says: no JSON, no multipart."""


class InvalidRequest(ApiError):
    """The request can be read, but asks for something that there is not."""


class UnsupportedMediaType(ApiError):
    """The body is of a kind that is not read here."""


class Kind(NamedTuple):
    """One row of the contract's list of errors."""

    status: int
    title: str


KINDS: Final[Mapping[str, Kind]] = {
    "malformed_body": Kind(400, "The body cannot be read"),
    "missing_token": Kind(401, "A bearer token is needed"),
    "invalid_token": Kind(401, "The token is not valid"),
    "insufficient_scope": Kind(403, "The token lacks a scope"),
    "not_found": Kind(404, "There is nothing here"),
    "method_not_allowed": Kind(405, "The method is not allowed"),
    "slow_client": Kind(408, "The request took too long"),
    "body_too_large": Kind(413, "The body is too large"),
    "image_too_large": Kind(413, "The picture is too large"),
    "uri_too_long": Kind(414, "The request target is too long"),
    "unsupported_media_type": Kind(415, "The kind of body is not supported"),
    "invalid_request": Kind(422, "The request is not valid"),
    "invalid_image": Kind(422, "The picture is not valid"),
    "rate_limited": Kind(429, "The limit is used up"),
    "too_many_in_flight": Kind(429, "Too many requests are in flight"),
    "headers_too_large": Kind(431, "The headers are too large"),
    "internal_error": Kind(500, "The server failed"),
    "overloaded": Kind(503, "The server is at capacity"),
    "not_ready": Kind(503, "The server is not ready"),
    "deadline_exceeded": Kind(504, "The deadline passed"),
}

_CODES: Final[Mapping[type[Exception], str]] = {
    MalformedBody: "malformed_body",
    MalformedRequest: "malformed_body",
    SlowClient: "slow_client",
    InvalidRequest: "invalid_request",
    UnsupportedMediaType: "unsupported_media_type",
    MissingToken: "missing_token",
    InvalidToken: "invalid_token",
    InsufficientScope: "insufficient_scope",
    BodyTooLarge: "body_too_large",
    RateLimited: "rate_limited",
    TooManyInFlight: "too_many_in_flight",
    UnsupportedImage: "unsupported_media_type",
    InvalidImage: "invalid_image",
    ImageTooLarge: "image_too_large",
    DecoderExhausted: "overloaded",
    EngineUnavailable: "not_ready",
    Overloaded: "overloaded",
    DeadlineExceeded: "deadline_exceeded",
    UnsupportedContentEncoding: "unsupported_media_type",
    RegistryUnavailable: "not_ready",
    TooManyRevocations: "overloaded",
    TooManyBodies: "overloaded",
}

_HTTP_CODES: Final[Mapping[int, str]] = {
    400: "malformed_body",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
}
"""For what Starlette itself raises."""

REALM: Final = 'realm="lensgate"'


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the caller is told. `code` is the problem's, or under `/oauth2/` the OAuth error's."""

    status: int
    code: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    unexpected: bool = False
    """True when the operator must hear of it, with its traceback."""

    @property
    def title(self) -> str:
        """The problem's title."""
        kind = KINDS.get(self.code)
        return kind.title if kind else HTTPStatus(self.status).phrase


def refusal_for(error: Exception) -> Refusal:
    """What to tell the caller about `error`; whatever is not in the table is an internal error, of which nothing is told."""
    if isinstance(error, OAuthError):
        if error.code == "invalid_client":
            # However the client tried it: RFC 9110 section 15.5.2 wants a challenge on every 401.
            return Refusal(401, error.code, str(error), {"WWW-Authenticate": f"Basic {REALM}"})
        return Refusal(400, error.code, str(error))
    if isinstance(error, PreflightRefused):
        # No script ever sees this answer: the browser does, and wants no more than a status that is not 2xx.
        return Refusal(400, "invalid_request", str(error))
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, RequestValidationError):
        return Refusal(422, "invalid_request", _name_parameters(error))
    if isinstance(error, MemoryError):
        return Refusal(503, "overloaded", "The server is out of memory.", {"Retry-After": "1"}, unexpected=True)
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
    if code is None:
        return Refusal(500, "internal_error", "The server failed; its log says more under this request id.", unexpected=True)
    return Refusal(KINDS[code].status, code, str(error), _headers(error, code))


def _headers(error: Exception, code: str) -> dict[str, str]:
    status = KINDS[code].status
    if status == HTTPStatus.UNAUTHORIZED:
        # RFC 6750 section 3.1: a request without credentials is told no error code.
        known = "" if code == "missing_token" else f', error="{code}", error_description="{error}"'
        return {"WWW-Authenticate": f"Bearer {REALM}{known}"}
    if isinstance(error, InsufficientScope):
        return {"WWW-Authenticate": f'Bearer {REALM}, error="insufficient_scope", scope="{error.required}"'}
    if isinstance(error, (BodyTooLarge, MalformedRequest, SlowClient)):
        return {"Connection": "close"}  # the rest of the body must not be read
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        return {"Retry-After": str(max(1, int(getattr(error, "retry_after_s", 1))))}
    return {}


def _from_http(error: HTTPException) -> Refusal:
    headers = dict(error.headers or {})
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Refusal(500, "internal_error", "The server failed; its log says more under this request id.", unexpected=True)
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    detail = {
        "not_found": "No resource has this path.",
        "method_not_allowed": "This resource does not know that method; the header Allow names those that it knows.",
    }.get(code, "The request is not valid.")
    if code == "body_too_large":
        headers["Connection"] = "close"
    return Refusal(error.status_code, code, detail, headers)


def _name_parameters(error: RequestValidationError) -> str:
    # Only names that we declared ourselves: the location of an unknown key, or of anything in a body, is the caller's own text.
    ours = {"query", "path", "header", "cookie"}
    places = [(item["loc"], item["type"]) for item in error.errors()]
    names = sorted({str(place[1]) for place, kind in places if len(place) == 2 and place[0] in ours and kind != "extra_forbidden"})
    return f"Not valid: {', '.join(names)}." if names else "The request is not valid."


def oauth_code(refusal: Refusal) -> str:
    """The word of RFC 6749 for a refusal that is not the token endpoint's own."""
    if refusal.code not in KINDS or refusal.code == "invalid_request":
        return refusal.code
    if refusal.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return "temporarily_unavailable"
    return "server_error" if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"
