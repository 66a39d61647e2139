"""`POST /oauth2/introspect`."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import public
from api.direct_route import DirectRoute
from api.oauth_docs import TOKEN_FIELDS, form_body, oauth_problems
from api.openapi import INTROSPECTION_PATH, answer
from api.record import record_of
from api.services import services_of
from security.introspection import introspect as introspect_token

router = APIRouter(route_class=DirectRoute, tags=["tokens"])


@router.post(
    INTROSPECTION_PATH,
    summary="Look at a token",
    response_class=Response,
    responses={200: answer(schemas.IntrospectionAnswer, "What the token says, or only that it is not active."), **oauth_problems()},
    openapi_extra=form_body(TOKEN_FIELDS, required="token"),
)
@public
async def introspect(request: Request) -> Response:
    """Whether a token is good now, and what it says (RFC 7662): of the client's own tokens; with the scope `introspect`, of anybody's."""
    services = services_of(request)
    client, members = await introspect_token(
        services.registry,
        services.verifier,
        issuer=services.settings.issuer,
        headers=request.scope["headers"],
        query=request.scope["query_string"],
        body=await request.body(),
        now=time.time(),
    )
    record_of(request.scope).client_id = client.client_id
    return Response(msgspec.json.encode(members), media_type="application/json")
