"""The service under test: `lensgate serve` with two workers, whose log is read line by line, or not at all while a fault wants it so."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psutil

from security.clients import ClientRegistry
from security.database import Database
from soak.credentials import Credentials
from soak.wire import Endpoint
from support.decoders import DECODER
from support.held import API, ENGINE
from support.redis_server import RedisServer
from support.service import PACKAGED, Service

TOKEN_TTL_S: Final = 60
"""Short, so that every client renews its token many times."""
HEADER_TIMEOUT_S: Final = 3
BODY_TIMEOUT_S: Final = 5
TIERS: Final = {
    "standard": {"images": "6000/minute", "in_flight": 32},
    "tiny": {"images": "60/minute", "in_flight": 8},
}


class Gate(Service):
    """As `Service`, but what it keeps of the log does not grow with the requests."""

    def __init__(self, folder: Path, redis: RedisServer, *, compile_model: str, extra: Mapping[str, str] = MappingProxyType({})) -> None:
        self.redis = redis
        self.reading = threading.Event()
        """Cleared: nobody reads the log."""
        self.reading.set()
        self.probed: dict[int, tuple[float, bool]] = {}
        """By the pid of a worker: when it last answered /readyz, by `time.monotonic`, and whether it was ready."""
        settings = {
            "LENSGATE_HTTP__WORKERS": "2",
            "LENSGATE_HTTP__HEADER_TIMEOUT_S": str(HEADER_TIMEOUT_S),
            "LENSGATE_HTTP__BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
            "LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url,
            "LENSGATE_SECURITY__TOKEN_TTL_S": str(TOKEN_TTL_S),
            "LENSGATE_SECURITY__TIERS": json.dumps(TIERS),
            "LENSGATE_INFERENCE__COMPILE": compile_model,
            "LENSGATE_INFERENCE__STUCK_AFTER_S": "20",  # the default, which `Service` changes for tests that hold an engine still
        }
        super().__init__(folder, {**PACKAGED, **settings, **extra})

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    async def register(self, *names: str, tier: str = "standard") -> dict[str, Credentials]:
        """Clients with the scope `predict`, by name. Not with the command line, which would take a second for each."""
        database = Database(f"sqlite+aiosqlite:///{self.folder}/lensgate.db")
        try:
            made = [await ClientRegistry(database).create(name, ["predict"], tier) for name in names]
        finally:
            await database.aclose()
        return {one.name: Credentials(one.client_id, one.client_secret) for one in made}

    def engine(self) -> psutil.Process:
        """The engine's process."""
        (engine,) = self.children(ENGINE)
        return engine

    def workers(self) -> list[psutil.Process]:
        """The API workers' processes."""
        return self.children(API)

    def decoders(self, worker: psutil.Process) -> list[psutil.Process]:
        """The processes in which a worker has pictures decoded."""
        return [child for child in self.children(DECODER) if child.ppid() == worker.pid]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.reading.wait()
            if '"event":"request"' in line and '"status":500' not in line:
                if '"route":"/readyz"' in line:
                    probe = json.loads(line)
                    self.probed[probe["pid"]] = (time.monotonic(), probe["status"] == 200)
                continue
            with self._logged:
                self.raw_log.append(line)
                if line.startswith("{"):
                    self.log.append(json.loads(line))
                self._logged.notify_all()
        with self._logged:
            self._logged.notify_all()


def endpoints_held_by(worker: psutil.Process) -> frozenset[Endpoint]:
    """The clients' ends of the connections that a worker has accepted."""
    return frozenset((one.raddr.ip, one.raddr.port) for one in worker.net_connections("tcp4") if one.status != psutil.CONN_LISTEN)
