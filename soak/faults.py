"""The faults of a soak: each is brought about in the real service, and is over when all of it is well again."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import psutil

from inference.cores import usable_cores
from soak.credentials import Credentials
from soak.gate import Gate, endpoints_held_by
from soak.ledger import Ledger

_WELL_AGAIN_S: Final = 90.0
"""The longest that the service may take to be well again: an engine that stands still is left alone for a while before it is replaced."""
_PROBES: Final = 6
_POLL_S: Final = 0.1
_SECRET_OVERLAP_S: Final = 30


def redis_is_lost(gate: Gate, since: int = 0) -> bool:
    """Whether a worker that lives has lost Redis, and has not had it back even once since that line of the log."""
    lines = [(at, line) for at, line in enumerate(list(gate.log)) if line["event"].startswith("rate_limit_storage_")]
    words = {line["pid"]: line["event"] for _, line in lines}
    back = {line["pid"] for at, line in lines if at >= since and line["event"] == "rate_limit_storage_back"}
    return any(words.get(worker.pid) == "rate_limit_storage_lost" and not (since and worker.pid in back) for worker in gate.workers())


class NotWell(Exception):
    """The service has not recovered from a fault."""


class Faults:
    """Brings faults about, one after the other.

    Args:
        gate: the service.
        ledger: told when one is in force.
        clients: the honest clients by name, whose secrets are rotated.
        random: how long a fault lasts, and whom it strikes.
        pace: 0.2 makes those that last a while last a fifth of it.
    """

    def __init__(self, gate: Gate, ledger: Ledger, clients: dict[str, Credentials], random: Random, *, pace: float = 1.0) -> None:
        self._gate = gate
        self._ledger = ledger
        self._clients = clients
        self._random = random
        self._pace = pace

    @property
    def deadly(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Those that end a process of the service."""
        return {
            "engine SIGKILL": self._kill_engine,
            "engine SIGSTOP": self._stop_engine,
            "API worker SIGKILL": self._kill_worker,
            "decoder SIGKILL": self._kill_decoder,
            "ipc socket deleted, API worker SIGKILL": self._delete_socket,
        }

    @property
    def mild(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Those that end none."""
        return {
            "Redis gone": self._redis_gone,
            "Redis SIGSTOP": self._redis_stopped,
            "Redis CLIENT PAUSE": self._redis_paused,
            "Redis restarted": self._redis_restarted,
            "signing key rotated": self._rotate_key,
            "client secret rotated": self._rotate_secret,
            "database locked": self._lock_database,
            "log not read": self._stop_reading,
        }

    def schedule(self, *, deadly: bool) -> Iterator[str]:
        """Names in rounds, each round in an order of its own."""
        names = [*self.deadly, *self.mild] if deadly else list(self.mild)
        yield from self._random.sample(names, len(names))

    async def strike(self, name: str) -> None:
        """Bring one about, and wait until the service is well again.

        Raises:
            NotWell: it is not, after 90 s.
        """
        with self._ledger.fault(name):
            await (self.deadly | self.mild)[name]()
            try:
                async with asyncio.timeout(_WELL_AGAIN_S):
                    await self._until_well(with_redis=name.startswith("Redis"))
            except TimeoutError:
                raise NotWell(f"{name}: not well again after {_WELL_AGAIN_S:.0f} s") from None

    async def _until_well(self, *, with_redis: bool) -> None:
        # To have Redis back once counts: a machine that is busy with other things loses it again when nothing has struck it.
        since = len(self._gate.log)
        while len(self._gate.workers()) != 2 or (with_redis and redis_is_lost(self._gate, since)):  # noqa: ASYNC110  processes and logs give no event
            await asyncio.sleep(_POLL_S)
        since_s = time.monotonic()
        async with httpx.AsyncClient(base_url=self._gate.url, timeout=10, headers={"Connection": "close"}) as http:
            # Several at once, so that no worker takes them all.
            while not self._all_are_ready(since_s):
                await asyncio.gather(*(http.get("/readyz") for _ in range(_PROBES)), return_exceptions=True)
                await asyncio.sleep(_POLL_S)

    def _all_are_ready(self, since_s: float) -> bool:
        """Whether each worker that lives has last said that it is ready, and since then."""
        said = [self._gate.probed.get(worker.pid, (0.0, False)) for worker in self._gate.workers()]
        return all(ready and at_s > since_s for at_s, ready in said)

    def _seconds(self, least: float, most: float) -> float:
        return self._random.uniform(least, most) * self._pace

    async def _logged(self, event: str, after: int, **fields: object) -> dict[str, Any]:
        return await asyncio.to_thread(self._gate.wait_for, event, after=after, timeout_s=_WELL_AGAIN_S, **fields)

    async def _kill_engine(self) -> None:
        after = len(self._gate.log)
        self._gate.engine().kill()
        await self._logged("engine_ready", after)

    async def _stop_engine(self) -> None:
        after = len(self._gate.log)
        self._gate.engine().suspend()
        # Nobody wakes it: the supervisor must see that it is silent.
        await self._logged("engine_ready", after)

    async def _kill_worker(self) -> None:
        after = len(self._gate.log)
        worker = self._random.choice(self._gate.workers())
        # It stands still while it is asked what it holds, so that this is what it holds when it dies.
        worker.suspend()
        while worker.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110  as above
            await asyncio.sleep(0)
        self._ledger.worker_is_killed(endpoints_held_by(worker))
        worker.kill()
        await self._logged("worker_serving", after)

    async def _kill_decoder(self) -> None:
        after = len(self._gate.log)
        worker = self._random.choice(self._gate.workers())
        decoder = self._random.choice(self._gate.decoders(worker))
        decoder.kill()
        await self._logged("decoder_died", after, child_pid=decoder.pid)
        while len(self._gate.decoders(worker)) < usable_cores():  # noqa: ASYNC110  as above
            await asyncio.sleep(_POLL_S)

    async def _delete_socket(self) -> None:
        (path,) = {one.laddr for one in self._gate.engine().net_connections("unix") if str(one.laddr).endswith(".sock")}
        Path(str(path)).unlink()
        # Those that are connected notice nothing. One that is new must find the engine all the same.
        await self._kill_worker()

    async def _redis_gone(self) -> None:
        self._gate.redis.stop()
        await asyncio.sleep(self._seconds(2, 6))
        await asyncio.to_thread(self._gate.redis.start)

    async def _redis_stopped(self) -> None:
        self._gate.redis.hang()
        await asyncio.sleep(self._seconds(2, 6))
        self._gate.redis.resume()

    async def _redis_paused(self) -> None:
        pause_s = self._seconds(1, 4)
        self._gate.redis.command(f"CLIENT PAUSE {pause_s * 1000:.0f} ALL")
        await asyncio.sleep(pause_s)

    async def _redis_restarted(self) -> None:
        self._gate.redis.stop()
        await asyncio.to_thread(self._gate.redis.start)

    async def _rotate_key(self) -> None:
        await self._operate("keys", "rotate")

    async def _rotate_secret(self) -> None:
        name = self._random.choice(sorted(self._clients))
        made = json.loads(await self._operate("clients", "rotate-secret", name, "--overlap-s", str(_SECRET_OVERLAP_S), "--json"))
        # The app hears of it later, as apps do.
        await asyncio.sleep(self._seconds(0, 5))
        self._clients[name].secret = made["client_secret"]

    async def _lock_database(self) -> None:
        held_s = self._seconds(2, 8)

        def hold() -> None:
            connection = sqlite3.connect(self._gate.folder / "lensgate.db", isolation_level=None, timeout=10)
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(held_s)
            connection.execute("ROLLBACK")
            connection.close()

        await asyncio.to_thread(hold)

    async def _stop_reading(self) -> None:
        self._gate.reading.clear()
        await asyncio.sleep(self._seconds(5, 10))
        self._gate.reading.set()

    async def _operate(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "api.cli", *arguments,
            cwd=self._gate.folder, env=self._gate.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        if process.returncode != 0:
            raise NotWell(f"lensgate {' '.join(arguments)}: {errors.decode()}")
        return output.decode()
