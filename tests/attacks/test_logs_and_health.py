"""What the log must not hold, and what the probes must say (cases 102 to 104, 108 and 109)."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from security.keys import create_key
from support.faults import sitecustomize as faults
from support.leaks import leaks
from support.pictures import encode
from support.postgresql import PostgreSql, postgresql
from support.redis_server import RedisServer, redis_server
from support.service import Service

HOSTILE = '\r\n{"event":"forged","level":"error"}\r\n\x1b[31mred\x1b[0m\x07\x00\u2028\u009b31m'


def send_raw(service: Service, head: bytes, body: bytes = b"") -> bytes:
    """One request of exactly these bytes, and the answer up to the end of the connection."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head + body)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    return answer


@pytest.fixture(scope="module")
def own_gate(start_gate: Callable[..., Service]) -> Service:
    """A gate without docs, whose decoder has the faults of `support.faults`."""
    return start_gate({**faults.ENVIRONMENT, "LENSGATE_HTTP__DOCS": "false"})


@pytest.fixture(scope="module")
def own_token(own_gate: Service) -> str:
    return own_gate.token(own_gate.create_client("own", "predict"))


def lines_since(service: Service, after: int) -> list[str]:
    """The raw lines, each of which must be one JSON object without a control character."""
    lines = service.raw_log[after:]
    for line in lines:
        assert line.endswith("\n")
        assert line[:-1].isprintable(), line
        assert "forged" not in json.loads(line)["event"]
    return lines


def encode_blank(width: int) -> bytes:
    """A PNG that the decoder takes, of that width."""
    return encode(Image.new("L", (width, 300)), "PNG")


def test_102_line_breaks_and_terminal_codes_in_a_path_make_one_line_of_json(gate: Service) -> None:
    after = len(gate.raw_log)
    httpx.get(gate.url + "/" + "".join(f"%{byte:02x}" for byte in HOSTILE.encode()), headers={"X-Request-ID": "case-102-path"}, timeout=30)
    line = gate.wait_for("request", request_id="case-102-path")
    assert line["route"] == "unmatched"
    assert r"\r\n" in line["path"]
    assert len([raw for raw in lines_since(gate, after) if "case-102-path" in raw]) == 1


@pytest.mark.parametrize(
    "value",
    [b"\x1b[31mred\x1b[0m", b'"}{"event":"forged"}', b"tab\there", b"\xff\xfe", "\u2028\u009b31m".encode(), b"a\r\n folded"],
    ids=["ansi", "json", "tab", "no UTF-8", "unicode line break", "folded"],
)
def test_102_a_hostile_user_agent_makes_no_line_of_its_own(gate: Service, value: bytes) -> None:
    after, requests = len(gate.raw_log), len(gate.log)
    head = b"GET /models HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: case-102-agent\r\nUser-Agent: " + value + b"\r\n\r\n"
    answer = send_raw(gate, head)
    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))
    event = "request" if answer.startswith(b"HTTP/1.1 401 ") else "request_refused"
    gate.wait_for(event, after=requests)
    assert b"red" not in answer
    assert not [line for line in lines_since(gate, after) if "red" in line.replace("refused", "").replace("required", "")]


def test_102_a_hostile_file_name_is_in_no_line(gate: Service, token: str) -> None:
    after = len(gate.raw_log)
    name = HOSTILE.encode().replace(b"\r\n", b"").replace(b"\0", b"")
    picture = encode_blank(300)
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name.replace(b'"', b"%22") + b'"\r\n'
    body += b"Content-Type: image/png\r\n\r\n" + picture + b"\r\n--x--\r\n"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "multipart/form-data; boundary=x", "X-Request-ID": "case-102-file"}
    assert httpx.post(f"{gate.url}/predict", content=body, headers=headers, timeout=60).status_code in {200, 400}
    gate.wait_for("request", request_id="case-102-file")
    assert not [line for line in lines_since(gate, after) if "forged" in line or "[31m" in line]


def test_103_an_unexpected_exception_is_logged_without_local_variables(own_gate: Service, own_token: str) -> None:
    after = len(own_gate.log)
    response = own_gate.predict(encode_blank(faults.SECRET_IN_LOCALS), own_token)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert not any(word in response.text for word in ("fault", "Traceback", ".py", faults.SECRET))
    logged = own_gate.wait_for("internal_error", after=after, request_id=response.headers["x-request-id"])
    (raised,) = logged["exception"]
    assert raised["exc_value"] == "RuntimeError: nobody expects this fault"
    (trace,) = raised["exc_notes"]  # of the decoder
    assert "in faulty_decode" in trace  # the one that holds the secret
    assert all("locals" not in frame for frame in raised["frames"])
    text = "".join(own_gate.raw_log)
    assert faults.SECRET not in text
    assert own_token not in text


def test_104_no_secret_is_in_a_log_wherever_it_was_sent(gate: Service) -> None:
    after = len(gate.raw_log)
    client = gate.create_client("leaks", "predict")
    name, secret = client["client_id"], client["client_secret"]
    token = gate.token(client)
    bearer = {"Authorization": f"Bearer {token}"}
    grant = {"grant_type": "client_credentials"}
    form = grant | {"client_id": name, "client_secret": secret}
    with httpx.Client(base_url=gate.url, timeout=30) as http:
        answers = [
            http.post("/oauth2/token", data=form),
            http.post("/oauth2/token", data=form | {"scope": "metrics"}),
            http.post("/oauth2/token", data=form | {"grant_type": secret}),
            http.post("/oauth2/token", json=form),
            http.post("/oauth2/token", params=form),
            http.post("/oauth2/token", data=grant, auth=(secret, name)),
            http.post("/oauth2/token", data=grant, auth=(name, secret + "x")),
            http.post("/oauth2/introspect", data={"token": token}, auth=(name, secret)),
            http.post("/oauth2/revoke", data={"token": token + "x"}, auth=(name, secret)),
            http.get("/models", params={"access_token": token}),
            http.get("/models", headers={"Authorization": f"Basic {token}"}),
            http.get("/models", headers={"Authorization": f"Bearer {token}x"}),
            http.get("/models", headers=bearer | {"Cookie": f"t={token}", "Referer": f"http://a/?t={token}", "User-Agent": secret}),
            http.post("/predict", headers=bearer, json={"image": secret}),
            http.post("/predict", headers=bearer, json={secret: token}),
            http.post("/predict", headers=bearer, files={"file": (secret, token.encode())}),
            http.post("/predict", headers=bearer | {"Content-Type": token}, content=b"x"),
        ]
        last = http.get("/livez", headers={"X-Request-ID": "case-104-end"})
    gate.wait_for("request", request_id="case-104-end")
    assert last.status_code == 200
    assert all(answer.status_code < 500 for answer in answers)
    basic = base64.b64encode(f"{name}:{secret}".encode()).decode()
    parts = [secret, basic, *token.split(".")]
    assert [line for line in gate.raw_log[after:] if any(part in line for part in parts)] == []
    assert [answer for answer in answers[1:] if secret in answer.text or token in answer.text] == []
    assert leaks(gate.raw_log, gate.folder / "keys") == []


def test_104_the_search_finds_what_it_looks_for(gate: Service, client: dict[str, Any], token: str) -> None:
    # `Service` makes this search in the log of every service of every test when it ends.
    key = next((gate.folder / "keys").glob("*.pem")).read_text().splitlines()[1]
    basic = base64.b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
    planted = ["harmless", f"x {client['client_secret']}", f"Basic {basic}", f"Bearer {token}", key, "-----BEGIN PRIVATE KEY-----"]
    found = leaks(planted, gate.folder / "keys")
    assert {line.split(":")[0] for line in found} == {"line 2", "line 3", "line 4", "line 5", "line 6"}


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/static/swagger-ui.css", "/static/swagger-ui-bundle.js"])
def test_108_with_the_docs_switched_off_they_are_404(own_gate: Service, own_token: str, path: str) -> None:
    for response in (own_gate.get(path), own_gate.get(path, own_token), own_gate.get(path, "no token")):
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_109_it_is_alive_but_not_ready_before_the_weights_are_loaded_and_while_draining(start_gate: Callable[..., Service]) -> None:
    gate = start_gate({"LENSGATE_HTTP__DRAIN_PAUSE_S": "10"}, ready=False)
    gate.wait_for("worker_serving")
    assert gate.get("/livez").status_code == 200
    early = gate.get("/readyz")
    assert (early.status_code, early.json()["code"]) == (503, "not_ready")
    assert int(early.headers["retry-after"]) >= 1
    assert not [line for line in gate.log if line["event"] == "engine_ready"]
    gate.wait_ready()
    gate.process.terminate()
    gate.wait_for("stopping")
    deadline_s = time.monotonic() + 8
    while gate.get("/readyz").status_code == 200:  # until the signal has gone on to the worker
        assert time.monotonic() < deadline_s
    assert gate.get("/livez").status_code == 200
    assert gate.get("/healthz").json()["status"] == "unavailable"
    assert gate.process.wait(60) == 0


@pytest.fixture
def database() -> Iterator[PostgreSql]:
    with postgresql() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def test_109_liveness_needs_no_redis_and_no_database(
    start_gate: Callable[..., Service], database: PostgreSql, redis: RedisServer, tmp_path: Path, photographs_by_name: dict[str, bytes]
) -> None:
    create_key(tmp_path / "keys")
    url = database.create_database()
    settings = {"LENSGATE_SECURITY__DATABASE_URL": url, "LENSGATE_SECURITY__KEYS_DIR": str(tmp_path / "keys")}
    upgrade = [sys.executable, "-m", "api.cli", "db", "upgrade"]
    subprocess.run(upgrade, env=Service.clean_environment(settings), cwd=tmp_path, check=True, timeout=100, capture_output=True)
    gate = start_gate(settings | {"LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url})
    token = gate.token(gate.create_client("lonely", "predict"))
    assert gate.predict(photographs_by_name["coffee.png"], token).status_code == 200
    database.stop()
    redis.stop()
    gate.wait_for("revocations_unavailable")
    for _ in range(5):
        assert gate.get("/livez").status_code == 200
        assert gate.get("/readyz").status_code == 200
    assert gate.predict(photographs_by_name["coffee.png"], token).json()["label"] == "espresso"
