"""One soak: the service, its clients, its enemies and its faults, for so many seconds."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import psutil

from soak.faults import Faults, NotWell
from soak.gate import Gate
from soak.honest import Honest
from soak.hostile import Hostile
from soak.ledger import Ledger
from soak.memory import Life, MemoryLog, too_big
from soak.pictures import photographs
from support.redis_server import RedisServer

HONEST_CLIENTS: Final = 6
_LOOK_EVERY_S: Final = 2.0
_COMPILED_WITHIN_S: Final = 900.0
"""A machine that has never compiled the model does so first."""
_DEADLY_UNTIL: Final = 0.5
"""Of the soak: after that no fault ends a process of the service, so that there are lives long enough to be judged by their memory."""
_DEADLY_ROUNDS: Final = 3
"""At most: a process that dies ten times within an hour ends the service, as it should."""
_REST_S: Final = (4.0, 12.0)
"""Between two faults: what is served then is what 'without faults' means."""


@dataclass
class Outcome:
    """What a soak has shown."""

    seed: int
    seconds: float
    ledger: Ledger
    lives: Sequence[Life]
    trouble: Sequence[str]
    """What went wrong besides answers: the service did not recover, did not end well, said something that it must not."""

    @property
    def broken(self) -> list[str]:
        """The promises that did not hold."""
        ledger = self.ledger
        found = [*self.trouble]
        found += [f"lost: {text}" for text in ledger.lost.first]
        found += [f"wrong: {text}" for text in ledger.wrong.first]
        found += [f"memory: {life.name} {life.pid} has grown by {life.growth:.1%}" for life in too_big(self.lives)]
        if ledger.cut.count > ledger.held_by_killed:
            found.append(f"{ledger.cut.count} requests were cut, and the killed workers held {ledger.held_by_killed} connections")
        if not ledger.images:
            found.append("not one picture was classified")
        return found


async def soak(folder: Path, *, seconds: float, seed: int, compile_model: str, only: Sequence[str] = ()) -> Outcome:
    """Run one.

    Args:
        folder: a new one, for the service and Redis.
        seconds: how long, from the first honest request on.
        seed: of everything that is drawn.
        compile_model: the service's setting COMPILE.
        only: the faults to be brought about, in this order; all of them when empty.

    Raises:
        FileNotFoundError: there is no Redis server.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("Redis is not installed: apt-get install redis-server")
    redis = RedisServer(program, folder)
    redis.start()
    gate = Gate(folder, redis, compile_model=compile_model)
    ledger = Ledger()
    trouble: list[str] = []
    try:
        await asyncio.to_thread(gate.__enter__)
        try:
            memory = MemoryLog(psutil.Process(gate.process.pid))
            await _run(gate, ledger, memory, trouble, seconds=seconds, random=Random(seed), only=only)
        finally:
            gate.reading.set()
            code = await asyncio.to_thread(gate.stop)
            await asyncio.to_thread(gate.__exit__)
    finally:
        redis.stop()
    if code != 0:
        trouble.append(f"the service ended with code {code}")
    bad = ("Traceback", '"status":500', '"exception":')
    trouble += [f"in the log: {line[:500]}" for line in gate.raw_log if any(mark in line for mark in bad)]
    return Outcome(seed, seconds, ledger, [*memory.lives.values()], trouble)


async def _run(
    gate: Gate, ledger: Ledger, memory: MemoryLog, trouble: list[str], *, seconds: float, random: Random, only: Sequence[str]
) -> None:
    await asyncio.to_thread(gate.wait_for, "engine_ready", timeout_s=_COMPILED_WITHIN_S)
    await asyncio.to_thread(gate.wait_ready)
    made = await gate.register(*(f"app-{number}" for number in range(HONEST_CLIENTS)))
    enemies = await gate.register("attacker") | await gate.register("little", tier="tiny")
    pictures = photographs()
    apps = [
        Honest(gate.port, f"127.0.1.{number + 1}", made[name], pictures, ledger, keep_alive=number % 3 != 0, random=Random(random.random()))
        for number, name in enumerate(made)
    ]
    await apps[0].learn()
    hostile = Hostile(gate.port, enemies["attacker"], enemies["little"], pictures, ledger, random=Random(random.random()))
    faults = Faults(gate, ledger, made, Random(random.random()))
    stop = asyncio.Event()
    began_s = time.monotonic()
    tasks = [asyncio.create_task(app.run(stop), name=f"app {number}") for number, app in enumerate(apps)]
    attacks = [asyncio.create_task(hostile.run(kind), name=kind) for kind in hostile.attacks()]
    async with _looking(memory):
        try:
            await _strike(faults, trouble, [*tasks, *attacks], began_s=began_s, seconds=seconds, only=only, random=random)
        finally:
            stop.set()
            for attack in attacks:
                attack.cancel()
            # The honest ones get what they are still owed.
            outcomes = await asyncio.gather(*tasks, *attacks, return_exceptions=True)
            trouble += [f"a client of the soak itself has failed: {one!r}" for one in outcomes if isinstance(one, Exception)]


async def _strike(
    faults: Faults,
    trouble: list[str],
    tasks: Sequence[asyncio.Task[None]],
    *,
    began_s: float,
    seconds: float,
    only: Sequence[str],
    random: Random,
) -> None:
    """Fault after fault, with rests, until the time is up or the service does not get well."""
    names: list[str] = list(only)
    rounds = 0
    while True:
        rest_s = random.uniform(*_REST_S) if not only else 1.0
        left_s = began_s + seconds - time.monotonic()
        if left_s <= rest_s or (only and not names):
            await asyncio.wait(tasks, timeout=max(0.0, left_s), return_when=asyncio.FIRST_EXCEPTION)
            return
        await asyncio.sleep(rest_s)
        in_first_half = time.monotonic() - began_s < seconds * _DEADLY_UNTIL
        if not names:
            names = list(faults.schedule(deadly=in_first_half and rounds < _DEADLY_ROUNDS))
            rounds += 1
        if not only and not in_first_half:  # the round has begun before
            names = [name for name in names if name not in faults.deadly] or list(faults.schedule(deadly=False))
        name = names.pop(0)
        struck_s = time.monotonic()
        try:
            await faults.strike(name)
        except (NotWell, AssertionError, ValueError, psutil.Error) as error:  # a process that should be there is not, say
            trouble.append(f"{name}: {error!r:.2000}")
            return
        now_s = time.monotonic()
        print(f"{struck_s - began_s:6.1f} s  {name}: well again after {now_s - struck_s:.1f} s", flush=True)


@asynccontextmanager
async def _looking(memory: MemoryLog) -> AsyncIterator[None]:
    async def look() -> None:
        while True:
            await asyncio.to_thread(memory.look)
            await asyncio.sleep(_LOOK_EVERY_S)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
