"""Real parts for the tests of `security`: keys on disk, and a registry in SQLite and in PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import asyncpg
import pytest
from hypothesis import settings

from security.clients import ClientRegistry
from security.database import Database
from security.key_ring import KeyStore
from security.keys import create_key

NOW: Final = 1_800_000_000.0
_database_numbers = count()

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
def postgres_socket_dir() -> Iterator[Path]:
    """A PostgreSQL server of our own, reached through a socket in this folder; it lives in a temporary folder and dies with the tests."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not installed: apt-get install postgresql")
    # PostgreSQL refuses to run as root, and pytest's own temporary folders are closed to others.
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="lensgate-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    try:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "lensgate", "-A", "trust", "--no-sync", "-E", "UTF8"],
            user=user,
            env=environment,
            check=True,
            capture_output=True,
            cwd=folder,
        )
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            user=user,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        try:
            yield folder
        finally:
            server.send_signal(signal.SIGINT)  # "fast": open connections do not hold it up
            server.wait(timeout=20)
    finally:
        shutil.rmtree(folder)


def _postgres_programs() -> Path | None:
    """Where `initdb` and `postgres` are: on the PATH, or where Debian puts them."""
    on_path = shutil.which("initdb")
    candidates = ([Path(on_path).parent] if on_path else []) + sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


async def _create_postgres_database(socket_dir: Path) -> str:
    name = f"lensgate_{next(_database_numbers)}"
    async with asyncio.timeout(30):
        while True:
            try:
                admin = await asyncpg.connect(host=str(socket_dir), user="lensgate", database="postgres")
                break
            except (OSError, asyncpg.CannotConnectNowError):  # still starting; it offers no event to wait for
                await asyncio.sleep(0.05)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    return f"postgresql+asyncpg://lensgate@/{name}?host={socket_dir}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once for each kind that is supported."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/lensgate.db"
    socket_dir: Path = request.getfixturevalue("postgres_socket_dir")
    return asyncio.run(_create_postgres_database(socket_dir))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with this version's tables."""
    database = Database(database_url)
    await database.upgrade()
    yield database
    await database.aclose()


@pytest.fixture
def clock() -> SimpleNamespace:
    """What time the registry thinks it is: `clock.now`."""
    return SimpleNamespace(now=NOW)


@pytest.fixture
def registry(database: Database, clock: SimpleNamespace) -> ClientRegistry:
    return ClientRegistry(database, clock=lambda: float(clock.now))
