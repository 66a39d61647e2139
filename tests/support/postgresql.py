"""A PostgreSQL server of the tests' own: in a temporary folder, reached through a socket in it, ended with the tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import asyncpg
import pytest

_START_TIMEOUT_S: Final = 30
_RETRY_S: Final = 0.05
_database_numbers = count()


class PostgreSql:
    """One server. It listens on no network: whoever may enter `socket_dir` is let in as `lensgate`."""

    def __init__(self, socket_dir: Path, programs: Path) -> None:
        self.socket_dir = socket_dir
        self._programs = programs
        # PostgreSQL refuses to run as root, and pytest's own temporary folders are closed to others.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        self._data = socket_dir / "data"
        self._server: subprocess.Popen[bytes] | None = None

    def init(self) -> None:
        """Make the cluster's files."""
        if self._user is not None:
            shutil.chown(self.socket_dir, self._user)
        subprocess.run(
            [self._programs / "initdb", "-D", self._data, "-U", "lensgate", "-A", "trust", "--no-sync", "-E", "UTF8"],
            user=self._user,
            env=self._environment,
            check=True,
            capture_output=True,
            cwd=self.socket_dir,
        )

    def start(self) -> None:
        """Start the server; whoever connects waits until it answers."""
        self._server = subprocess.Popen(
            [self._programs / "postgres", "-D", self._data, "-k", self.socket_dir, "-c", "listen_addresses=", "-c", "fsync=off"],
            user=self._user,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.socket_dir,
        )

    def stop(self) -> None:
        """End the server; a stopped one stays stopped."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)  # "fast": open connections do not hold it up
            self._server.wait(timeout=20)
            self._server = None

    def create_database(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        return asyncio.run(self._create_database())

    async def _create_database(self) -> str:
        name = f"lensgate_{next(_database_numbers)}"
        async with asyncio.timeout(_START_TIMEOUT_S):
            while True:
                try:
                    admin = await asyncpg.connect(host=str(self.socket_dir), user="lensgate", database="postgres")
                    break
                except (OSError, asyncpg.CannotConnectNowError):  # still starting; it offers no event to wait for
                    await asyncio.sleep(_RETRY_S)
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        return f"postgresql+asyncpg://lensgate@/{name}?host={self.socket_dir}"


@contextmanager
def postgresql() -> Iterator[PostgreSql]:
    """A running server; the test is skipped, with one line that says why, where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="lensgate-pg-"))
    try:
        server = PostgreSql(folder, programs)
        server.init()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """Where `initdb` and `postgres` are: on the PATH, or where Debian puts them."""
    on_path = shutil.which("initdb")
    candidates = ([Path(on_path).parent] if on_path else []) + sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "initdb").exists() and (folder / "postgres").exists()), None)
