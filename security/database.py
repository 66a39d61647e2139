"""The database of clients and revocations: SQLite on one machine, PostgreSQL where there are replicas."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from security.errors import RegistryError, RegistryMissing, RegistryUnavailable

SQLITE: Final = "sqlite+aiosqlite"
POSTGRESQL: Final = "postgresql+asyncpg"

_POOL_SIZE: Final = 5
_WAIT_S: Final = 5
"""For a connection, a lock or an answer: longer than that, the registry counts as unavailable."""
_PRIMARY_CODE: Final = 0xFF
"""The part of SQLite's result codes that says what kind of failure it is (sqlite.org/rescode.html)."""
_UPGRADE_LOCK: Final = 0x4C656E73
"""Any number that nobody else uses as a PostgreSQL advisory lock: `Lens` in ASCII."""
_WRITES: Final = "lensgate_writes"
_FULL_DISK_BYTES: Final = 1 << 20
"""With less than that free, what SQLite calls a disk I/O error is a full disk: each of its files grows by pages and by blocks of 32 KiB."""


class Database:
    """A pool of connections. Opens none before it is asked.

    Args:
        url: a SQLAlchemy async URL, `sqlite+aiosqlite:///file` or `postgresql+asyncpg://...`. It may hold a password: no message shows it.

    Raises:
        RegistryError: the URL cannot be used; the message says why.
    """

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self._password = str(parsed.password or "")
        self._sqlite_file = Path(parsed.database or "") if parsed.drivername == SQLITE else None
        self._sqlite_inode: tuple[int, int] | None = None
        self.location = _locate(parsed)
        """Which database it is: the file's absolute path, or PostgreSQL's host, port and name. Without user and password."""
        self._engine = _create_engine(parsed)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    @asynccontextmanager
    async def session(self, *, writes: bool = False) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end, rolled back when the block raises.

        Args:
            writes: whether the block writes. SQLite then takes its write lock at once, so that two writers wait instead of failing.

        Raises:
            RegistryUnavailable: the database does not answer or refuses.
        """
        await self._follow_file()
        async with self._sessions() as session:
            try:
                _ = await session.connection(execution_options={_WRITES: writes})
            except Exception as error:  # a driver's own errors while connecting reach us as they are
                raise RegistryUnavailable from error
            try:
                yield session
                await session.commit()
            except (SQLAlchemyError, OSError) as error:
                raise RegistryUnavailable from error

    async def _follow_file(self) -> None:
        """Let go of a SQLite file that another has taken the place of: an open file stays the one that it was, whatever its name now means.

        Without this a service would go on with a deleted registry, and never hear of a client that is disabled in the one put back.
        """
        if self._sqlite_file is None:
            return
        try:
            found = self._sqlite_file.stat()
        except OSError as error:  # connecting would make an empty one
            raise RegistryUnavailable from error
        inode = (found.st_dev, found.st_ino)
        if self._sqlite_inode not in {None, inode}:
            await self._engine.dispose()
        self._sqlite_inode = inode

    def check_file(self) -> None:
        """Make sure that SQLite's file is there: connecting to a missing one would make an empty registry.

        Raises:
            RegistryMissing: it is not.
        """
        if self._sqlite_file is not None and not self._sqlite_file.exists():
            raise RegistryMissing(
                f"there is no client registry at {self.location} (LENSGATE_SECURITY__DATABASE_URL; is this the service's folder?)"
            )

    async def check_schema(self) -> None:
        """Make sure that the tables are those this version knows.

        Raises:
            RegistryError: they are not, or there is no file; the message says what to do.
            RegistryUnavailable: the database does not answer; the message says why.
        """
        from security.schema import check_version

        self.check_file()
        async with self._operators_session() as session:
            connection = await session.connection()
            await connection.run_sync(check_version)

    async def upgrade(self) -> None:
        """Bring the tables to this version, making them where there are none. Safe to call from several machines at once.

        Raises:
            RegistryError: the tables were made by a newer version.
            RegistryUnavailable: the database does not answer or refuses; the message says why.
        """
        from security.schema import migrate

        if self._sqlite_file is not None:
            try:
                self._sqlite_file.touch(mode=0o600)
            except OSError as error:
                raise RegistryError(
                    f"The client registry {self.location} (LENSGATE_SECURITY__DATABASE_URL) cannot be written: {error.strerror}."
                ) from error
        async with self._operators_session(writes=True) as session:
            if self._sqlite_file is None:
                await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            connection = await session.connection()
            await connection.run_sync(migrate)

    @asynccontextmanager
    async def _operators_session(self, *, writes: bool = False) -> AsyncIterator[AsyncSession]:
        """A session of the command line or the start, whose failure no client sees: it says what the driver says."""
        try:
            async with self.session(writes=writes) as session:
                yield session
        except RegistryUnavailable as error:
            raise self.explained(error) from error

    def explained(self, error: RegistryUnavailable) -> RegistryUnavailable:
        """The same with the driver's own reason, for an operator. No client may see it: its message has none."""
        if error.__cause__ is None or isinstance(error.__cause__, RegistryUnavailable):
            return error
        said = getattr(error.__cause__, "orig", error.__cause__)
        reason = str(said).partition("\n")[0].rpartition(">: ")[2] or type(said).__name__
        if self._password:
            reason = reason.replace(self._password, "***")
        if self._sqlite_file is not None and "disk" in reason and shutil.disk_usage(self._sqlite_file.parent).free < _FULL_DISK_BYTES:
            reason = "its disk is full"
        return RegistryUnavailable(f"The client registry is not available: {self.location} (LENSGATE_SECURITY__DATABASE_URL): {reason}")

    async def aclose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise RegistryError("The database URL is not one: it begins with sqlite+aiosqlite:/// or postgresql+asyncpg://.") from None
    if parsed.drivername == POSTGRESQL:
        return parsed
    if parsed.drivername != SQLITE:
        raise RegistryError("The database URL must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://.")
    if not parsed.database or parsed.database.startswith((":", "file:")):
        raise RegistryError("The SQLite database must be a file: every process opens it for itself.")
    folder = Path(parsed.database).parent
    if not folder.is_dir():
        raise RegistryError(
            f"The folder {str(folder.absolute())!r} of the SQLite database (LENSGATE_SECURITY__DATABASE_URL) does not exist: make it first."
        )
    return parsed


def _locate(url: URL) -> str:
    if url.drivername == SQLITE:
        return str(Path(url.database or "").absolute())
    # What the driver takes where the URL names none. A host may also stand in the query.
    hosts = url.query.get("host", ())
    host = url.host or (hosts if isinstance(hosts, str) else ",".join(hosts)) or "localhost"
    return f"{host}:{url.port or 5432}/{url.database or ''}"


def _create_engine(url: URL) -> AsyncEngine:
    # Parameters are hidden, because errors are logged and parameters hold the hashes of secrets.
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": _POOL_SIZE, "max_overflow": 0, "pool_timeout": _WAIT_S}
    if url.drivername == SQLITE:
        engine = create_async_engine(url, **options)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_async_engine(url, pool_pre_ping=True, connect_args={"timeout": _WAIT_S, "command_timeout": _WAIT_S}, **options)
    except ModuleNotFoundError:
        raise RegistryError("PostgreSQL needs one more package: asyncpg, the extra `postgres`. In a checkout: make install.") from None


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - SQLAlchemy's adapter of the driver's connection has no public type
    """WAL lets readers go on while one writes; SQLite checks foreign keys only when asked."""
    connection.isolation_level = None  # transactions are begun below, not by the driver, which would begin them too late
    cursor = connection.cursor()
    for pragma in (f"busy_timeout = {_WAIT_S * 1000}", "synchronous = NORMAL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    until_s = time.monotonic() + _WAIT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # The first time it changes the file, and does not wait for another process that does the same, as all else here would.
            if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                raise
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")
