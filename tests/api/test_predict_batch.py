from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from inference.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded

if TYPE_CHECKING:
    from api.conftest import Gate

Picture = Callable[..., bytes]


def _json(*pictures: bytes) -> dict[str, Any]:
    return {"path": "/predict/batch", "json": {"images": [base64.b64encode(data).decode() for data in pictures]}}


def _multipart(*pictures: bytes) -> dict[str, Any]:
    return {"path": "/predict/batch", "files": [("file", (f"{number}.jpg", data)) for number, data in enumerate(pictures)]}


@pytest.mark.parametrize("form", [_json, _multipart], ids=["json", "multipart"])
def test_results_come_in_the_order_of_the_pictures(gate: Gate, picture: Picture, form: Callable[..., dict[str, Any]]) -> None:
    response = gate.predict(**form(picture("blue"), picture("red"), picture("green"), picture("red")))

    assert response.status_code == 200, response.text
    answer = response.json()
    assert [result["label"] for result in answer["results"]] == ["blue", "red", "green", "red"]
    assert answer["model"]["name"] == "colours"
    assert set(answer["results"][0]) == {"class_id", "confidence", "label", "predictions"}


def test_a_batch_of_one_agrees_with_a_single_prediction(gate: Gate, picture: Picture) -> None:
    single = gate.predict(content=picture("blue"), headers={"Content-Type": "image/jpeg"}).json()
    [result] = gate.predict(**_json(picture("blue"))).json()["results"]

    assert result == {name: value for name, value in single.items() if name != "model"}


def test_one_bad_picture_gets_its_error_in_its_place_and_the_others_their_labels(gate: Gate, picture: Picture) -> None:
    request = _json(picture("red"), b"not a picture", picture(kind="PNG")[:60], picture("blue"))
    response = gate.predict(**request)

    first, unsupported, broken, last = response.json()["results"]
    assert (first["label"], last["label"]) == ("red", "blue")
    assert (unsupported["error"]["status"], unsupported["error"]["code"]) == (415, "unsupported_media_type")
    assert (broken["error"]["status"], broken["error"]["code"]) == (422, "invalid_image")
    assert broken["error"]["request_id"] == response.headers["x-request-id"]
    assert set(broken["error"]) == {"type", "title", "status", "detail", "request_id", "code"}
    assert gate.log.request(response)["failed_images"] == 2


def test_a_picture_whose_base64_is_wrong_fails_alone(gate: Gate, picture: Picture) -> None:
    request = _json(picture("red"))
    request["json"]["images"].append("s3cret not base64")
    response = gate.predict(**request)

    good, bad = response.json()["results"]
    assert good["label"] == "red"
    assert (bad["error"]["status"], bad["error"]["code"]) == (422, "invalid_request")
    assert "s3cret" not in response.text


def test_an_unexpected_failure_of_one_picture_is_an_internal_error_that_tells_nothing(gate: Gate, picture: Picture) -> None:
    gate.model.failure = InferenceFailed("CUDA error at /srv/model.py")
    response = gate.predict(**_json(picture(), b"no picture"))

    assert response.status_code == 200
    failed = response.json()["results"][0]["error"]
    assert (failed["status"], failed["code"]) == (500, "internal_error")
    assert "/srv" not in response.text
    wanted = response.headers["x-request-id"]
    line = gate.log.wait_for(lambda line: line["event"] == "internal_error" and line["request_id"] == wanted)
    assert line["exception"][0]["exc_type"] == "InferenceFailed"


@pytest.mark.parametrize(
    ("failure", "code", "retry_after"),
    [(Overloaded(retry_after_s=9), "overloaded", "9"), (EngineUnavailable(retry_after_s=3), "not_ready", "3")],
)
def test_a_batch_of_which_nothing_could_be_taken_is_refused_as_a_whole(
    gate: Gate, picture: Picture, failure: Exception, code: str, retry_after: str
) -> None:
    gate.model.failure = failure
    response = gate.predict(**_json(picture(), picture()))

    assert (response.status_code, response.json()["code"]) == (503, code)
    assert response.headers["retry-after"] == retry_after


def test_the_engine_refusing_some_pictures_is_their_own_error(gate: Gate, picture: Picture) -> None:
    gate.model.failure = DeadlineExceeded()
    response = gate.predict(**_json(picture(), b"no picture"))

    assert [result["error"]["code"] for result in response.json()["results"]] == ["deadline_exceeded", "unsupported_media_type"]


@pytest.mark.parametrize("form", [_json, _multipart], ids=["json", "multipart"])
def test_more_pictures_than_allowed_are_422(gate: Gate, picture: Picture, form: Callable[..., dict[str, Any]]) -> None:
    response = gate.predict(**form(*[picture()] * (gate.services.settings.http.max_batch_images + 1)))

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert gate.model.pictures_seen == 0


@pytest.mark.parametrize("body", [{"images": []}, {"images": "a"}, {"images": [1]}, {"image": "aGk="}, {"images": ["aGk="], "more": 1}])
def test_json_without_a_list_of_pictures_is_422(gate: Gate, body: dict[str, object]) -> None:
    response = gate.predict(path="/predict/batch", json=body)

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


def test_raw_bytes_are_no_batch(gate: Gate, picture: Picture) -> None:
    response = gate.predict(path="/predict/batch", content=picture(), headers={"Content-Type": "image/jpeg"})

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


def test_top_k_goes_for_every_picture_of_a_batch(gate: Gate, picture: Picture) -> None:
    request = _json(picture(), picture()) | {"path": "/predict/batch?top_k=2"}

    assert [len(result["predictions"]) for result in gate.predict(**request).json()["results"]] == [2, 2]
