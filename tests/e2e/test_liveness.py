"""`/livez` depends on nothing outside its own process: whoever restarts what is not alive must not do so for another's fault."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

from support.held import ENGINE
from support.redis_server import redis_server
from support.service import Service
from support.stub_engine import sitecustomize as stub


def test_it_is_alive_whatever_else_is_locked_gone_or_dead(start_service: Callable[..., Service]) -> None:
    with redis_server() as redis:
        service = start_service(
            stub.environment()
            | {
                "LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url,
                "LENSGATE_SECURITY__POLL_S": "0.5",
                "LENSGATE_INFERENCE__STUCK_AFTER_S": "3",
            }
        )
        service.wait_ready()

        def assert_alive() -> None:
            for _ in range(5):
                assert service.get("/livez").status_code == 200

        (engine,) = service.children(ENGINE)
        after = len(service.log)
        engine.suspend()
        assert_alive()
        service.wait_for("child_silent", after=after)  # killed: there is no engine for a while
        assert_alive()
        assert service.get("/readyz").status_code == 503
        service.wait_ready(after=after)

        database = service.folder / "lensgate.db"
        with closing(sqlite3.connect(database, isolation_level=None)) as locker:
            locker.execute("BEGIN EXCLUSIVE")
            assert_alive()
        database.unlink()
        service.wait_for("revocations_unavailable", after=after)
        assert_alive()
        redis.stop()
        assert_alive()
        for key in (service.folder / "keys").iterdir():
            key.unlink()
        assert_alive()
        service.children(ENGINE)[0].suspend()
        assert_alive()
        assert service.stop() == 0
