"""Puts the HTTP application together: the layers in their order, the routes, and who may call what."""

from __future__ import annotations

from copy import copy
from typing import Final

import msgspec
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from api.access import access_of, access_table
from api.middleware.boundary import OAUTH_PREFIX, BoundaryMiddleware
from api.middleware.context import ContextMiddleware
from api.oauth_limits import PublicLimits
from api.openapi import API_VERSION, INTROSPECTION_PATH, REVOCATION_PATH, TITLE, TOKEN_PATH, build_document
from api.openapi_bounds import add_bounds
from api.routes import introspect, metadata, metrics, models, ops, pages, predict, revoke, token
from api.services import Services
from security.access import PUBLIC, AccessTable
from security.client_address import TrustedProxies, parse_network
from security.client_auth import MAX_FORM_BYTES
from security.middleware.address_limit import AddressLimitMiddleware
from security.middleware.authentication import AuthenticationMiddleware
from security.middleware.body_limit import BodyLimitMiddleware
from security.middleware.client_limit import ClientLimitMiddleware
from security.middleware.cors import CorsHeadersMiddleware, PreflightMiddleware
from security.rate_limits import parse_limit

_PROBE_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz"})


class _Application(FastAPI):
    """With our layers alone around the routes.

    FastAPI adds five: three that answer exceptions, which here is the boundary's work, one that limits bodies, which is that of the body
    limit, and one that closes what its dependencies opened, of which there are none.
    """

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self.router
        for layer, arguments, options in reversed(self.user_middleware):
            app = layer(app, *arguments, **options)
        return app


def create_app(services: Services) -> FastAPI:
    """The application of one worker process.

    Raises:
        RuntimeError: a route does not say who may call it.
    """
    routes = _routes(docs=services.settings.http.docs)
    # Switched off, the pages stay public: nobody is told that a token would help.
    access = access_table([*routes, *pages.router.routes])
    document = build_document(routes)
    add_bounds(document, services.settings)
    app = _Application(
        title=TITLE,
        version=API_VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # Ours (api/otlp_tracer.py) sees the layers outside too; FastAPI's would send query strings and the texts of exceptions.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        middleware=_layers(services, access),
    )
    # Not include_router: since 0.137 FastAPI keeps included routers lazy, and what walks the routes (the access table) would miss them.
    limits = PublicLimits(services.rates, parse_limit(services.settings.http.address_limit))
    app.router.routes.extend(_served(route, limits) for route in routes)
    app.state.services = services
    app.state.openapi_json = msgspec.json.encode(document)
    return app


def _layers(services: Services, access: AccessTable) -> list[Middleware]:
    """The house's front door: every layer, outermost first. Their order is a matter of security; see docs/architecture.md."""
    http = services.settings.http
    return [
        Middleware(
            ContextMiddleware,
            known_paths=access.keys(),
            metrics=services.metrics,
            tracer=services.tracer,
            over_tls=services.settings.over_tls,
        ),
        Middleware(CorsHeadersMiddleware, origins=services.settings.http.cors_origins),
        Middleware(BoundaryMiddleware),
        Middleware(
            AddressLimitMiddleware,
            rates=services.rates,
            limit=parse_limit(http.address_limit),
            proxies=TrustedProxies(map(parse_network, http.trusted_proxies)),
            probe_paths=_PROBE_PATHS,
        ),
        Middleware(PreflightMiddleware, origins=services.settings.http.cors_origins),
        Middleware(
            AuthenticationMiddleware,
            access=access,
            verifier=services.trusted_issuers or services.verifier,
            revocations=services.revocations,
        ),
        Middleware(ClientLimitMiddleware, rates=services.rates, tiers=services.tiers, source=services.revocations),
        Middleware(
            BodyLimitMiddleware,
            max_body_bytes=services.settings.http.max_body_bytes,
            max_bodies_bytes=services.settings.http.max_bodies_bytes,
            path_limits=dict.fromkeys((TOKEN_PATH, REVOCATION_PATH, INTROSPECTION_PATH), MAX_FORM_BYTES),
        ),
    ]


def _routes(*, docs: bool) -> list[BaseRoute]:
    # They are tried in this order: what is asked for most comes first.
    routers = [predict.router, token.router, revoke.router, introspect.router, metadata.router, models.router, ops.router, metrics.router]
    if docs:
        routers.append(pages.router)
    return [route for router in routers for route in router.routes]


def _served(route: BaseRoute, limits: PublicLimits) -> BaseRoute:
    # On a copy, because FastAPI would describe HEAD as an operation of its own, and a router is made once for all apps.
    served = copy(route)
    if isinstance(served, Route):
        if served.methods and "GET" in served.methods:
            served.methods = served.methods | {"HEAD"}  # RFC 9110 section 9.1: HEAD goes with GET
        if access_of(served) == PUBLIC and served.path not in _PROBE_PATHS:
            served.app = limits.guard(served.app, oauth=served.path.startswith(OAUTH_PREFIX))
    return served
