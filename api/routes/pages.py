"""`/docs` and `/openapi.json`: Swagger UI from local files, so that it works with no internet."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.access import public
from api.direct_route import DirectRoute
from api.openapi import TITLE

router = APIRouter(route_class=DirectRoute, include_in_schema=False)

_START: Final = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,'
    " presets: [SwaggerUIBundle.presets.apis],"
    # Without this a wrong secret at *Authorize* (401 with a Basic challenge) makes the browser ask for a password of its own.
    ' requestInterceptor: (request) => Object.assign(request, {credentials: "omit"})})'
)
_PAGE: Final = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE} API</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
%3Ccircle cx='8' cy='8' r='7' fill='%232b6cb0'/%3E%3Ccircle cx='8' cy='8' r='3' fill='white'/%3E%3C/svg%3E">
<link rel="stylesheet" href="/static/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/static/swagger-ui-bundle.js"></script>
<script>{_START}</script>
</body>
</html>
"""
_ASSET_MAX_AGE_S: Final = 3600


def _policy() -> str:
    start_hash = base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'sha256-{start_hash}'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


@router.get("/docs")
@public
async def docs(_: Request) -> Response:
    """The interactive documentation."""
    return Response(_PAGE, media_type="text/html", headers={"Content-Security-Policy": _policy()})


@router.get("/openapi.json")
@public
async def openapi_document(request: Request) -> Response:
    """The OpenAPI document, made once at start."""
    return Response(request.app.state.openapi_json, media_type="application/json")


@router.get("/static/swagger-ui-bundle.js")
@public
def swagger_script(_: Request) -> Response:
    """Swagger UI's program."""
    return _asset("swagger-ui-bundle.js", "text/javascript")


@router.get("/static/swagger-ui.css")
@public
def swagger_style(_: Request) -> Response:
    """Swagger UI's style sheet."""
    return _asset("swagger-ui.css", "text/css")


def _asset(name: str, media_type: str) -> Response:
    return Response(_content(name), media_type=media_type, headers={"Cache-Control": f"public, max-age={_ASSET_MAX_AGE_S}"})


@cache
def _content(name: str) -> bytes:
    return (files("api") / "static" / name).read_bytes()
