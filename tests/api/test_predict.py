from __future__ import annotations

import base64
import json
import socket
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from inference.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded

if TYPE_CHECKING:
    from api.conftest import Gate

Picture = Callable[..., bytes]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _body_forms(data: bytes) -> dict[str, dict[str, Any]]:
    return {
        "raw": {"content": data, "headers": {"Content-Type": "image/jpeg"}},
        "raw, with a parameter": {"content": data, "headers": {"Content-Type": "IMAGE/JPEG; q=1"}},
        "json": {"json": {"image": _base64(data)}},
        "data url": {"json": {"image": "data:image/png;name=x;base64," + _base64(data)}},
        "multipart": {"files": {"file": ("a.jpg", data)}},
        "multipart, without a file name": {"files": {"file": (None, data)}},
        "chunked": {"content": iter([data[:100], data[100:]]), "headers": {"Content-Type": "image/webp"}},
    }


@pytest.mark.parametrize("form", list(_body_forms(b"")))
def test_every_form_of_body_gives_the_same_answer(gate: Gate, picture: Picture, form: str) -> None:
    response = gate.predict(**_body_forms(picture("green"))[form])

    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer == {
        "class_id": 1,
        "confidence": 0.9,
        "label": "green",
        "predictions": answer["predictions"],
        "model": {"name": "colours", "version": "test", "digest": "sha256:" + "0" * 64},
    }
    assert answer["predictions"][0] == {"class_id": 1, "label": "green", "confidence": 0.9}
    assert len(answer["predictions"]) == 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_bytes_decide_what_a_picture_is_not_its_declared_type(gate: Gate, picture: Picture, kind: str) -> None:
    response = gate.predict(content=picture("blue", kind=kind), headers={"Content-Type": "image/png"})

    assert response.json()["label"] == "blue"


@pytest.mark.parametrize(("query", "count"), [("", 5), ("top_k=1", 1), ("top_k=100", 100), ("top_k=007", 7), ("other=1&top_k=2", 2)])
def test_top_k_chooses_how_many_classes_are_returned(gate: Gate, picture: Picture, query: str, count: int) -> None:
    response = gate.predict(path=f"/predict?{query}", content=picture(), headers={"Content-Type": "image/jpeg"})

    assert len(response.json()["predictions"]) == count


@pytest.mark.parametrize("top_k", ["0", "101", "-1", "1.0", "", "five-s3cret", "%D9%A3", "5&top_k=5", "1000000000000000000000"])
def test_a_top_k_that_is_no_number_from_1_to_100_is_422(gate: Gate, picture: Picture, top_k: str) -> None:
    response = gate.predict(path=f"/predict?top_k={top_k}", content=picture(), headers={"Content-Type": "image/jpeg"})

    assert response.status_code == 422
    assert response.json()["code"] == "invalid_request"
    assert "s3cret" not in response.text
    assert gate.model.pictures_seen == 0


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "application/x-www-form-urlencoded", "", None])
def test_a_body_of_another_type_is_415(gate: Gate, picture: Picture, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = gate.predict(content=picture(), headers=headers)

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/json", "multipart/form-data; boundary=x"])
def test_an_empty_body_is_415(gate: Gate, content_type: str) -> None:
    response = gate.predict(content=b"", headers={"Content-Type": content_type})

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("data", [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a" + bytes(40), b"II*\x00" + bytes(40)])
def test_a_body_that_is_no_picture_of_ours_is_415(gate: Gate, data: bytes) -> None:
    response = gate.predict(content=data, headers={"Content-Type": "image/png"})

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


def test_a_truncated_picture_is_422(gate: Gate, picture: Picture) -> None:
    response = gate.predict(content=picture(kind="PNG")[:60], headers={"Content-Type": "image/png"})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_image")


def test_a_picture_that_promises_too_many_pixels_is_413_without_closing_the_connection(gate: Gate, picture: Picture) -> None:
    data = bytearray(picture(kind="PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    response = gate.predict(content=bytes(data), headers={"Content-Type": "image/png"})

    assert (response.status_code, response.json()["code"]) == (413, "image_too_large")
    assert "connection" not in response.headers


@pytest.mark.parametrize("body", [b"{", b"not json", b'{"image": "a"} {"image": "b"}', b'{"image": "\xff"}', b'{"image": "\\ud800"}'])
def test_a_body_that_is_no_json_is_400(gate: Gate, body: bytes) -> None:
    response = gate.predict(content=body, headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["code"]) == (400, "malformed_body")


@pytest.mark.parametrize(
    "body",
    [
        "NaN",
        '{"image": NaN}',
        '{"image": -Infinity}',
        '{"image": 1e999}',
        "null",
        "[]",
        "{}",
        '{"image": null}',
        '{"image": ["a"]}',
        '{"s3cret": 1}',
        '{"image": "aGk=", "s3cret": 1}',
        '{"image": ' + "[" * 100_000,
        "[" * 100_000,
    ],
)
def test_json_of_another_shape_is_422_and_is_not_echoed(gate: Gate, body: str) -> None:
    response = gate.predict(content=body, headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "s3cret" not in response.text


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/predict", "{}", 'The JSON must be of the form {"image": "<base64>"}. Object missing required field `image`.'),
        ("/predict", '{"image": 5}', 'The JSON must be of the form {"image": "<base64>"}. Expected `str`, got `int` - at `$.image`.'),
        ("/predict", '{"image": 1e999}', 'The JSON must be of the form {"image": "<base64>"}. Number out of range - at `$.image`.'),
        ("/predict", "[]", 'The JSON must be of the form {"image": "<base64>"}. Expected `object`, got `array`.'),
        ("/predict", '{"s3cret`": 1}', 'The JSON must be of the form {"image": "<base64>"}. It may have no other member.'),
        (
            "/predict/batch",
            '{"images": ["a", null]}',
            'The JSON must be of the form {"images": ["<base64>", ...]}. Expected `str`, got `null` - at `$.images[1]`.',
        ),
        (
            "/predict/batch",
            '{"Expected `str`, got `int`": 1}',
            'The JSON must be of the form {"images": ["<base64>", ...]}. It may have no other member.',
        ),
    ],
)
def test_json_of_another_shape_is_told_the_right_one_and_what_is_wrong(gate: Gate, path: str, body: str, told: str) -> None:
    response = gate.predict(path=path, content=body, headers={"Content-Type": "application/json"})

    assert response.json()["detail"] == told


@pytest.mark.parametrize("text", ["aGk", "aG k=", "aGk=\n", "a-_=", "aGk=aGk=", "=aGk", "é", "data:image/png,abc", "data:;base64", "data:"])
def test_base64_that_is_not_strict_is_422(gate: Gate, text: str) -> None:
    response = gate.predict(json={"image": text})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"no boundary here",
        b"--x\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ndata',
        b'--x\r\nContent-Disposition: form-data; filename="file"\r\n\r\ndata\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: attachment; name="file"\r\n\r\ndata\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\ndata\r\n--x--\r\n',
        b"--x\r\n\r\ndata\r\n--x--\r\n",
        b"--x--\r\n",
    ],
    ids=["none", "cut off in the head", "cut off in the data", "no name", "no form-data", "other name", "no head", "no part"],
)
def test_multipart_that_is_not_one_file_is_400(gate: Gate, body: bytes) -> None:
    response = gate.predict(content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})

    assert (response.status_code, response.json()["code"]) == (400, "malformed_body")


def test_multipart_without_a_boundary_is_400(gate: Gate) -> None:
    response = gate.predict(content=b"--x--", headers={"Content-Type": "multipart/form-data"})

    assert (response.status_code, response.json()["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("count", [2, 3, 4, 1000])
def test_attack_66_any_number_of_file_parts_but_one_is_400(gate: Gate, picture: Picture, count: int) -> None:
    # Small, so that a thousand of them are no body that is too large.
    response = gate.predict(files=[("file", ("a", picture()[:40]))] * count)

    assert (response.status_code, response.json()["code"]) == (400, "malformed_body")
    assert "exactly one part" in response.json()["detail"]
    assert gate.model.pictures_seen == 0


def test_an_unexpected_form_field_is_400(gate: Gate, picture: Picture) -> None:
    response = gate.predict(files={"file": ("a", picture())}, data={"comment": "s3cret"})

    assert (response.status_code, response.json()["code"]) == (400, "malformed_body")
    assert "s3cret" not in response.text


def test_a_body_over_the_limit_is_413_and_closes_the_connection(gate: Gate) -> None:
    limit = gate.services.settings.http.max_body_bytes
    response = gate.predict(content=bytes(limit + 1), headers={"Content-Type": "image/jpeg"})

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert str(limit) in response.json()["detail"]
    assert response.headers["connection"] == "close"


def test_a_chunked_body_over_the_limit_is_413(gate: Gate) -> None:
    chunk = bytes(gate.services.settings.http.max_body_bytes // 2 + 1)
    response = gate.predict(content=iter([chunk, chunk]), headers={"Content-Type": "image/jpeg"})

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (Overloaded(retry_after_s=7), 503, "overloaded", "7"),
        (EngineUnavailable(retry_after_s=2), 503, "not_ready", "2"),
        (DeadlineExceeded(), 504, "deadline_exceeded", None),
        (InferenceFailed("CUDA error at /srv/model.py"), 500, "internal_error", None),
        (MemoryError(), 503, "overloaded", "1"),
    ],
)
def test_what_the_engine_refuses_has_its_own_status(
    gate: Gate, picture: Picture, failure: Exception, status: int, code: str, retry_after: str | None
) -> None:
    gate.model.failure = failure
    response = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"})

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers.get("retry-after") == retry_after
    assert "/srv" not in response.text


def test_a_model_that_is_not_ready_is_503_before_anything_is_decoded(gate: Gate) -> None:
    gate.model.phase, gate.model.detail = "downloading", "Downloading the weights: 34 %."
    response = gate.predict(content=b"this would be 415", headers={"Content-Type": "image/jpeg"})

    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.json()["detail"] == "Downloading the weights: 34 %."
    assert int(response.headers["retry-after"]) >= 1


def test_the_engine_is_told_which_client_asks(gate: Gate, picture: Picture) -> None:
    gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"})

    assert gate.model.clients == [gate.clients["camera"].client_id]


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_attack_73_a_client_that_leaves_cancels_its_predictions_and_is_logged_as_499(gate: Gate, picture: Picture, path: str) -> None:
    gate.hold_model()
    encoded = _base64(picture())
    data = json.dumps({"image": encoded} if path == "/predict" else {"images": [encoded, encoded]}).encode()
    leaver = "leaver-of" + path.replace("/", "-")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gate.token()}\r\nX-Request-ID: {leaver}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gate.port)) as connection:
        connection.sendall(head.encode() + data)
        assert gate.model.asked.acquire(timeout=10)

    assert gate.model.cancelled.wait(10)
    line = gate.log.wait_for(lambda line: line.get("request_id") == leaver)
    assert (line["status"], line["level"]) == (499, "info")


def test_a_prediction_that_waits_is_answered_when_the_engine_goes_on(gate: Gate, picture: Picture) -> None:
    gate.hold_model()
    gate.loop.call_later(0.05, gate.let_model_go)
    gate.loop.call_soon_threadsafe(lambda: None)  # wakes the loop, which must notice the timer

    assert gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"}).status_code == 200
    assert not gate.model.cancelled.is_set()


def test_models_are_listed_with_what_a_client_needs(gate: Gate) -> None:
    response = gate.http.get("/models", headers={"Authorization": f"Bearer {gate.token()}"})

    assert json.loads(response.text) == {
        "models": [
            {
                "name": "colours",
                "version": "test",
                "digest": "sha256:" + "0" * 64,
                "input_size": 32,
                "classes": 120,
                "precision": "fp32",
                "device": "cpu",
            }
        ]
    }
