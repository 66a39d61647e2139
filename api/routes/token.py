"""`POST /oauth2/token` and `GET /.well-known/jwks.json`."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import public
from api.direct_route import DirectRoute
from api.openapi import TOKEN_PATH, answer
from api.record import record_of
from api.services import services_of
from security.client_auth import FORM_TYPE
from security.token_grant import grant

router = APIRouter(route_class=DirectRoute, tags=["tokens"])

_FORM = {
    "type": "object",
    "required": ["grant_type"],
    "properties": {
        "grant_type": {"type": "string", "enum": ["client_credentials"]},
        "scope": {"type": "string", "description": "Scopes divided by spaces; all of the client's when absent."},
        "client_id": {"type": "string", "description": "Where HTTP Basic is not used."},
        "client_secret": {"type": "string", "format": "password", "description": "Where HTTP Basic is not used."},
    },
}
_KEY_SET = {"type": "object", "required": ["keys"], "properties": {"keys": {"type": "array", "items": {"type": "object"}}}}


@router.post(
    TOKEN_PATH,
    summary="Get an access token",
    response_class=Response,
    responses={
        200: answer(schemas.TokenAnswer, "A bearer token."),
        400: answer(schemas.OAuthProblem, "The request is not valid (RFC 6749 section 5.2)."),
        401: answer(schemas.OAuthProblem, "`invalid_client`: the client could not be authenticated."),
        413: answer(schemas.OAuthProblem, "The body is too large."),
        415: answer(schemas.OAuthProblem, "The body is compressed."),
        500: answer(schemas.OAuthProblem, "`server_error`."),
        503: answer(schemas.OAuthProblem, "`temporarily_unavailable`."),
    },
    openapi_extra={"requestBody": {"required": True, "content": {FORM_TYPE: {"schema": _FORM}}}},
)
@public
async def token(request: Request) -> Response:
    """The client credentials grant (RFC 6749 section 4.4): id and secret by HTTP Basic or in the form, a short-lived token back."""
    services = services_of(request)
    granted = await grant(
        services.registry,
        services.issuer,
        headers=request.scope["headers"],
        query=request.scope["query_string"],
        body=await request.body(),
        now=time.time(),
    )
    record = record_of(request.scope)
    record.client_id, record.token_id = granted.client_id, granted.token_id
    return _json(granted.body(), headers={"Cache-Control": "no-store", "Pragma": "no-cache"})


@router.get(
    "/.well-known/jwks.json",
    summary="The public keys",
    response_class=Response,
    responses={200: {"description": "A JSON Web Key Set (RFC 7517).", "content": {"application/json": {"schema": _KEY_SET}}}},
)
@public
async def jwks(request: Request) -> Response:
    """The keys that verify our tokens: public members only."""
    return _json(services_of(request).keys.ring.jwks())


def _json(content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json", headers=headers)
