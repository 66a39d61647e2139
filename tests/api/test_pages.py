from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from api.conftest import Gate


def test_the_docs_page_loads_nothing_from_anywhere_else(gate: Gate) -> None:
    page = gate.http.get("/docs").text

    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page) == ["/static/swagger-ui.css", "/static/swagger-ui-bundle.js"]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_docs_page_allows_its_own_inline_script_and_no_other(gate: Gate) -> None:
    response = gate.http.get("/docs")
    [script] = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    policy = response.headers["content-security-policy"]
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/static/swagger-ui-bundle.js", "text/javascript; charset=utf-8"), ("/static/swagger-ui.css", "text/css; charset=utf-8")],
)
def test_the_assets_are_served_from_local_files_and_may_be_cached(gate: Gate, path: str, media_type: str) -> None:
    response = gate.http.get(path)

    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert len(response.content) > 100_000
    assert response.headers["cache-control"] == "public, max-age=3600"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/static/swagger-ui.css"])
def test_attack_108_docs_switched_off_are_404(gate_without_docs: Gate, path: str) -> None:
    for headers in ({}, {"Authorization": f"Bearer {gate_without_docs.token()}"}):
        response = gate_without_docs.http.get(path, headers=headers)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert response.headers["content-type"] == "application/problem+json"
    assert gate_without_docs.http.get("/nothing").status_code == 401
