"""What programs need to know of this authorization server: `/.well-known/jwks.json` and `/.well-known/oauth-authorization-server`."""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.access import public
from api.direct_route import DirectRoute
from api.openapi import INTROSPECTION_PATH, REVOCATION_PATH, TOKEN_PATH, answer
from api.services import services_of
from security.access import SCOPES
from security.key_ring import JWKS_MAX_AGE_S

router = APIRouter(route_class=DirectRoute, tags=["tokens"])

JWKS_PATH: Final = "/.well-known/jwks.json"
_METADATA_MAX_AGE_S: Final = 300
_AUTH_METHODS: Final = ["client_secret_basic", "client_secret_post"]
_KEY_SET: Final = {"type": "object", "required": ["keys"], "properties": {"keys": {"type": "array", "items": {"type": "object"}}}}


@router.get(
    JWKS_PATH,
    summary="The public keys",
    response_class=Response,
    responses={200: {"description": "A JSON Web Key Set (RFC 7517).", "content": {"application/json": {"schema": _KEY_SET}}}},
)
@public
async def jwks(request: Request) -> Response:
    """The keys that verify our tokens: public members only. Fetch it again when a token names a `kid` that is not in it."""
    return _public_json(services_of(request).keys.ring.jwks(), max_age_s=JWKS_MAX_AGE_S)


@router.get(
    "/.well-known/oauth-authorization-server",
    summary="The server's metadata",
    response_class=Response,
    responses={200: answer(schemas.ServerMetadata, "Where everything is, and what is supported (RFC 8414).")},
)
@public
async def server_metadata(request: Request) -> Response:
    """The metadata of RFC 8414. Its URLs begin with the setting `LENSGATE_SECURITY__ISSUER`, never with what a request says."""
    issuer = services_of(request).settings.issuer
    metadata = schemas.ServerMetadata(
        issuer=issuer,
        token_endpoint=issuer + TOKEN_PATH,
        revocation_endpoint=issuer + REVOCATION_PATH,
        introspection_endpoint=issuer + INTROSPECTION_PATH,
        jwks_uri=issuer + JWKS_PATH,
        scopes_supported=list(SCOPES),
        response_types_supported=[],
        grant_types_supported=["client_credentials"],
        token_endpoint_auth_methods_supported=_AUTH_METHODS,
        revocation_endpoint_auth_methods_supported=_AUTH_METHODS,
        introspection_endpoint_auth_methods_supported=_AUTH_METHODS,
    )
    return _public_json(metadata, max_age_s=_METADATA_MAX_AGE_S)


def _public_json(content: object, *, max_age_s: int) -> Response:
    headers = {"Cache-Control": f"public, max-age={max_age_s}"}
    return Response(msgspec.json.encode(content), media_type="application/json", headers=headers)
