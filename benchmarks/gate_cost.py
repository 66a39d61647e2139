"""What the gate costs: the CPU time that the layers in front of the routes add to a request, with the model and the decoder stubbed.

The shipped application is called in this process, without sockets, by a plain ASGI client: `POST /predict` with raw bytes. Beside it stands
the same application with its layers taken away, and with one more layer each, from the innermost on; all take turns, and the medians are
compared. CPU time is that of the whole process, so what a layer does in a thread counts too.

    python -m benchmarks.gate_cost [--requests 50] [--turns 120] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import uvloop
from fastapi import FastAPI
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from starlette.types import Message, Scope

from api.app import create_app
from api.http_settings import HttpSettings
from api.log import configure_logging
from api.record import RECORD_KEY, RequestRecord
from api.services import Services
from api.settings import Settings
from api.trace_context import continue_trace
from api.worker_memory import make_limit_memory
from api.worker_process import _open_services
from benchmarks.machine import describe_machine
from inference.decoding.pool import Decoded, DecodePool
from inference.image import DecodedImage
from inference.types import ClassScore, EngineStatus, ModelInfo, Pixels, Prediction, Preprocessing
from security.database import Database
from security.keys import create_key
from security.limit_windows import SharedWindows
from security.principal import STATE_KEY, Principal
from security.settings import SecuritySettings

SEEN_TARGET_US = 150
NEW_TARGET_US = 300
BODY_BYTES = 58_000
"""A JPEG of 500 x 334."""

_MODEL = ModelInfo(
    name="stub",
    version="1",
    digest="sha256:" + "0" * 64,
    precision="fp32",
    device="cpu",
    preprocessing=Preprocessing(resize_px=256, crop_px=224, interpolation="bilinear"),
    labels=tuple(f"class {number}" for number in range(1000)),
)


class StubEngine:
    """Answers at once."""

    def __init__(self) -> None:
        scores = tuple(ClassScore(number, _MODEL.labels[number], 0.2) for number in range(5))
        self._prediction = Prediction(scores=scores, model=_MODEL, queue_ms=0.1, infer_ms=1.0, batch_size=1)
        self._status = EngineStatus(phase="ready", detail="", models=(_MODEL,))

    async def predict(self, pixels: Pixels, *, top_k: int, timeout_s: float, client: str, may_displace: bool = True) -> Prediction:
        return self._prediction

    def status(self) -> EngineStatus:
        return self._status

    async def aclose(self) -> None:
        pass


class StubDecoder(DecodePool):
    """Decodes nothing."""

    def __init__(self) -> None:
        super().__init__(max_pixels=1, processes=1, max_waiting=0)
        self._decoded = Decoded(DecodedImage(np.zeros((224, 224, 3), np.uint8), "jpeg", 500, 334, False), 1.0)

    async def decode(
        self, data: bytes, preprocessing: Preprocessing, *, client: str, draft: bool = True, may_displace: bool = True
    ) -> Decoded:
        return self._decoded


@dataclass
class Stack:
    """The application behind some of its layers, and what it has cost so far."""

    name: str
    app: FastAPI
    fresh_tokens: bool
    measured_us: list[float]


class Connection:
    """One request, as a server would hand it over."""

    def __init__(self, token: str, principal: Principal) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/predict",
            "raw_path": b"/predict",
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"127.0.0.1:8000"),
                (b"user-agent", b"python-httpx/0.28.1"),
                (b"accept", b"*/*"),
                (b"accept-encoding", b"gzip, deflate"),
                (b"content-type", b"image/jpeg"),
                (b"content-length", str(BODY_BYTES).encode()),
                (b"authorization", f"Bearer {token}".encode()),
            ],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8000),
            # What outer layers leave here, for a stack that has only the inner ones.
            "state": {RECORD_KEY: RequestRecord("0" * 32, continue_trace(None)), STATE_KEY: principal},
        }
        self.status = 0
        self._body: bytes | None = bytes(BODY_BYTES)

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.Future()  # the client stays until it has its answer
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]


@asynccontextmanager
async def _services(folder: Path) -> AsyncIterator[Services]:
    database_url = f"sqlite+aiosqlite:///{folder}/registry.db"
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings takes it, but does not declare it in the class
        http=HttpSettings(port=8000, **_unlimited(HttpSettings)),
        security=SecuritySettings(
            keys_dir=folder / "keys", database_url=SecretStr(database_url), token_ttl_s=3600, **_unlimited(SecuritySettings)
        ),
    )
    create_key(settings.security.keys_dir, created_at=time.time() - 3600)
    database = Database(database_url)
    await database.upgrade()
    await database.aclose()
    limits = SharedWindows(make_limit_memory(2), workers=2)  # a worker, and the place of the one that renews it
    async with _open_services(settings, "api-0", [], limits, None) as services:
        yield replace(services, engine=StubEngine(), decoder=StubDecoder())


def _unlimited(section: type[HttpSettings | SecuritySettings]) -> dict[str, Any]:
    """Limits that nobody reaches, but that are counted all the same."""
    wanted = {"address_limit": "900000000/minute", "tiers": {"standard": {"images": "900000000/minute", "in_flight": 64}}}
    return {name: value for name, value in wanted.items() if name in section.model_fields}


def _stacks(services: Services) -> list[Stack]:
    """No layer at all, then one more each from the innermost on; last the whole gate with a new token each time."""
    layers = create_app(services).user_middleware
    stacks = []
    for depth in range(len(layers) + 1):
        app = create_app(services)
        app.user_middleware = layers[len(layers) - depth :]
        name = "no layer" if depth == 0 else str(getattr(app.user_middleware[0].cls, "__name__", "?"))
        stacks.append(Stack(name, app, fresh_tokens=False, measured_us=[]))
    stacks.append(Stack("all, new token", create_app(services), fresh_tokens=True, measured_us=[]))
    return stacks


async def _measure(stack: Stack, connections: list[Connection]) -> None:
    gc.collect()
    began_ns = time.process_time_ns()
    for connection in connections:
        await stack.app(connection.scope, connection.receive, connection.send)
    stack.measured_us.append((time.process_time_ns() - began_ns) / 1000 / len(connections))
    statuses = {connection.status for connection in connections}
    if statuses != {200}:
        raise RuntimeError(f"{stack.name}: answered {statuses}")


async def run(requests: int, turns: int, log: TextIO) -> list[Stack]:
    """Measure every stack `turns` times with `requests` requests each; the first turn warms up and does not count."""
    configure_logging("info", "json", stream=log)
    with tempfile.TemporaryDirectory(prefix="lensgate-bench-") as name:
        async with _services(Path(name)) as services:
            now = time.time()
            principal = Principal("client", frozenset({"predict"}), services.settings.issuer, "id", int(now) + 600)
            seen = services.issuer.issue("client", ("predict",), now).token
            stacks = _stacks(services)
            gc.collect()
            gc.freeze()  # so that the collection before each measurement looks at little
            for turn in range(turns + 1):
                for stack in stacks[:: 1 if turn % 2 else -1]:
                    tokens: Iterator[str] = repeat(seen, requests)
                    if stack.fresh_tokens:
                        tokens = iter([services.issuer.issue("client", ("predict",), now).token for _ in range(requests)])
                    await _measure(stack, [Connection(token, principal) for token in tokens])
            for stack in stacks:
                del stack.measured_us[0]
            return stacks


def _report(stacks: list[Stack]) -> tuple[float, float]:
    medians = [statistics.median(stack.measured_us) for stack in stacks]
    bare_us, whole_us, new_us = medians[0], medians[-2], medians[-1]
    table = Table(title=f"CPU time of the gate, microseconds a request (medians of {len(stacks[0].measured_us)} turns)")
    for heading in ("layer, innermost first", "adds", "request so far"):
        table.add_column(heading, justify="left" if heading.startswith("layer") else "right")
    for stack, median, before in zip(stacks[:-1], medians, [0.0, *medians], strict=False):
        table.add_row(stack.name, "" if stack is stacks[0] else f"{median - before:.1f}", f"{median:.1f}")
    table.add_section()
    table.add_row(f"all layers, token seen before (at most {SEEN_TARGET_US})", f"{whole_us - bare_us:.1f}", f"{whole_us:.1f}")
    table.add_row(f"all layers, a new token each time (at most {NEW_TARGET_US})", f"{new_us - bare_us:.1f}", f"{new_us:.1f}")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    return whole_us - bare_us, new_us - bare_us


def measure(requests: int, turns: int) -> tuple[float, float]:
    """Print the table; return what all layers add, in microseconds: for a token seen before, and for a new one."""
    with Path(os.devnull).open("w") as nowhere:
        return _report(uvloop.run(run(requests, turns, nowhere)))


def main() -> int:
    """Run the command line; with `--check` the exit status is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50, help="requests in a turn")
    parser.add_argument("--turns", type=int, default=120)
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    arguments = parser.parse_args()
    seen_us, new_us = measure(arguments.requests, arguments.turns)
    print(describe_machine())
    return int(arguments.check and (seen_us > SEEN_TARGET_US or new_us > NEW_TARGET_US))


if __name__ == "__main__":
    sys.exit(main())
