"""A client proves who it is, gets a token, sends a picture, and gets its name."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from support.service import Service

CATS = {"tabby", "tiger cat", "Egyptian cat"}


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    return service.token(service.create_client("main-job", "predict"))


def test_photographs_are_named_as_the_real_weights_name_them(
    service: Service, token: str, photographs_by_name: Mapping[str, bytes]
) -> None:
    assert service.predict(photographs_by_name["coffee.png"], token).json()["label"] == "espresso"
    assert service.predict(photographs_by_name["chelsea.png"], token).json()["label"] in CATS
    rocket = service.predict(photographs_by_name["rocket.jpg"], token, "image/jpeg").json()
    assert rocket["label"] in {"missile", "projectile", "space shuttle"}


def test_the_answer_has_the_shape_of_the_contract(service: Service, token: str, photographs_by_name: Mapping[str, bytes]) -> None:
    response = service.predict(photographs_by_name["coffee.png"], token, query="?top_k=3")
    answer = response.json()
    assert set(answer) == {"class_id", "confidence", "label", "predictions", "model"}
    assert [set(one) for one in answer["predictions"]] == [{"class_id", "label", "confidence"}] * 3
    assert {key: answer[key] for key in ("class_id", "label", "confidence")} == answer["predictions"][0]
    confidences = [one["confidence"] for one in answer["predictions"]]
    assert confidences == sorted(confidences, reverse=True)
    assert 0 < sum(confidences) <= 1
    assert set(answer["model"]) == {"name", "version", "digest"}
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch(r"auth;dur=[\d.]+, decode;dur=[\d.]+, queue;dur=[\d.]+, infer;dur=[\d.]+", response.headers["server-timing"])


def test_the_three_forms_of_a_body_get_the_same_answer(service: Service, token: str, photographs_by_name: Mapping[str, bytes]) -> None:
    picture = photographs_by_name["coffee.png"]
    bearer = {"Authorization": f"Bearer {token}"}
    encoded = base64.b64encode(picture).decode()
    url = f"{service.url}/predict"
    answers = [
        service.predict(picture, token),
        httpx.post(url, json={"image": encoded}, headers=bearer, timeout=60),
        httpx.post(url, json={"image": f"data:image/png;base64,{encoded}"}, headers=bearer, timeout=60),
        httpx.post(url, files={"file": ("coffee.png", picture, "image/png")}, headers=bearer, timeout=60),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    # The same batch of one each time, so the same numbers to the last bit.
    assert all(answer.json() == answers[0].json() for answer in answers)


def test_a_batch_answers_in_order_and_one_bad_picture_fails_alone(
    service: Service, token: str, photographs_by_name: Mapping[str, bytes]
) -> None:
    parts = [photographs_by_name["coffee.png"], b"no picture", photographs_by_name["chelsea.png"]]
    response = httpx.post(
        f"{service.url}/predict/batch",
        files=[("file", (f"{index}", part, "application/octet-stream")) for index, part in enumerate(parts)],
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )
    assert response.status_code == 200
    first, bad, last = response.json()["results"]
    assert first["label"] == "espresso"
    assert (bad["error"]["status"], bad["error"]["code"]) == (415, "unsupported_media_type")
    assert last["label"] in CATS


def test_the_model_is_shown_with_the_digest_that_every_answer_names(
    service: Service, token: str, photographs_by_name: Mapping[str, bytes]
) -> None:
    (model,) = service.get("/models", token).json()["models"]
    assert set(model) == {"name", "version", "digest", "input_size", "classes", "precision", "device"}
    assert (model["name"], model["classes"], model["input_size"]) == ("efficientnet_lite0", 1000, 224)
    answer = service.predict(photographs_by_name["coffee.png"], token).json()
    assert answer["model"] == {key: model[key] for key in ("name", "version", "digest")}


def test_probes_answer_without_a_token(service: Service) -> None:
    assert service.get("/livez").status_code == 200
    assert service.get("/readyz").json() == {"status": "ready"}
    assert service.get("/healthz").json() == {"status": "ok", "gpu": False}


def test_a_request_leaves_one_line_that_tells_what_happened(service: Service, token: str, photographs_by_name: Mapping[str, bytes]) -> None:
    after = len(service.log)
    response = httpx.post(
        f"{service.url}/predict",
        content=photographs_by_name["chelsea.png"],
        headers={"Authorization": f"Bearer {token}", "Content-Type": "image/png", "X-Request-ID": "one-line.42"},
        timeout=60,
    )
    assert response.headers["x-request-id"] == "one-line.42"
    line: dict[str, Any] = service.wait_for("request", after=after, request_id="one-line.42")
    assert (line["method"], line["route"], line["status"]) == ("POST", "/predict", 200)
    assert (line["image_format"], line["image_width"], line["image_height"]) == ("png", 451, 300)
    assert line["client_id"].startswith("client_")
    assert line["batch_size"] >= 1
    assert all(line[name] >= 0 for name in ("duration_ms", "auth_ms", "decode_ms", "queue_ms", "infer_ms"))
    assert token not in "".join(service.raw_log)
