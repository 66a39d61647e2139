from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from api.conftest import Gate


def test_alive_needs_neither_a_ready_model_nor_a_token(gate: Gate) -> None:
    gate.model.phase = "starting"
    response = gate.http.get("/livez")

    assert (response.status_code, response.json()) == (200, {"status": "alive"})


def test_ready_when_the_engine_is(gate: Gate) -> None:
    response = gate.http.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"status": "ready"})


def test_not_ready_says_what_is_being_waited_for(gate: Gate) -> None:
    gate.model.phase, gate.model.detail = "downloading", "Downloading the weights: 34 %."
    response = gate.http.get("/readyz")

    assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
    assert (response.json()["code"], response.json()["detail"]) == ("not_ready", "Downloading the weights: 34 %.")
    assert int(response.headers["retry-after"]) >= 1


def test_attack_109_not_ready_while_draining_yet_alive_and_still_predicting(gate: Gate) -> None:
    gate.services.lifecycle.draining = True

    assert gate.http.get("/readyz").status_code == 503
    assert gate.http.get("/healthz").json() == {"status": "unavailable", "gpu": False}
    assert gate.http.get("/livez").status_code == 200
    assert gate.predict(content=b"no picture", headers={"Content-Type": "image/jpeg"}).status_code == 415


def test_health_has_the_shape_that_existing_clients_expect(gate: Gate) -> None:
    response = gate.http.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok", "gpu": False})


def test_health_is_503_when_the_model_is_not_ready(gate: Gate) -> None:
    gate.model.phase = "unavailable"
    response = gate.http.get("/healthz")

    assert (response.status_code, response.json()) == (503, {"status": "unavailable", "gpu": False})
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_a_probe_may_use_head(gate: Gate, path: str) -> None:
    response = gate.http.head(path)

    assert (response.status_code, response.content) == (200, b"")
