"""Cases 44 to 53: what a browser is told about other origins, on every answer of the app."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final

import httpx
import pytest

from support.faults import sitecustomize as faults
from support.pictures import PNG_SIGNATURE
from support.service import Service

ALLOWED: Final = "https://app.example.com"
LOCAL: Final = "http://localhost:3000"
ORIGINS: Final = {"LENSGATE_HTTP__CORS_ORIGINS": f"{ALLOWED},{LOCAL}"}
PREFLIGHT: Final = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def open_gate(start_gate: Callable[..., Service]) -> Service:
    """A gate that allows two origins, and whose decoder can be made to fail."""
    return start_gate({**ORIGINS, **faults.ENVIRONMENT})


@pytest.fixture(scope="module")
def narrow_gate(start_gate: Callable[..., Service]) -> Service:
    """A gate that allows two origins, and ten requests a minute from an address."""
    gate = start_gate({**ORIGINS, "LENSGATE_HTTP__ADDRESS_LIMIT": "10/minute"}, ready=False)
    gate.wait_for("worker_serving")
    return gate


@pytest.fixture(scope="module")
def token(open_gate: Service) -> str:
    return open_gate.token(open_gate.create_client("page"))


def ask(gate: Service, origin: str | None, path: str = "/livez", method: str = "GET", **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()} | ({} if origin is None else {"Origin": origin})
    return httpx.request(method, gate.url + path, headers=given, timeout=30)


def assert_shared(answer: httpx.Response, origin: str = ALLOWED) -> None:
    """A script of this origin, and of no other, may read this answer."""
    assert answer.headers.get_list("access-control-allow-origin") == [origin]
    assert_varies(answer)
    assert "access-control-allow-credentials" not in answer.headers


def assert_kept(answer: httpx.Response) -> None:
    """No script of another origin may read this answer."""
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert_varies(answer)


def assert_varies(answer: httpx.Response) -> None:
    assert "Origin" in [name.strip() for value in answer.headers.get_list("vary") for name in value.split(",")]


@pytest.mark.parametrize("origin", [ALLOWED, LOCAL])
def test_044_an_allowed_origin_gets_exactly_itself_back(open_gate: Service, origin: str) -> None:
    answer = ask(open_gate, origin)
    assert answer.status_code == 200
    assert_shared(answer, origin)
    exposed = answer.headers["access-control-expose-headers"]
    assert exposed == "X-Request-ID, traceparent, Server-Timing, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com:443",
        "https://app.example.com/",
        "https://app.example.com.evil.example",
        "https://sub.app.example.com",
        "https://APP.example.com",
        "https://app_example.com",
        "app.example.com",
        "*",
        "",
        f"{ALLOWED} {LOCAL}",
        f"{ALLOWED},{LOCAL}",
    ],
)
def test_045_another_origin_gets_nothing(open_gate: Service, origin: str) -> None:
    assert_kept(ask(open_gate, origin))


def test_045_two_origin_headers_get_nothing(open_gate: Service) -> None:
    headers = [("Origin", ALLOWED), ("Origin", ALLOWED)]
    assert_kept(httpx.get(f"{open_gate.url}/livez", headers=headers, timeout=30))


def test_046_the_origin_null_gets_nothing(open_gate: Service) -> None:
    assert_kept(ask(open_gate, "null"))
    assert_kept(ask(open_gate, "null", method="OPTIONS", **PREFLIGHT))


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "post", "", "GET, POST", "x" * 5000])
def test_048_a_preflight_with_another_method_is_400(open_gate: Service, method: str) -> None:
    answer = ask(open_gate, ALLOWED, "/predict", "OPTIONS", **PREFLIGHT | {"Access-Control-Request-Method": method})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert "access-control-allow-methods" not in answer.headers
    assert_shared(answer)


@pytest.mark.parametrize("asked", ["x-evil", "authorization,x-evil", "*", "cookie", "authorization;content-type", "a" * 5000, "," * 5000])
def test_048_a_preflight_with_another_header_is_400(open_gate: Service, asked: str) -> None:
    answer = ask(open_gate, ALLOWED, "/predict", "OPTIONS", **PREFLIGHT | {"Access-Control-Request-Headers": asked})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert asked not in answer.json()["detail"]


def test_048_a_preflight_of_another_origin_is_400(open_gate: Service) -> None:
    answer = ask(open_gate, "https://evil.example", "/predict", "OPTIONS", **PREFLIGHT)
    assert answer.status_code == 400
    assert_kept(answer)


def test_049_an_allowed_origin_may_read_401_404_405_and_413(open_gate: Service, token: str) -> None:
    oversized = httpx.post(f"{open_gate.url}/oauth2/token", content=b"x" * 10_000, headers={"Origin": ALLOWED}, timeout=30)
    answers = [
        ask(open_gate, ALLOWED, "/models"),
        ask(open_gate, ALLOWED, "/nowhere", Authorization=f"Bearer {token}"),
        ask(open_gate, ALLOWED, "/models", "DELETE", Authorization=f"Bearer {token}"),
        oversized,
    ]
    assert [answer.status_code for answer in answers] == [401, 404, 405, 413]
    for answer in answers:
        assert_shared(answer)


HIDDEN_AND_UNNEEDED: Final = {"connection", "date", "vary", "referrer-policy", "x-content-type-options"}
SAFELISTED: Final = {"cache-control", "content-length", "content-type", "pragma"}
"""What a script may always read (Fetch, CORS-safelisted response-header name)."""


def test_049_a_script_may_read_every_header_that_says_why_it_was_refused(open_gate: Service, narrow_gate: Service) -> None:
    missing, limited = ask(open_gate, ALLOWED, "/models"), [ask(narrow_gate, ALLOWED, "/models") for _ in range(25)][-1]
    assert (missing.status_code, limited.status_code) == (401, 429)
    assert {"www-authenticate", "ratelimit", "ratelimit-policy", "x-request-id"} <= set(missing.headers)
    assert {"retry-after", "ratelimit", "ratelimit-policy", "x-request-id"} <= set(limited.headers)
    for answer in (missing, limited):
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        told = {name for name in answer.headers if not name.startswith("access-control-")} - SAFELISTED - HIDDEN_AND_UNNEEDED
        assert told <= exposed


def test_049_an_allowed_origin_may_read_429(narrow_gate: Service) -> None:
    answers = [ask(narrow_gate, ALLOWED, "/models") for _ in range(25)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    for answer in answers:
        assert_shared(answer)


def test_050_an_allowed_origin_may_read_500(open_gate: Service, token: str) -> None:
    picture = PNG_SIGNATURE + bytes(8) + faults.SECRET_IN_LOCALS.to_bytes(4)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png", "Origin": ALLOWED}
    answer = httpx.post(f"{open_gate.url}/predict", content=picture, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert_shared(answer)


@pytest.mark.parametrize("path", ["/livez", "/models", "/nowhere", "/docs", "/.well-known/jwks.json"])
def test_051_an_answer_varies_by_origin_even_when_none_was_sent(open_gate: Service, path: str) -> None:
    assert_kept(ask(open_gate, None, path))


def test_051_with_no_origin_allowed_at_all_answers_vary_too_and_nobody_is_let_in(gate: Service) -> None:
    assert_kept(ask(gate, None))
    assert_kept(ask(gate, ALLOWED))
    assert_kept(ask(gate, ALLOWED, "/predict", "OPTIONS", **PREFLIGHT))


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        '["*"]',
        f"{ALLOWED},*",
        "https://*.example.com",
        "null",
        "https://app.example.com/",
        "app.example.com",
        "https://App.example.com",
    ],
)
def test_052_a_wildcard_and_whatever_is_no_origin_stops_the_start(gate: Service, origins: str) -> None:
    """There is no credentials mode to switch on, so the wildcard alone is refused."""
    run = subprocess.run(
        [sys.executable, "-m", "api.cli", "serve"],
        cwd=gate.folder,
        env=gate.environment | {"LENSGATE_HTTP__CORS_ORIGINS": origins},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode != 0
    (line,) = [line for line in run.stderr.splitlines() if "CORS_ORIGINS" in line]
    assert "origin" in line


def test_053_a_preflight_needs_no_token(open_gate: Service) -> None:
    for path in ("/predict", "/predict/batch", "/models", "/oauth2/token"):
        answer = ask(open_gate, ALLOWED, path, "OPTIONS", **PREFLIGHT)
        assert (answer.status_code, answer.content) == (204, b"")
        assert_shared(answer)
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
        wanted = "Authorization, Content-Type, X-Request-ID, traceparent, tracestate, Accept, Accept-Language, Content-Language"
        assert answer.headers["access-control-allow-headers"] == wanted
        assert answer.headers["access-control-max-age"] == "600"


def test_053_an_options_request_that_is_no_preflight_needs_a_token_like_any_other(open_gate: Service) -> None:
    assert ask(open_gate, ALLOWED, "/predict", "OPTIONS").status_code == 401
    assert ask(open_gate, None, "/predict", "OPTIONS", **PREFLIGHT).status_code == 401


def test_053_preflights_are_limited_by_address(narrow_gate: Service) -> None:
    answers = [ask(narrow_gate, ALLOWED, "/predict", "OPTIONS", **PREFLIGHT) for _ in range(25)]
    assert {answer.status_code for answer in answers} <= {204, 429}
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert_shared(answers[-1])
