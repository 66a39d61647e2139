from __future__ import annotations

import asyncio
import io
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from security.database import Database
from security.errors import RegistryError, RegistryUnavailable
from security.tables import Base

SECRET = "hunter2"


def alembic_config(**attributes: object) -> Config:
    config = Config(output_buffer=io.StringIO())
    config.set_main_option("script_location", "security:migrations")
    config.set_main_option("sqlalchemy.url", "postgresql+asyncpg://")
    config.attributes.update(attributes)
    return config


async def upgrade(url: str) -> None:
    database = Database(url)
    try:
        await database.upgrade()
    finally:
        await database.aclose()


async def test_the_migrations_make_exactly_the_tables_that_the_code_knows(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    async with database.session() as session:
        connection = await session.connection()
        assert await connection.run_sync(differences) == []


async def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    await upgrade(database_url)
    await upgrade(database_url)
    database = Database(database_url)
    await database.check_schema()
    await database.aclose()


async def test_several_that_upgrade_at_once_all_succeed(database_url: str) -> None:
    await asyncio.gather(*(upgrade(database_url) for _ in range(4)))


async def test_many_new_sqlite_files_that_several_make_at_once_are_all_made(tmp_path: Path) -> None:
    for number in range(30):  # changing a new file to WAL waits for nobody by itself, which is met now and then
        await asyncio.gather(*(upgrade(f"sqlite+aiosqlite:///{tmp_path}/{number}.db") for _ in range(4)))


async def test_a_migration_that_is_undone_leaves_an_empty_database(database: Database) -> None:
    async with database.session(writes=True) as session:
        connection = await session.connection()
        await connection.run_sync(lambda sync: command.downgrade(alembic_config(connection=sync), "base"))
    with pytest.raises(RegistryError, match="lensgate db upgrade"):
        await database.check_schema()
    await database.upgrade()
    await database.check_schema()


async def test_an_empty_database_is_reported_with_what_to_do(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "lensgate.db").touch()
    database = Database(database_url)
    with pytest.raises(RegistryError, match="lensgate db upgrade"):
        await database.check_schema()
    await database.aclose()


async def test_a_missing_sqlite_file_is_reported_and_not_made(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/lensgate.db")
    with pytest.raises(RegistryError, match=f"^there is no client registry at {tmp_path}/lensgate.db "):
        await database.check_schema()
    assert not (tmp_path / "lensgate.db").exists()


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("sqlite+aiosqlite:////srv/lensgate.db", "/srv/lensgate.db"),
        ("postgresql+asyncpg://gate:hunter2@db.example.com:6432/registry", "db.example.com:6432/registry"),
        ("postgresql+asyncpg://gate:hunter2@/registry?host=/run/postgresql", "/run/postgresql:5432/registry"),
    ],
)
def test_a_database_is_named_without_its_secrets(url: str, location: str) -> None:
    assert Database(url).location == location


async def test_the_tables_of_a_newer_version_are_refused_and_left_alone(database: Database) -> None:
    async with database.session(writes=True) as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RegistryError, match="newer version"):
        await database.check_schema()
    with pytest.raises(RegistryError, match="newer version"):
        await database.upgrade()


async def test_the_sqlite_file_is_for_its_owner_only_and_knows_wal_and_foreign_keys(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/lensgate.db")
    await database.upgrade()
    async with database.session() as session:
        pragmas = [await session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys", "busy_timeout")]
    assert pragmas == ["wal", 1, 5000]
    assert stat.S_IMODE((tmp_path / "lensgate.db").stat().st_mode) == 0o600
    await database.aclose()


async def test_two_writers_wait_for_each_other(database: Database) -> None:
    async def increment() -> None:
        async with database.session(writes=True) as session:
            # Read first, write later: without the early lock SQLite fails one of them.
            count = await session.scalar(text("SELECT coalesce(max(id), 0) FROM client_secrets"))
            await session.execute(text(f"UPDATE clients SET created_at = {count} + created_at"))

    await asyncio.gather(*(increment() for _ in range(20)))


async def test_a_block_that_raises_is_rolled_back(database: Database) -> None:
    async def interrupted() -> None:
        async with database.session(writes=True) as session:
            await session.execute(text("INSERT INTO deleted_clients (client_id, expires_at) VALUES ('a', 1)"))
            raise LookupError

    with pytest.raises(LookupError):
        await interrupted()
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM deleted_clients")) == 0


async def test_an_error_of_the_database_is_registry_unavailable_and_shows_no_parameter(database: Database) -> None:
    async def broken() -> None:
        async with database.session(writes=True) as session:
            await session.execute(text("INSERT INTO clients (client_id) VALUES (:secret)"), {"secret": SECRET})

    with pytest.raises(RegistryUnavailable, match=r"^The client registry is not available\.$") as refused:
        await broken()
    assert isinstance(refused.value.__cause__, IntegrityError)
    assert "[SQL parameters hidden" in str(refused.value.__cause__)


async def test_a_server_that_is_not_there_is_registry_unavailable_and_shows_no_password(tmp_path: Path) -> None:
    database = Database(f"postgresql+asyncpg://lensgate:{SECRET}@/lensgate?host={tmp_path}")
    with pytest.raises(RegistryUnavailable) as refused:
        await database.check_schema()
    assert SECRET not in str(refused.value) + repr(refused.value.__cause__)
    assert f"{tmp_path}:5432/lensgate (LENSGATE_SECURITY__DATABASE_URL)" in str(refused.value)
    await database.aclose()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("lensgate@/nowhere?host={socket_dir}", r'database "nowhere" does not exist$'),
        ("nobody@/lensgate?host={socket_dir}", r'role "nobody" does not exist$'),
        ("lensgate@/lensgate?host={socket_dir}/gone", r"No such file or directory$"),
        ("lensgate@/lensgate?sslmode=require", r"unexpected keyword argument 'sslmode'$"),
        ("lensgate:sslmode@/lensgate?sslmode=require", r"unexpected keyword argument '\*\*\*'$"),
    ],
)
async def test_an_operator_is_told_why_the_database_cannot_be_used(postgres_socket_dir: Path, url: str, reason: str) -> None:
    for act in (Database.check_schema, Database.upgrade):
        database = Database("postgresql+asyncpg://" + url.format(socket_dir=postgres_socket_dir))
        with pytest.raises(RegistryUnavailable, match=f"^The client registry is not available: .*{reason}"):
            await act(database)
        await database.aclose()


async def test_a_request_is_not_told_why(postgres_socket_dir: Path) -> None:
    database = Database(f"postgresql+asyncpg://lensgate@/nowhere?host={postgres_socket_dir}")
    with pytest.raises(RegistryUnavailable, match=r"^The client registry is not available\.$"):
        async with database.session():
            pass
    await database.aclose()


async def test_a_file_that_is_no_database_is_registry_unavailable(tmp_path: Path) -> None:
    (tmp_path / "lensgate.db").write_text("this is no database at all, though it is long enough to be mistaken for one" * 20)
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/lensgate.db")
    said = f"The client registry is not available: {tmp_path}/lensgate.db (LENSGATE_SECURITY__DATABASE_URL): file is not a database"
    with pytest.raises(RegistryUnavailable, match=f"^{re.escape(said)}$"):
        await database.check_schema()
    await database.aclose()


async def test_a_file_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "lensgate.db").symlink_to(tmp_path / "missing" / "lensgate.db")
    with pytest.raises(RegistryError, match=f"^The client registry {tmp_path}/lensgate.db .* cannot be written: No such file"):
        await upgrade(f"sqlite+aiosqlite:///{tmp_path}/lensgate.db")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"{SECRET}", "not one"),
        (f"postgresql+asyncpg://user:{SECRET}@host:port/name", "not one"),
        (f"postgresql://user:{SECRET}@host/name", "must begin with"),
        (f"mysql+aiomysql://user:{SECRET}@host/name", "must begin with"),
        ("sqlite:///lensgate.db", "must begin with"),
        ("sqlite+aiosqlite://", "must be a file"),
        ("sqlite+aiosqlite:///:memory:", "must be a file"),
        ("sqlite+aiosqlite:///file:lensgate?mode=memory&uri=true", "must be a file"),
        ("sqlite+aiosqlite:////nowhere/at/all/lensgate.db", "'/nowhere/at/all' .* does not exist"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str, reason: str) -> None:
    with pytest.raises(RegistryError, match=reason) as refused:
        Database(url)
    assert SECRET not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(RegistryError, match=r"the extra `postgres`\. In a checkout: make install"):
        Database("postgresql+asyncpg://host/name")


def test_the_migrations_can_be_written_out_as_sql() -> None:
    config = alembic_config()
    command.upgrade(config, "head", sql=True)
    assert isinstance(config.output_buffer, io.StringIO)
    assert "CONSTRAINT fk_client_secrets_client_id_clients FOREIGN KEY(client_id)" in config.output_buffer.getvalue()


def test_the_alembic_command_does_not_run_them_by_itself() -> None:
    with pytest.raises(CommandError, match="lensgate db upgrade"):
        command.upgrade(alembic_config(), "head")


def test_a_new_migration_begins_from_the_template(tmp_path: Path) -> None:
    (tmp_path / "alembic.ini").write_text(
        f"[alembic]\nscript_location = security:migrations\nversion_locations = {tmp_path} security:migrations/versions\n"
        "path_separator = space\n"
    )
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "alembic",
            "-c",
            tmp_path / "alembic.ini",
            "revision",
            "-m",
            "Next",
            "--head",
            "0001",
            "--version-path",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (revision,) = tmp_path.glob("*_next.py")
    source = revision.read_text()
    compile(source, revision, "exec")
    assert "down_revision = '0001'" in source
