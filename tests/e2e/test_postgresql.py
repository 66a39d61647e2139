"""Replicas: two `lensgate serve` on one PostgreSQL with one keys folder see each other's changes within the staleness."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from security.keys import create_key
from support.postgresql import PostgreSql, postgresql
from support.service import PACKAGED, Service

POLL_S = 1.0
SLACK_S = 15.0
"""For a machine that is busy with other tests; the staleness itself is `POLL_S`."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    """A PostgreSQL server of this module."""
    with postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def replica_settings(server: PostgreSql, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What both replicas are given: one empty database, one folder with a key, and one name, because clients see one service."""
    keys = tmp_path_factory.mktemp("shared") / "keys"
    create_key(keys)
    return PACKAGED | {
        "LENSGATE_SECURITY__DATABASE_URL": server.create_database(),
        "LENSGATE_SECURITY__KEYS_DIR": str(keys),
        "LENSGATE_SECURITY__ISSUER": "http://gate.internal",
        "LENSGATE_SECURITY__POLL_S": str(POLL_S),
    }


def lensgate(settings: Mapping[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line, as an operator does on any machine that reaches the database."""
    return subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        cwd=folder,
        env=Service.clean_environment(dict(settings)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


Operate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def replicas(replica_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """Two of them, after `lensgate db upgrade`."""
    assert lensgate(replica_settings, tmp_path_factory.mktemp("upgrade"), "db", "upgrade").returncode == 0
    first = Service(tmp_path_factory.mktemp("first"), replica_settings)
    second = Service(tmp_path_factory.mktemp("second"), replica_settings)
    with first, second:
        first.wait_ready()
        second.wait_ready()
        yield first, second


@pytest.fixture
def operate(replica_settings: dict[str, str], tmp_path: Path) -> Operate:
    """The command line, with the replicas' settings; it must succeed."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = lensgate(replica_settings, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def app(operate: Operate, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A client of the test's own, made with the command line."""
    made: dict[str, Any] = json.loads(operate("clients", "create", request.node.name[:64], "--scope", "predict", "--json").stdout)
    return made


def token_answer(service: Service, client: Mapping[str, Any]) -> httpx.Response:
    credentials = (client["client_id"], client["client_secret"])
    return httpx.post(f"{service.url}/oauth2/token", data={"grant_type": "client_credentials"}, auth=credentials, timeout=30)


def wait_for_status(service: Service, token: str, status: int) -> None:
    """Ask until the answer is that one."""
    deadline_s = time.monotonic() + POLL_S + SLACK_S
    while (now := service.get("/models", token).status_code) != status:
        assert time.monotonic() < deadline_s, f"still {now}"
        time.sleep(0.05)


def test_serve_on_tables_that_are_not_there_says_what_to_do_and_starts_nothing(
    server: PostgreSql, replica_settings: dict[str, str], tmp_path: Path
) -> None:
    settings = replica_settings | {"LENSGATE_SECURITY__DATABASE_URL": server.create_database(), "LENSGATE_HTTP__PORT": "0"}
    run = lensgate(settings, tmp_path, "serve")
    assert run.returncode != 0
    assert "lensgate db upgrade" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert "child_started" not in run.stdout
    # And that is what helps.
    assert lensgate(settings, tmp_path, "clients", "list").returncode != 0
    assert lensgate(settings, tmp_path, "db", "upgrade").returncode == 0
    assert lensgate(settings, tmp_path, "clients", "list").returncode == 0


def test_a_replica_never_makes_a_key_of_its_own(replica_settings: dict[str, str], tmp_path: Path) -> None:
    settings = replica_settings | {"LENSGATE_SECURITY__KEYS_DIR": str(tmp_path / "empty"), "LENSGATE_HTTP__PORT": "0"}
    run = lensgate(settings, tmp_path, "serve")
    assert run.returncode != 0
    assert "key" in run.stderr
    assert not list(tmp_path.rglob("*.pem"))


def test_a_client_made_beside_one_gets_tokens_at_both_and_each_is_taken_by_the_other(
    replicas: tuple[Service, Service], app: dict[str, Any], photographs_by_name: Mapping[str, bytes]
) -> None:
    first, second = replicas
    for issuing, serving in ((first, second), (second, first)):
        answer = serving.predict(photographs_by_name["coffee.png"], issuing.token(app))
        assert answer.json()["label"] == "espresso"


def test_a_disabled_client_is_refused_at_both_and_an_enabled_one_let_in_again(
    replicas: tuple[Service, Service], app: dict[str, Any], operate: Operate
) -> None:
    tokens = [service.token(app) for service in replicas]
    operate("clients", "disable", app["client_id"])
    for service in replicas:
        assert token_answer(service, app).json()["error"] == "invalid_client"
        for token in tokens:
            wait_for_status(service, token, 401)
    operate("clients", "enable", app["client_id"])
    for service in replicas:
        wait_for_status(service, service.token(app), 200)


def test_a_token_revoked_with_the_command_line_is_refused_at_both(
    replicas: tuple[Service, Service], app: dict[str, Any], operate: Operate
) -> None:
    first, second = replicas
    after = len(first.log)
    answer = token_answer(first, app)
    lost, kept = str(answer.json()["access_token"]), first.token(app)
    jti = first.wait_for("request", after=after, request_id=answer.headers["x-request-id"])["token_id"]
    wait_for_status(second, lost, 200)
    operate("tokens", "revoke", jti)
    for service in (first, second):
        wait_for_status(service, lost, 401)
        assert service.get("/models", kept).status_code == 200


def test_a_token_revoked_at_one_replica_is_refused_at_the_other(replicas: tuple[Service, Service], app: dict[str, Any]) -> None:
    first, second = replicas
    token = first.token(app)
    credentials = (app["client_id"], app["client_secret"])
    assert httpx.post(f"{first.url}/oauth2/revoke", data={"token": token}, auth=credentials, timeout=30).status_code == 200
    for service in (first, second):
        wait_for_status(service, token, 401)


def test_a_key_made_by_rotation_is_published_by_both(
    replicas: tuple[Service, Service], replica_settings: dict[str, str], operate: Operate
) -> None:
    def published(service: Service) -> set[str]:
        return {key["kid"] for key in service.get("/.well-known/jwks.json").json()["keys"]}

    before = published(replicas[0])
    operate("keys", "rotate")
    for service in replicas:
        deadline_s = time.monotonic() + POLL_S + SLACK_S
        while len(published(service)) == len(before):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    assert published(replicas[0]) == published(replicas[1]) > before


def test_without_the_database_tokens_are_still_taken_and_only_new_ones_are_refused(
    replicas: tuple[Service, Service], server: PostgreSql, app: dict[str, Any], photographs_by_name: Mapping[str, bytes]
) -> None:
    first, _ = replicas
    token = first.token(app)
    wait_for_status(first, token, 200)
    server.stop()
    try:
        refused = token_answer(first, app)
        assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert first.predict(photographs_by_name["coffee.png"], token).status_code == 200
        assert first.get("/livez").status_code == first.get("/readyz").status_code == 200
    finally:
        server.start()
    deadline_s = time.monotonic() + 30
    while token_answer(first, app).status_code != 200:
        assert time.monotonic() < deadline_s, "it does not find the database again"
        time.sleep(0.2)


def test_a_worker_that_starts_without_the_database_calls_no_token_bad_and_serves_once_it_answers(
    replicas: tuple[Service, Service], server: PostgreSql, app: dict[str, Any]
) -> None:
    """It cannot know what was revoked: 503, and come back. A 401 would send every client for a new token, which it cannot have either."""
    first, _ = replicas
    token = first.token(app)
    server.stop()
    try:
        after = len(first.log)
        (worker,) = first.children("api.worker_process")
        worker.kill()
        first.wait_for("worker_serving", after=after)
        refused = first.get("/models", token)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        assert first.get("/models", token + "x").status_code == 401
        assert first.get("/livez").status_code == 200
        probe = first.get("/readyz")
        assert (probe.status_code, probe.json()["detail"]) == (503, "The client registry does not answer.")
    finally:
        server.start()
    wait_for_status(first, token, 200)
