"""The shipped application under uvicorn, on a real socket, with a real registry and real keys; only the model is a fake."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from pydantic import SecretStr

from api.app import create_app
from api.http_settings import HttpSettings
from api.log import configure_logging
from api.services import Services
from api.settings import Settings
from inference.decoding.pool import DecodePool
from inference.types import ClassScore, EngineStatus, ModelInfo, Pixels, Prediction, Preprocessing
from security.client_records import CreatedClient
from security.clients import ClientRegistry
from security.database import Database
from security.key_ring import KeyStore
from security.keys import ensure_keys
from security.limit_storage import RateLimiter
from security.limit_windows import SharedWindows
from security.revocation import RevocationView
from security.settings import SecuritySettings
from security.tokens import TokenIssuer, TokenVerifier
from support.limit_memory import limit_memory

COLOURS = ("red", "green", "blue")
WAIT_S = 10.0
STOP_S = 60.0
GRACE_S = 10
"""The end waits for processes and for the disk, beside whatever else the tests do."""
_Result = TypeVar("_Result")


class Call(NamedTuple):
    """What the engine was asked."""

    pixels: Pixels
    timeout_s: float
    may_displace: bool


class Model:
    """A fake engine that names the strongest colour of a picture: what it answers can be checked."""

    INFO = ModelInfo(
        name="colours",
        version="test",
        digest="sha256:" + "0" * 64,
        precision="fp32",
        device="cpu",
        preprocessing=Preprocessing(resize_px=32, crop_px=32, interpolation="bilinear"),
        labels=(*COLOURS, *(f"grey {number}" for number in range(117))),
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.failure: Exception | None = None
        self.phase: Any = "ready"
        self.detail = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = threading.Semaphore(0)
        self.cancelled = threading.Event()
        self.pictures_seen = 0
        self.clients: list[str] = []
        self.close: deque[int | Exception] = deque()
        """What the next calls answer: a class, with a second one that is nearly as probable, or an error."""
        self.calls: list[Call] = []

    async def predict(self, pixels: Pixels, *, top_k: int, timeout_s: float, client: str, may_displace: bool = True) -> Prediction:
        assert pixels.shape == (32, 32, 3)
        assert timeout_s > 0
        self.pictures_seen += 1
        self.clients.append(client)
        self.calls.append(Call(pixels, timeout_s, may_displace))
        self.asked.release()
        if self.failure is not None:
            raise self.failure
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.close:
            return self._close_call(self.close.popleft(), top_k)
        strongest = int(np.argmax(pixels.reshape(-1, 3).mean(axis=0)))
        others = [number for number in range(len(self.INFO.labels)) if number != strongest]
        scores = [ClassScore(strongest, self.INFO.labels[strongest], 0.9), *(ClassScore(n, self.INFO.labels[n], 0.1 / 119) for n in others)]
        return self._prediction(scores[:top_k])

    def _close_call(self, answer: int | Exception, top_k: int) -> Prediction:
        if isinstance(answer, Exception):
            raise answer
        other = (answer + 1) % len(COLOURS)
        scores = [ClassScore(answer, COLOURS[answer], 0.5), ClassScore(other, COLOURS[other], 0.45), ClassScore(3, "grey 0", 0.05)]
        return self._prediction(scores[:top_k])

    def _prediction(self, scores: list[ClassScore]) -> Prediction:
        return Prediction(scores=tuple(scores), model=self.INFO, queue_ms=0.25, infer_ms=1.5, batch_size=1, engine="engine-0")

    def status(self) -> EngineStatus:
        return EngineStatus(phase=self.phase, detail=self.detail, models=(self.INFO,))

    async def aclose(self) -> None:
        self.gate.set()


class LogLines(io.StringIO):
    """The log of the server; waits for lines, because a request's line is written after its answer."""

    def __init__(self) -> None:
        super().__init__()
        self._written = threading.Condition()
        self.text = ""

    def write(self, text: str) -> int:
        with self._written:
            self.text += text
            self._written.notify_all()
        return len(text)

    def wait_for(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found.extend(line for line in self.lines() if matches(line))
            return bool(found)

        with self._written:
            assert self._written.wait_for(look, timeout=WAIT_S), "no such line in the log"
        return found[0]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.split("\n")[:-1]]

    def request(self, response: httpx.Response) -> dict[str, Any]:
        wanted = response.headers["x-request-id"]
        return self.wait_for(lambda line: line["event"] == "request" and line["request_id"] == wanted)


@dataclass
class Gate:
    """One running server."""

    url: str
    port: int
    model: Model
    log: LogLines
    services: Services
    loop: asyncio.AbstractEventLoop
    clients: dict[str, CreatedClient]
    http: httpx.Client = field(init=False)

    def token(self, name: str = "camera") -> str:
        client = self.clients[name]
        answer = self.http.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=(client.client_id, client.client_secret))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def predict(self, **request: Any) -> httpx.Response:  # noqa: ANN401 # httpx has no type for its own arguments
        headers = {"Authorization": f"Bearer {self.token()}", **request.pop("headers", {})}
        return self.http.post(request.pop("path", "/predict"), headers=headers, **request)

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def hold_model(self) -> None:
        """Let predictions wait until `let_model_go`."""
        self.model.gate.clear()

    def let_model_go(self) -> None:
        self.loop.call_soon_threadsafe(self.model.gate.set)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()


@asynccontextmanager
async def _services(settings: Settings, model: Model) -> AsyncIterator[tuple[Services, dict[str, CreatedClient]]]:
    database = Database(settings.security.database_url.get_secret_value())
    await database.upgrade()
    registry = ClientRegistry(database)
    clients = {
        "camera": await registry.create("camera", ["predict"]),
        "scraper": await registry.create("scraper", ["metrics"]),
    }
    ensure_keys(settings.security.keys_dir, may_create=True)
    keys = KeyStore(settings.security.keys_dir, poll_s=settings.security.poll_s)
    names = {"issuer": settings.issuer, "audience": settings.security.audience}
    revocations = RevocationView(registry, issuer=settings.issuer, poll_s=settings.security.poll_s)
    await revocations.refresh()
    decoder = DecodePool(max_pixels=settings.inference.max_pixels, processes=2, max_waiting=32)
    decoder.start()
    with limit_memory() as file:
        windows = SharedWindows(file)
    try:
        yield (
            Services(
                settings=settings,
                engine=model,
                registry=registry,
                issuer=TokenIssuer(keys, **names, ttl_s=settings.security.token_ttl_s),
                verifier=TokenVerifier(keys, **names, clock_skew_s=settings.security.clock_skew_s),
                revocations=revocations,
                keys=keys,
                decoder=decoder,
                rates=RateLimiter(windows),
            ),
            clients,
        )
    finally:
        await decoder.aclose()
        await database.aclose()


def _serve(folder: Path, log: LogLines, *, http: HttpSettings) -> Iterator[Gate]:
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: without it every answer takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings takes it, but does not declare it in the class
        http=http.model_copy(update={"port": port}),
        security=SecuritySettings(keys_dir=folder / "keys", database_url=SecretStr(f"sqlite+aiosqlite:///{folder}/registry.db")),
    )
    model, started, gates, servers = Model(), threading.Event(), [], []

    async def main() -> None:
        async with _services(settings, model) as (services, clients):
            # As in the service, whose end no connection holds up: here one that a client has left open would.
            config = uvicorn.Config(
                create_app(services),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACE_S,
            )
            server = _Server(config, started.set)
            servers.append(server)
            gates.append(Gate(f"http://127.0.0.1:{port}", port, model, log, services, asyncio.get_running_loop(), clients))
            await server.serve([listener])

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="server")
    thread.start()
    assert started.wait(WAIT_S), "the server did not start"
    gate = gates[0]
    with httpx.Client(base_url=gate.url, timeout=WAIT_S) as gate.http:
        yield gate
    servers[0].should_exit = True
    thread.join(STOP_S)
    assert not thread.is_alive(), f"the server does not stop; it is at {[task.get_stack() for task in asyncio.all_tasks(gate.loop)]}"


def _log_to(log: LogLines) -> None:
    configure_logging("info", "json", process="api-0", stream=log)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the tests' own client must not write into the server's log


@pytest.fixture(scope="session")
def _log() -> LogLines:
    log = LogLines()
    _log_to(log)
    return log


@pytest.fixture(autouse=True)
def _restore_logging(restored_logging: None) -> None:
    """Every test here may configure the log."""


@pytest.fixture(scope="session")
def _shared_gate(tmp_path_factory: pytest.TempPathFactory, _log: LogLines) -> Iterator[Gate]:
    yield from _serve(tmp_path_factory.mktemp("gate"), _log, http=HttpSettings(max_body_bytes=256 * 1024, max_batch_images=4))


@pytest.fixture
def gate(_shared_gate: Gate, _restore_logging: None) -> Gate:
    """The server, with its model in its first state."""
    _log_to(_shared_gate.log)
    _shared_gate.model.reset()
    _shared_gate.services.lifecycle.draining = False
    return _shared_gate


@pytest.fixture(scope="session")
def gate_without_docs(tmp_path_factory: pytest.TempPathFactory, _log: LogLines) -> Iterator[Gate]:
    yield from _serve(tmp_path_factory.mktemp("no-docs"), _log, http=HttpSettings(docs=False))


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Encodes a picture of one colour."""

    def encode(colour: str = "green", *, kind: str = "JPEG", size: tuple[int, int] = (48, 40)) -> bytes:
        encoded = io.BytesIO()
        Image.new("RGB", size, {"green": "#00ff00"}.get(colour, colour)).save(encoded, kind)
        return encoded.getvalue()

    return encode
