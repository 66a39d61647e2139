"""What the descriptions of the OAuth endpoints share in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from api import schemas
from api.openapi import Responses, answer
from security.client_auth import FORM_TYPE

CLIENT_FIELDS: Final[dict[str, Any]] = {
    "client_id": {"type": "string", "description": "Where HTTP Basic is not used."},
    "client_secret": {"type": "string", "format": "password", "description": "Where HTTP Basic is not used."},
}
TOKEN_FIELDS: Final[dict[str, Any]] = {
    "token": {"type": "string", "description": "The access token."},
    "token_type_hint": {"type": "string", "description": "Accepted and not needed: there is one kind of token."},
}


def form_body(fields: dict[str, Any], *, required: str) -> dict[str, Any]:
    """The request body of an OAuth endpoint: a form with these fields and the client's credentials."""
    schema = {"type": "object", "required": [required], "properties": {**fields, **CLIENT_FIELDS}}
    return {"requestBody": {"required": True, "content": {FORM_TYPE: {"schema": schema}}}}


def oauth_problems() -> Responses:
    """The errors of every OAuth endpoint, in the shape of RFC 6749 section 5.2."""
    described = {
        400: "The request is not valid.",
        401: "`invalid_client`: the client could not be authenticated.",
        413: "The body is too large.",
        415: "The body is compressed.",
        500: "`server_error`.",
        503: "`temporarily_unavailable`.",
    }
    return {status: answer(schemas.OAuthProblem, text) for status, text in described.items()}
