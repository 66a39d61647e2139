from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from api.errors import KINDS, oauth_code, refusal_for
from api.log import configure_logging
from api.middleware.boundary import BoundaryMiddleware
from api.record import RECORD_KEY, RequestRecord
from api.trace_context import continue_trace
from security.errors import OAuthError, RegistryUnavailable

if TYPE_CHECKING:
    from api.conftest import Gate

Picture = Callable[..., bytes]


def test_a_request_without_a_token_is_401_with_a_challenge_that_names_no_error(gate: Gate) -> None:
    response = gate.http.post("/predict")

    assert (response.status_code, response.headers["content-type"]) == (401, "application/problem+json")
    assert response.headers["www-authenticate"] == 'Bearer realm="lensgate"'
    assert response.json() == {
        "type": "about:blank",
        "title": KINDS["missing_token"].title,
        "status": 401,
        "detail": "This resource needs a bearer token.",
        "request_id": response.headers["x-request-id"],
        "code": "missing_token",
    }


def test_a_bad_token_is_401_with_a_challenge_that_says_invalid_token(gate: Gate) -> None:
    response = gate.http.get("/models", headers={"Authorization": "Bearer s3cret"})

    assert (response.status_code, response.json()["code"]) == (401, "invalid_token")
    challenge = response.headers["www-authenticate"]
    assert challenge == 'Bearer realm="lensgate", error="invalid_token", error_description="The access token is not valid."'
    assert "s3cret" not in response.text


def test_a_token_without_the_scope_is_403_and_told_which_scope(gate: Gate) -> None:
    response = gate.http.get("/models", headers={"Authorization": f"Bearer {gate.token('scraper')}"})

    assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")
    assert response.headers["www-authenticate"] == 'Bearer realm="lensgate", error="insufficient_scope", scope="predict"'


@pytest.mark.parametrize("path", ["/nowhere", "/predict/", "/predict/batch/x", "//predict", "/PREDICT", "/static/", "/static/../app.py"])
def test_an_unknown_path_is_401_without_a_token_and_404_with_one(gate: Gate, path: str) -> None:
    assert gate.http.get(gate.url + path).status_code == 401
    response = gate.http.get(gate.url + path, headers={"Authorization": f"Bearer {gate.token()}"})

    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert path.strip("/") not in response.json()["detail"]


def test_a_wrong_method_is_405_and_told_the_right_ones(gate: Gate) -> None:
    response = gate.http.get("/predict", headers={"Authorization": f"Bearer {gate.token()}"})

    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_attack_103_an_unexpected_error_is_logged_once_without_local_variables(gate: Gate, picture: Picture) -> None:
    gate.model.failure = ZeroDivisionError("boom\r\n\x1b[31m")
    response = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"})

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "boom" not in response.text
    request_id = gate.log.request(response)["request_id"]
    [error] = [line for line in gate.log.lines() if line["level"] == "error" and line.get("request_id") == request_id]
    [raised] = error["exception"]
    assert (raised["exc_type"], raised["exc_value"]) == ("ZeroDivisionError", r"boom\r\n\x1b[31m")
    assert {"predict", "classify"} <= {frame["name"] for frame in raised["frames"]}
    assert all("locals" not in frame for frame in raised["frames"])


def test_after_an_unexpected_error_the_same_connection_serves_on(gate: Gate, picture: Picture) -> None:
    gate.model.failure = ZeroDivisionError()
    assert gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"}).status_code == 500
    gate.model.failure = None

    assert gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"}).status_code == 200


def test_running_out_of_memory_is_overload_and_is_logged(gate: Gate, picture: Picture) -> None:
    gate.model.failure = MemoryError()
    response = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg"})

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    wanted = response.headers["x-request-id"]
    line = gate.log.wait_for(lambda line: line["event"] == "internal_error" and line["request_id"] == wanted)
    assert (line["level"], line["code"]) == ("error", "overloaded")


def test_a_compressed_body_is_415(gate: Gate, picture: Picture) -> None:
    response = gate.predict(content=picture(), headers={"Content-Type": "image/jpeg", "Content-Encoding": "gzip"})

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


def test_a_validation_error_names_our_parameters_and_nothing_of_the_callers() -> None:
    error = RequestValidationError(
        [
            {"type": "int_parsing", "loc": ("query", "top_k"), "msg": "s3cret", "input": "s3cret"},
            {"type": "extra_forbidden", "loc": ("query", "s3cret"), "msg": "", "input": ""},
            {"type": "missing", "loc": ("body", "s3cret"), "msg": "", "input": {}},
        ]
    )
    refusal = refusal_for(error)

    assert (refusal.status, refusal.code, refusal.detail) == (422, "invalid_request", "Not valid: top_k.")


@pytest.mark.parametrize(("status", "code"), [(400, "malformed_body"), (413, "body_too_large"), (415, "unsupported_media_type")])
def test_what_the_framework_raises_is_told_in_our_words(status: int, code: str) -> None:
    refusal = refusal_for(HTTPException(status, detail="s3cret"))

    assert (refusal.status, refusal.code) == (status, code)
    assert "s3cret" not in refusal.detail


def test_a_status_that_the_table_does_not_know_keeps_its_status() -> None:
    refusal = refusal_for(HTTPException(418))

    assert (refusal.status, refusal.code) == (418, "invalid_request")


def test_a_server_error_of_the_framework_is_an_internal_error() -> None:
    assert refusal_for(HTTPException(502)).unexpected


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (OAuthError("invalid_scope", "No."), "invalid_scope"),
        (RegistryUnavailable(), "temporarily_unavailable"),
        (ZeroDivisionError(), "server_error"),
        (HTTPException(405), "invalid_request"),
        (HTTPException(422), "invalid_request"),
    ],
)
def test_under_oauth2_every_refusal_has_a_word_of_rfc_6749(error: Exception, word: str) -> None:
    assert oauth_code(refusal_for(error)) == word


async def test_an_error_after_half_an_answer_is_logged_and_nothing_is_added_to_the_answer() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def fail_half_way(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    record = RequestRecord("an-id", continue_trace(None))
    log = io.StringIO()
    configure_logging("info", "json", stream=log)
    await BoundaryMiddleware(fail_half_way)({"type": "http", "path": "/x", "state": {RECORD_KEY: record}}, _no_body, send)

    assert [message["type"] for message in sent] == ["http.response.start"]
    assert record.code == json.loads(log.getvalue())["event"] == "internal_error"


async def _no_body() -> Message:
    return {"type": "http.request"}
