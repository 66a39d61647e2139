"""Real parts for the tests of `security`: keys on disk, and a registry in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
from hypothesis import settings

from security.clients import ClientRegistry
from security.database import Database
from security.key_ring import KeyStore
from security.keys import create_key
from security.limit_windows import SharedWindows
from support.limit_memory import limit_memory
from support.postgresql import PostgreSql, postgresql

NOW: Final = 1_800_000_000.0

# A machine that does other work too would fail a deadline now and then, which says nothing about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def keys_dir(tmp_path: Path) -> Path:
    """A folder with one ES256 key, made long before `NOW`."""
    folder = tmp_path / "keys"
    create_key(folder, created_at=NOW - 86_400)
    return folder


@pytest.fixture
def key_store(keys_dir: Path) -> KeyStore:
    return KeyStore(keys_dir, poll_s=0.1)


@pytest.fixture(scope="session")
def shared_key_store(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    """One key for the property tests, which run one test body many times."""
    folder = tmp_path_factory.mktemp("shared") / "keys"
    create_key(folder, created_at=NOW - 86_400)
    return KeyStore(folder, poll_s=0.1)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSql]:
    """A PostgreSQL server of our own."""
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_socket_dir(postgresql_server: PostgreSql) -> Path:
    """The folder of the server's socket."""
    return postgresql_server.socket_dir


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once for each kind that is supported."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/lensgate.db"
    server: PostgreSql = request.getfixturevalue("postgresql_server")
    return server.create_database()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with this version's tables."""
    database = Database(database_url)
    await database.upgrade()
    yield database
    await database.aclose()


@pytest.fixture
def limits_file() -> Iterator[int]:
    """Memory for limits in which nothing is counted yet, as a descriptor."""
    with limit_memory() as file:
        yield file


@pytest.fixture
def windows(limits_file: int) -> SharedWindows:
    """Those of one worker."""
    return SharedWindows(limits_file)


@pytest.fixture
def clock() -> SimpleNamespace:
    """What time the registry thinks it is: `clock.now`."""
    return SimpleNamespace(now=NOW)


@pytest.fixture
def registry(database: Database, clock: SimpleNamespace) -> ClientRegistry:
    return ClientRegistry(database, clock=lambda: float(clock.now))
