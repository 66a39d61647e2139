"""Each route says who may call it; `access_table` gathers that for the authentication layer and stops the start where a route is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from starlette.routing import BaseRoute, Route

from security.access import PUBLIC, SCOPES, AccessTable

_ATTRIBUTE: Final = "lensgate_access"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def public(endpoint: Endpoint) -> Endpoint:
    """Declare that anyone may call this endpoint (or, for the OAuth endpoints, that it authenticates its clients itself)."""
    setattr(endpoint, _ATTRIBUTE, PUBLIC)
    return endpoint


def requires(scope: str) -> Callable[[Endpoint], Endpoint]:
    """Declare the scope that a token needs for this endpoint.

    Raises:
        ValueError: there is no such scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"no such scope: {scope}")

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, scope)
        return endpoint

    return declare


def access_of(route: BaseRoute) -> str:
    """The scope that a route declares, or `PUBLIC`.

    Raises:
        RuntimeError: the route declares neither, or is of a kind that cannot (a mount, a path with parameters).
    """
    if not isinstance(route, Route) or "{" in route.path:
        raise RuntimeError(f"{route!r} is not an exact path: it cannot stand in the access table")
    access: str | None = getattr(route.endpoint, _ATTRIBUTE, None)
    if access is None:
        raise RuntimeError(f"the route {route.path} declares neither a scope nor that it is public")
    return access


def access_table(routes: Iterable[BaseRoute]) -> AccessTable:
    """Exact path → what it asks of its caller.

    Raises:
        RuntimeError: a route declares nothing, or two routes of one path disagree.
    """
    table: dict[str, str] = {}
    for route in routes:
        access = access_of(route)
        assert isinstance(route, Route)
        if table.setdefault(route.path, access) != access:
            raise RuntimeError(f"the routes of {route.path} disagree about who may call them")
    return table
