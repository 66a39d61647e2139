"""Puts the HTTP application together: the layers in their order, the routes, and who may call what."""

from __future__ import annotations

from copy import copy

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.access import access_table
from api.middleware.boundary import BoundaryMiddleware
from api.middleware.context import ContextMiddleware
from api.openapi import API_VERSION, INTROSPECTION_PATH, REVOCATION_PATH, TITLE, TOKEN_PATH, build_document
from api.routes import introspect, metadata, models, ops, pages, predict, revoke, token
from api.services import Services
from security.access import AccessTable
from security.client_auth import MAX_FORM_BYTES
from security.middleware.authentication import AuthenticationMiddleware
from security.middleware.body_limit import BodyLimitMiddleware
from security.middleware.cors import CorsHeadersMiddleware, PreflightMiddleware


def create_app(services: Services) -> FastAPI:
    """The application of one worker process.

    Raises:
        RuntimeError: a route does not say who may call it.
    """
    routes = _routes(docs=services.settings.http.docs)
    access = access_table(routes)
    document = msgspec.json.encode(build_document(routes))
    app = FastAPI(
        title=TITLE,
        version=API_VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        middleware=_layers(services, access),
        exception_handlers={HTTPException: _leave_to_the_boundary, RequestValidationError: _leave_to_the_boundary},
    )
    # Not include_router: since 0.137 FastAPI keeps included routers lazy, and what walks the routes (the access table) would miss them.
    app.router.routes.extend(_with_head(route) for route in routes)
    app.state.services = services
    app.state.openapi_json = document
    return app


def _layers(services: Services, access: AccessTable) -> list[Middleware]:
    """The house's front door: every layer, outermost first. Their order is a matter of security; see docs/architecture.md."""
    return [
        Middleware(ContextMiddleware, known_paths=access.keys(), over_tls=services.settings.over_tls),
        Middleware(CorsHeadersMiddleware, origins=services.settings.http.cors_origins),
        Middleware(BoundaryMiddleware),
        Middleware(PreflightMiddleware, origins=services.settings.http.cors_origins),
        Middleware(
            AuthenticationMiddleware,
            access=access,
            verifier=services.trusted_issuers or services.verifier,
            revocations=services.revocations,
        ),
        Middleware(
            BodyLimitMiddleware,
            max_body_bytes=services.settings.http.max_body_bytes,
            path_limits=dict.fromkeys((TOKEN_PATH, REVOCATION_PATH, INTROSPECTION_PATH), MAX_FORM_BYTES),
        ),
    ]


def _routes(*, docs: bool) -> list[BaseRoute]:
    routers = [token.router, revoke.router, introspect.router, metadata.router, predict.router, models.router, ops.router]
    if docs:
        routers.append(pages.router)
    return [route for router in routers for route in router.routes]


def _with_head(route: BaseRoute) -> BaseRoute:
    # RFC 9110 section 9.1: HEAD goes with GET. On a copy, because FastAPI would describe it as an operation of its own.
    served = copy(route)
    if isinstance(served, Route) and served.methods and "GET" in served.methods:
        served.methods = served.methods | {"HEAD"}
    return served


async def _leave_to_the_boundary(_: Request, error: Exception) -> Response:
    raise error
