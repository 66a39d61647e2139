from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.routing import Route

from api.app import create_app
from api.errors import KINDS
from api.openapi import API_VERSION
from security.access import SCOPES

if TYPE_CHECKING:
    from api.conftest import Gate


@pytest.fixture
def document(gate: Gate) -> dict[str, Any]:
    answer = gate.http.get("/openapi.json").json()
    assert isinstance(answer, dict)
    return answer


def _operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): operation for path, item in document["paths"].items() for method, operation in item.items()}


def test_the_document_describes_every_route_but_the_pages(gate: Gate, document: dict[str, Any]) -> None:
    routes = {
        (method, route.path)
        for route in create_app(gate.services).routes
        if isinstance(route, Route) and not route.path.startswith(("/docs", "/openapi.json", "/static/"))
        for method in route.methods or ()
        if method != "HEAD"
    }

    assert set(_operations(document)) == routes
    assert ("POST", "/predict") in routes


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: object) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if "$ref" in node else set()
            return own.union(*(references(value) for value in node.values()))
        return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()

    known = {f"#/components/{kind}/{name}" for kind in ("schemas", "headers") for name in document["components"][kind]}
    assert references(document) <= known
    assert references(document)


def test_guarded_operations_need_their_scope_and_document_its_refusals(document: dict[str, Any]) -> None:
    for (_, path), operation in _operations(document).items():
        scope = {"/predict": "predict", "/predict/batch": "predict", "/models": "predict", "/metrics": "metrics"}.get(path)
        if scope is not None:
            assert operation["security"] == [{"clientCredentials": [scope]}]
            assert {"200", "401", "403", "500"} <= set(operation["responses"])
        elif path.startswith("/oauth2/"):
            assert operation["security"] == [{"clientIdAndSecret": []}, {}]
        else:
            assert operation["security"] == []


def test_the_oauth_endpoints_take_http_basic(document: dict[str, Any]) -> None:
    scheme = document["components"]["securitySchemes"]["clientIdAndSecret"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "basic")


def test_the_headers_of_answers_are_described(document: dict[str, Any]) -> None:
    for operation in _operations(document).values():
        for status, described in operation["responses"].items():
            assert "X-Request-ID" in described["headers"]
            assert ("RateLimit" in described["headers"]) == (status not in {"414", "431"})
            assert ("Retry-After" in described["headers"]) == (status in {"429", "503"})
            assert ("WWW-Authenticate" in described["headers"]) == (status in {"401", "403"})


@pytest.mark.parametrize("path", ["/livez", "/models", "/.well-known/jwks.json"])
def test_the_headers_that_are_described_are_sent(gate: Gate, document: dict[str, Any], path: str) -> None:
    response = gate.http.get(path)
    described = document["paths"][path]["get"]["responses"][str(response.status_code)]["headers"]
    assert [name for name in described if name not in response.headers] == []


def test_a_batch_documents_how_many_pictures_it_may_have(gate: Gate, document: dict[str, Any]) -> None:
    content = document["paths"]["/predict/batch"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"]["properties"]["images"]["maxItems"] == gate.services.settings.http.max_batch_images
    assert content["multipart/form-data"]["schema"]["properties"]["file"]["maxItems"] == gate.services.settings.http.max_batch_images


def test_predict_documents_every_status_that_it_can_answer(document: dict[str, Any]) -> None:
    documented = set(document["paths"]["/predict"]["post"]["responses"])

    not_of_this_route = {"not_found", "method_not_allowed"}
    assert documented == {"200"} | {str(kind.status) for code, kind in KINDS.items() if code not in not_of_this_route}


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
def test_a_probe_that_is_503_says_when_to_come_back(document: dict[str, Any], path: str) -> None:
    assert "Retry-After" in document["paths"][path]["get"]["responses"]["503"]["headers"]


def test_predict_documents_its_bodies_and_its_parameter(document: dict[str, Any]) -> None:
    operation = document["paths"]["/predict"]["post"]

    assert set(operation["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
        "image/jpeg",
        "image/png",
        "image/webp",
    }
    [top_k] = operation["parameters"]
    assert (top_k["name"], top_k["schema"]["minimum"], top_k["schema"]["maximum"], top_k["schema"]["default"]) == ("top_k", 1, 100, 5)


def test_authorising_in_the_docs_uses_the_token_endpoint_with_every_scope(document: dict[str, Any]) -> None:
    scheme = document["components"]["securitySchemes"]["clientCredentials"]

    assert scheme["type"] == "oauth2"
    flow = scheme["flows"]["clientCredentials"]
    assert flow["tokenUrl"] == "/oauth2/token"
    assert tuple(flow["scopes"]) == SCOPES


def test_the_documented_prediction_has_the_fields_of_a_real_one(
    gate: Gate, document: dict[str, Any], picture: Callable[..., bytes]
) -> None:
    shapes = document["components"]["schemas"]
    answer = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"}).json()

    assert set(answer) == set(shapes["PredictionAnswer"]["properties"])
    assert set(answer["predictions"][0]) == set(shapes["ScoredClass"]["properties"])
    assert set(answer["model"]) == set(shapes["ModelName"]["properties"])
    assert set(gate.http.get("/models").json()) == set(shapes["Problem"]["properties"])


def test_the_document_and_the_package_have_the_same_version(document: dict[str, Any]) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    assert document["info"]["version"] == API_VERSION == project["version"]


def test_the_bounds_of_this_very_service_are_named(gate: Gate, document: dict[str, Any]) -> None:
    settings = gate.services.settings
    for path in ("/predict", "/predict/batch"):
        description = document["paths"][path]["post"]["description"]
        assert f"{settings.http.max_body_bytes:,} bytes, of which base64 counts in full" in description
        assert f"{settings.inference.max_pixels:,} pixels" in description
    assert f"at most {settings.http.max_batch_images} pictures" in document["paths"]["/predict/batch"]["post"]["description"]


def test_the_scopes_to_select_are_told(document: dict[str, Any]) -> None:
    assert "Select no scope" in document["components"]["securitySchemes"]["clientCredentials"]["description"]
