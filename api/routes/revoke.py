"""`POST /oauth2/revoke`."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.access import public
from api.direct_route import DirectRoute
from api.oauth_docs import TOKEN_FIELDS, form_body, oauth_problems
from api.openapi import REVOCATION_PATH
from api.record import record_of
from api.services import services_of
from security.token_revocation import revoke as revoke_token

router = APIRouter(route_class=DirectRoute, tags=["tokens"])


@router.post(
    REVOCATION_PATH,
    summary="Take a token back",
    response_class=Response,
    responses={200: {"description": "If the token was good and the client's own, it is revoked. There is no body."}, **oauth_problems()},
    openapi_extra=form_body(TOKEN_FIELDS, required="token"),
)
@public
async def revoke(request: Request) -> Response:
    """Revoke one of the client's own tokens (RFC 7009). Every worker refuses it within `LENSGATE_SECURITY__POLL_S`, 2 s by default."""
    services = services_of(request)
    client, token_id = await revoke_token(
        services.registry,
        services.verifier,
        issuer=services.settings.issuer,
        headers=request.scope["headers"],
        query=request.scope["query_string"],
        body=await request.body(),
        now=time.time(),
    )
    record = record_of(request.scope)
    record.client_id, record.token_id = client.client_id, token_id
    return Response()
