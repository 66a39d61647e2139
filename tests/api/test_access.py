from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from api.access import access_table, public, requires
from security.access import PUBLIC


@public
async def open_to_all(_: Request) -> Response:
    return Response()


@requires("predict")
async def guarded(_: Request) -> Response:
    return Response()


async def silent(_: Request) -> Response:
    return Response()


def test_the_table_has_every_path_with_what_its_endpoint_declares() -> None:
    routes = [Route("/open", open_to_all), Route("/guarded", guarded, methods=["POST"])]

    assert access_table(routes) == {"/open": PUBLIC, "/guarded": "predict"}


def test_a_route_that_declares_nothing_stops_the_start() -> None:
    with pytest.raises(RuntimeError, match="/silent declares neither"):
        access_table([Route("/open", open_to_all), Route("/silent", silent)])


def test_two_routes_of_one_path_must_agree() -> None:
    with pytest.raises(RuntimeError, match="/both disagree"):
        access_table([Route("/both", open_to_all, methods=["GET"]), Route("/both", guarded, methods=["POST"])])


@pytest.mark.parametrize("route", [Mount("/static", Starlette()), Route("/files/{name}", open_to_all)])
def test_a_path_that_is_not_exact_stops_the_start(route: Mount | Route) -> None:
    with pytest.raises(RuntimeError, match="not an exact path"):
        access_table([route])


def test_a_scope_that_does_not_exist_cannot_be_required() -> None:
    with pytest.raises(ValueError, match="no such scope"):
        requires("admin")
