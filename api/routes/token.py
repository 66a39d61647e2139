"""`POST /oauth2/token`."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import public
from api.direct_route import DirectRoute
from api.oauth_docs import form_body, links_to_token_endpoints, oauth_problems
from api.openapi import TOKEN_PATH, answer
from api.record import record_of
from api.services import services_of
from security.token_grant import grant

router = APIRouter(route_class=DirectRoute, tags=["tokens"])

_FIELDS = {
    "grant_type": {"type": "string", "enum": ["client_credentials"]},
    "scope": {"type": "string", "description": "Scopes divided by spaces; all of the client's when absent."},
}


@router.post(
    TOKEN_PATH,
    summary="Get an access token",
    response_class=Response,
    responses={200: {**answer(schemas.TokenAnswer, "A bearer token."), "links": links_to_token_endpoints()}, **oauth_problems()},
    openapi_extra=form_body(_FIELDS, required="grant_type"),
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
    await services.revocations.learn_tier(granted.client_id, granted.tier)
    services.metrics.tokens_issued.inc()
    record = record_of(request.scope)
    record.client_id, record.token_id = granted.client_id, granted.token_id
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
    return Response(msgspec.json.encode(granted.body()), media_type="application/json", headers=headers)
