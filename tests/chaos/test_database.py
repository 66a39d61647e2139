"""The registry locked by others, or gone, under a service that goes on. PostgreSQL that is stopped is in tests/e2e/test_postgresql.py."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from security.keys import create_key
from support.oauth import GRANT, operate, post, wait_for_status
from support.pictures import encode, photo
from support.postgresql import PostgreSql, postgresql
from support.scrape import Scrape
from support.service import PACKAGED, Service

SETTINGS: Final = {"LENSGATE_SECURITY__POLL_S": "0.2", "LENSGATE_SECURITY__ISSUER": "http://gate.example"}


@pytest.fixture(scope="module")
def picture() -> bytes:
    return encode(photo(), "JPEG")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("sqlite"), PACKAGED | SETTINGS) as one:
        one.wait_ready()
        yield one


def failing_command(service: Service, *arguments: str) -> str:
    """What a command of the operator's says as it fails."""
    run = subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        cwd=service.folder,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1, "")
    return run.stderr


def assert_serves(service: Service, picture: bytes, token: str) -> None:
    assert service.predict(picture, token, "image/jpeg").json()["label"] == "espresso"
    assert service.get("/readyz").status_code == 200


def assert_no_token(service: Service, client: dict[str, Any]) -> None:
    refused = post(service, "/oauth2/token", GRANT, client)
    assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
    assert int(refused.headers["retry-after"]) >= 1


def wait_until(what: Callable[[], bool], within_s: float = 30) -> None:
    deadline_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_sqlite_locked_by_another_writer_costs_only_what_must_write(service: Service, picture: bytes) -> None:
    client = service.create_client("locked")
    spare = service.token(client)
    with closing(sqlite3.connect(service.folder / "lensgate.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        token = service.token(client)
        assert_serves(service, picture, token)
        refused = post(service, "/oauth2/revoke", {"token": spare}, client)
        assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
        assert failing_command(service, "clients", "disable", "locked") == (
            f"lensgate: error: The client registry is not available: {service.folder}/lensgate.db (LENSGATE_SECURITY__DATABASE_URL): "
            "database is locked\n"
        )
        other.execute("ROLLBACK")
    operate(service, "clients", "disable", "locked")
    wait_for_status(service, token, 401)


def test_a_registry_that_is_moved_away_costs_new_tokens_and_the_one_put_in_its_place_counts(service: Service, picture: bytes) -> None:
    client = service.create_client("moved")
    token = service.token(client)
    wait_for_status(service, token, 200)
    file, backup = service.folder / "lensgate.db", service.folder / "backup.db"
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as copy:
        source.backup(copy)
    scraper = service.token(service.create_client("scraper", "metrics"))

    def metric(name: str, **labels: str) -> float:
        return Scrape(service.get("/metrics", scraper))(name, **labels)

    assert metric("lensgate_registry_lost") == 0
    not_ready, refused = (metric("lensgate_refusals_total", reason=reason) for reason in ("not_ready", "registry_lost"))
    after = len(service.log)
    for path in service.folder.glob("lensgate.db*"):
        path.unlink()
    service.wait_for("revocations_unavailable", after=after, timeout_s=10)
    assert metric("lensgate_registry_lost") == 1
    assert_serves(service, picture, token)
    assert_no_token(service, client)
    wait_until(lambda: metric("lensgate_refusals_total", reason="registry_lost") == refused + 1)
    assert metric("lensgate_refusals_total", reason="not_ready") == not_ready, "that pages for a service that classifies nothing"
    assert not file.exists(), "an empty registry would shut every client out"
    backup.rename(file)
    service.wait_for("revocations_available_again", after=after, timeout_s=10)
    assert metric("lensgate_registry_lost") == 0
    # It is heard in both directions: what the service writes stands in it, and what the operator writes in it reaches the service.
    second = service.token(client)
    assert post(service, "/oauth2/revoke", {"token": second}, client).status_code == 200
    wait_for_status(service, second, 401)
    operate(service, "clients", "disable", "moved")
    wait_for_status(service, token, 401)
    # The same in one step, as restoring a backup with mv does it.
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as copy:
        source.backup(copy)
        copy.execute("UPDATE clients SET disabled_at = NULL")
        copy.commit()
    for path in service.folder.glob("lensgate.db-*"):
        path.unlink()
    shutil.move(backup, file)
    wait_for_status(service, token, 200)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    with postgresql() as one:
        yield one


@pytest.fixture(scope="module")
def replica(server: PostgreSql, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("replica")
    create_key(folder / "keys")
    url = {"LENSGATE_SECURITY__DATABASE_URL": server.create_database()}
    one = Service(folder, PACKAGED | SETTINGS | url)
    operate(one, "db", "upgrade")
    with one:
        one.wait_ready()
        yield one


def test_a_locked_table_of_postgresql_costs_new_tokens_and_is_waited_for_no_longer_than_5_s(
    replica: Service, server: PostgreSql, picture: bytes
) -> None:
    client = json.loads(operate(replica, "clients", "create", "table", "--scope", "predict", "--json"))
    token = replica.token(client)
    wait_for_status(replica, token, 200)
    name = replica.environment["LENSGATE_SECURITY__DATABASE_URL"].partition("@/")[2].partition("?")[0]

    async def lock() -> None:
        other = await asyncpg.connect(host=str(server.socket_dir), user="lensgate", database=name)
        await other.execute("BEGIN")
        await other.execute("LOCK TABLE clients IN ACCESS EXCLUSIVE MODE")
        after = len(replica.log)
        try:
            await asyncio.to_thread(assert_no_token, replica, client)
            replica.wait_for("revocations_unavailable", after=after, timeout_s=15)
            await asyncio.to_thread(assert_serves, replica, picture, token)
            said = await asyncio.to_thread(failing_command, replica, "clients", "list")
            assert said.startswith("lensgate: error: The client registry is not available: ")
        finally:
            await other.close()
        replica.wait_for("revocations_available_again", after=after, timeout_s=15)

    asyncio.run(lock())
    wait_until(lambda: post(replica, "/oauth2/token", GRANT, client).status_code == 200)
    operate(replica, "clients", "disable", "table")
    wait_for_status(replica, token, 401)
