"""What the descriptions of the OAuth endpoints share in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from api import schemas
from api.openapi import INTROSPECTION_PATH, REVOCATION_PATH, Responses, answer
from security.client_auth import FORM_TYPE, MAX_FORM_FIELDS

CLIENT_FIELDS: Final[dict[str, Any]] = {
    "client_id": {"type": "string", "description": "Where HTTP Basic is not used."},
    "client_secret": {"type": "string", "format": "password", "description": "Where HTTP Basic is not used."},
}
TOKEN_FIELDS: Final[dict[str, Any]] = {
    "token": {"type": "string", "description": "The access token."},
    "token_type_hint": {"type": "string", "description": "Accepted and not needed: there is one kind of token."},
}


def form_body(fields: dict[str, Any], *, required: str) -> dict[str, Any]:
    """The request body of an OAuth endpoint: a form with these fields, the client's credentials, and others that are ignored.

    RFC 6749 section 3.2 has it so: unknown parameters are ignored, and each stands once.
    """
    schema = {
        "type": "object",
        "required": [required],
        "properties": {**fields, **CLIENT_FIELDS},
        "additionalProperties": {"type": "string"},
        "maxProperties": MAX_FORM_FIELDS,
    }
    return {"requestBody": {"required": True, "content": {FORM_TYPE: {"schema": schema}}}}


def links_to_token_endpoints() -> dict[str, Any]:
    """Where the token of an answer can go next (OpenAPI 3.1, link object): for people, and for tools that try sequences of requests."""
    return {
        name: {"operationRef": f"#/paths/{path.replace('/', '~1')}/post", "requestBody": {"token": "$response.body#/access_token"}}
        for name, path in (("introspect", INTROSPECTION_PATH), ("revoke", REVOCATION_PATH))
    }


def oauth_problems() -> Responses:
    """The errors of every OAuth endpoint, in the shape of RFC 6749 section 5.2."""
    described = {
        400: "The request is not valid.",
        401: "`invalid_client`: the client could not be authenticated.",
        408: "The request was not received in time.",
        413: "The body is too large.",
        414: "The request target is too long.",
        415: "The body is compressed.",
        429: "`temporarily_unavailable`: the limit is used up; Retry-After says when to come back.",
        431: "The headers are too large.",
        500: "`server_error`.",
        503: "`temporarily_unavailable`.",
    }
    return {status: answer(schemas.OAuthProblem, text) for status, text in described.items()}
