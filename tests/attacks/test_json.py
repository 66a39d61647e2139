"""Hostile JSON and base64 against the real gate (cases 87, 91 and 92)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping

import httpx
import pytest

from api.body import decode_base64
from security.errors import BodyTooLarge
from support.service import Service

JSON = "application/json"


@pytest.fixture(scope="module")
def token(gate: Service) -> str:
    """Of a client that only this file uses."""
    return gate.token(gate.create_client("json", "predict"))


def send(gate: Service, token: str, body: bytes, *, kind: str | None = JSON, path: str = "/predict") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} | ({} if kind is None else {"Content-Type": kind})
    return httpx.post(gate.url + path, content=body, headers=headers, timeout=60)


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id", "code"}
    return response.status_code, problem["code"]


NO_NUMBERS = {
    "NaN": b'{"image": NaN}',
    "1e999": b'{"image": 1e999}',
    "-1e999": b'{"image": -1e999}',
    "Infinity": b'{"image": Infinity}',
    "-Infinity": b'{"image": -Infinity}',
    "NaN, unknown member": b'{"image": "aGk=", "top_k": NaN}',
    "a number of 400 digits": b'{"image": ' + b"9" * 400 + b"}",
    "a number": b'{"image": 5}',
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_087_numbers_that_json_does_not_have_are_422(gate: Service, token: str, name: str) -> None:
    assert refusal(send(gate, token, NO_NUMBERS[name])) == (422, "invalid_request")


@pytest.mark.parametrize("body", [b'{"images": [NaN]}', b'{"images": [1e999]}', b'{"images": NaN}', b'{"images": [null]}'])
def test_087_nor_does_a_batch_take_them(gate: Service, token: str, body: bytes) -> None:
    assert refusal(send(gate, token, body, path="/predict/batch")) == (422, "invalid_request")


ODD = {
    "nothing but a start": (b"{", 400),
    "no JSON": (b"image=x", 400),
    "two values": (b'{"image": "aGk="} {}', 400),
    "invalid UTF-8": (b'{"image": "\xff\xfe"}', 400),
    "a byte order mark": (b'\xef\xbb\xbf{"image": "aGk="}', 400),
    "nested 100,000 deep": (b"[" * 100_000, 422),
    "nested 100,000 deep inside": (b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422),
    "another member": (b'{"image": "aGk=", "admin": true}', 422),
    "no member": (b"{}", 422),
    "a list": (b'["aGk="]', 422),
    "null": (b"null", 422),
    "a lone surrogate": (b'{"image": "\\ud800"}', 400),
    "a lone surrogate as a name": (b'{"\\ud800": 1}', 400),
    "a zero byte": (b'{"image": "aG\\u0000k="}', 422),
    "the start of a list": (b"[1,2", 400),
    "another member without a value": (b'{"foo": bar}', 400),
    "a number, cut off": (b'{"image": 5', 400),
    "letters behind a number": (b"123abc", 400),
    "invalid UTF-8 in another member": (b'{"foo": "\xff\xfe"}', 400),
    "a number, and NaN behind it": (b'{"image": 5, "foo": NaN}', 422),
}


@pytest.mark.parametrize("name", ODD)
def test_087_no_json_whatever_is_a_500(gate: Service, token: str, name: str) -> None:
    body, status = ODD[name]
    assert refusal(send(gate, token, body)) == (status, {400: "malformed_body", 422: "invalid_request"}[status])


@pytest.mark.parametrize(("body", "status"), [(b"," * 200, 400), (b'{"images": [' + b"," * 200, 400), (b"[" + b"1," * 200 + b"1]", 422)])
def test_087_so_it_is_where_a_batch_has_very_many_commas(gate: Service, token: str, body: bytes, status: int) -> None:
    assert refusal(send(gate, token, body, path="/predict/batch")) == (status, {400: "malformed_body", 422: "invalid_request"}[status])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "image/svg+xml", "", None, "json"])
def test_091_another_media_type_is_415_whatever_the_body(gate: Service, token: str, kind: str | None, coffee: bytes) -> None:
    for body in (json.dumps({"image": base64.b64encode(coffee).decode()}).encode(), coffee):
        assert refusal(send(gate, token, body, kind=kind)) == (415, "unsupported_media_type")


@pytest.fixture
def coffee(photographs_by_name: Mapping[str, bytes]) -> bytes:
    return photographs_by_name["coffee.png"]


def test_091_two_media_types_are_415(gate: Service, token: str, coffee: bytes) -> None:
    headers = [("Authorization", f"Bearer {token}"), ("Content-Type", "image/png"), ("Content-Type", "text/plain")]
    assert refusal(httpx.post(f"{gate.url}/predict", content=coffee, headers=headers, timeout=60)) == (415, "unsupported_media_type")


def test_091_a_parameter_or_another_case_is_no_other_media_type(gate: Service, token: str, coffee: bytes) -> None:
    body = json.dumps({"image": base64.b64encode(coffee).decode()}).encode()
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/json;q=1"):
        assert send(gate, token, body, kind=kind).json()["label"] == "espresso"


NOT_STRICT: dict[str, Callable[[str], str]] = {
    "space": lambda text: text[:100] + " " + text[100:],
    "line break": lambda text: text[:76] + "\n" + text[76:],
    "line end": lambda text: text + "\r\n",
    "bad character": lambda text: text[:100] + "!" + text[101:],
    "base64url": lambda text: text.replace("+", "-").replace("/", "_"),
    "cut": lambda text: text[:-1],
    "padded twice": lambda text: text.rstrip("=") + "====",
    "padded inside": lambda text: text[:100] + "=" + text[101:],
    "not ASCII": lambda text: text + "é",
    "data URL that is not base64": lambda text: "data:image/png," + text,
    "data URL without a comma": lambda text: "data:;base64" + text,
    "data URL with a long head": lambda text: "data:" + "x" * 300 + ";base64," + text,
}


@pytest.mark.parametrize("name", NOT_STRICT)
def test_092_base64_that_is_not_strict_is_422(gate: Service, token: str, coffee: bytes, name: str) -> None:
    text = NOT_STRICT[name](base64.b64encode(coffee).decode())
    assert refusal(send(gate, token, json.dumps({"image": text}).encode())) == (422, "invalid_request")


def test_092_strict_base64_and_a_data_url_are_taken(gate: Service, token: str, coffee: bytes) -> None:
    text = base64.b64encode(coffee).decode()
    for whole in (text, "data:image/png;base64," + text, "DATA:;BASE64," + text):
        assert send(gate, token, json.dumps({"image": whole}).encode()).json()["label"] == "espresso"


def test_092_in_a_batch_it_fails_alone(gate: Service, token: str, coffee: bytes) -> None:
    text = base64.b64encode(coffee).decode()
    body = json.dumps({"images": [text, "not base64!", text + " "]}).encode()
    good, *bad = send(gate, token, body, path="/predict/batch").json()["results"]
    assert good["label"] == "espresso"
    assert [one["error"]["code"] for one in bad] == ["invalid_request"] * 2


def test_092_what_it_stands_for_is_measured_before_it_is_decoded() -> None:
    # Not over a socket: with one limit for the body and for what it stands for, a body that is let through never reaches the second.
    with pytest.raises(BodyTooLarge):
        decode_base64("!" * 4 * 400, max_bytes=1000)  # decoding it first would find that it is not base64
    assert decode_base64("AAAA" * 250, max_bytes=750) == bytes(750)
