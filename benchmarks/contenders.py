"""Who is measured, and how each is started and spoken to."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from benchmarks.processes import Tree, environment, free_port

Stub = Literal["", "model", "model,decode", "decode"]
"""What is left out: nothing, the model, the model and the decoder, or (to fill the memory of an engine quickly) the decoder."""
Body = Literal["raw", "json"]

QUICK_START = {"LENSGATE_INFERENCE__COMPILE": "off", "LENSGATE_INFERENCE__MAX_BATCH": "2"}
"""Where compiling and warming up take too long."""

_STUBS = Path(__file__).parent / "stubs"
_NO_LIMIT = "900000000/minute"
"""Counted like any other, and never reached."""
_NO_BODIES_LIMIT = 4 * 1024**3
"""As above: 64 connections of one client send more than half of the default."""


@dataclass
class Contender:
    """One server that runs, or is halted."""

    name: str
    tree: Tree
    port: int
    paths: dict[Body, str]
    headers: dict[str, str] = field(default_factory=dict)
    start_s: float = 0.0
    precision: str = ""

    def request(self, body: Body, picture: bytes) -> bytes:
        """The bytes of one request."""
        content = picture if body == "raw" else json.dumps({"image": base64.b64encode(picture).decode()}).encode()
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            "User-Agent": "lensgate-benchmarks",
            "Accept": "*/*",
            "Content-Type": "image/jpeg" if body == "raw" else "application/json",
            "Content-Length": str(len(content)),
        } | self.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.paths[body]} HTTP/1.1\r\n{head}\r\n".encode() + content


@dataclass(frozen=True)
class Model:
    """What the real contenders run."""

    weights: Path
    name: str = "resnet50"
    precision: str = "auto"
    """Lensgate's choice is given to the others."""
    max_batch: int = 8


def start_lensgate(folder: Path, stub: Stub, model: Model | None, *, workers: int = 1, extra: Mapping[str, str] | None = None) -> Contender:
    """`lensgate serve` with the full gate: a token, limits that are counted, a JSON log. Ready when this returns."""
    port = free_port()
    name = "lensgate" if workers == 1 else f"lensgate {workers} workers"
    tiers = {"standard": {"images": _NO_LIMIT, "in_flight": 1024}}
    settings = {
        "LENSGATE_HTTP__PORT": str(port),
        "LENSGATE_HTTP__WORKERS": str(workers),
        "LENSGATE_HTTP__ADDRESS_LIMIT": _NO_LIMIT,
        "LENSGATE_HTTP__MAX_BODIES_BYTES": str(_NO_BODIES_LIMIT),
        "LENSGATE_SECURITY__TIERS": json.dumps(tiers),
        "LENSGATE_SECURITY__TOKEN_TTL_S": "86400",
        "LENSGATE_LOG__FORMAT": "json",
        "XDG_CACHE_HOME": str(folder.parent.parent / "cache"),  # where it keeps what it compiled
    }
    if model is not None:
        settings |= {
            "LENSGATE_INFERENCE__MODEL": model.name,
            "LENSGATE_INFERENCE__WEIGHTS": str(model.weights),
            "LENSGATE_INFERENCE__PRECISION": model.precision,
            "LENSGATE_INFERENCE__MAX_BATCH": str(model.max_batch),
        }
    settings |= extra or {}
    if stub:
        settings |= {"PYTHON_BENCH_STUBBED": str(stub), "PYTHONPATH": str(_STUBS)}
    tree = Tree(name.replace(" ", "-"), ["-m", "api.cli", "serve"], folder, settings)
    try:
        start_s = tree.wait_for(port, "/readyz")
        created = subprocess.run(
            [sys.executable, "-m", "api.cli", "clients", "create", f"benchmark-{port}", "--scope", "predict", "--json"],
            cwd=folder,
            env=environment({name: value for name, value in settings.items() if name != "PYTHONPATH"}),
            capture_output=True,
            check=True,
        )
        client = json.loads(created.stdout)
        headers = {"Authorization": f"Bearer {_token(port, client['client_id'], client['client_secret'])}"}
        precision = _get(port, "/models", headers)["models"][0]["precision"]
    except BaseException:
        tree.stop()
        raise
    return Contender(name, tree, port, {"raw": "/predict", "json": "/predict"}, headers, start_s, precision)


def start_naive(folder: Path, stub: Stub, model: Model | None, *, slim: bool = False) -> Contender:
    """The tutorial's service; with its model stubbed, plain FastAPI. `slim`: as `pip install fastapi uvicorn` runs it, in Python alone."""
    port = free_port()
    arguments = ["-m", "uvicorn", "benchmarks.servers.naive:app", "--port", str(port), "--log-level", "warning", "--no-access-log"]
    if slim:
        arguments += ["--loop", "asyncio", "--http", "h11"]
    name = "fastapi slim" if slim else "fastapi"
    extra = {"BENCH_STUBBED": str(stub)}
    if model is not None:
        extra |= {"BENCH_WEIGHTS": str(model.weights), "BENCH_PRECISION": model.precision}
    return _ready(
        Contender(name, Tree(name.replace(" ", "-"), arguments, folder, extra), port, {"raw": "/predict/raw", "json": "/predict"}),
        "/health",
    )


def start_litserve(folder: Path, stub: Stub, model: Model | None, *, compiled: bool = False, options: tuple[str, ...] = ()) -> Contender:
    """LitServe; see `benchmarks.servers.litserve_app`."""
    port = free_port()
    name = "litserve compiled" if compiled else "litserve"
    arguments = ["-m", "benchmarks.servers.litserve_app", "--port", str(port), "--stubbed", stub, *options]
    if model is not None:
        arguments += ["--weights", str(model.weights), "--precision", model.precision, "--max-batch", str(model.max_batch)]
    if compiled:
        arguments.append("--compiled")
    tree = Tree(name.replace(" ", "-"), arguments, folder, inductor_cache(folder.parent.parent))
    return _ready(Contender(name, tree, port, {"raw": "/predict", "json": "/predict"}), "/health")


def litserve_is_installed() -> bool:
    return find_spec("litserve") is not None


def inductor_cache(folder: Path) -> dict[str, str]:
    """Where in the benchmarks' folder the other servers and the raw forward pass keep what they compiled, so that a second run is quick."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}


def _ready(contender: Contender, path: str) -> Contender:
    try:
        contender.start_s = contender.tree.wait_for(contender.port, path)
    except BaseException:
        contender.tree.stop()
        raise
    return contender


def _token(port: int, client_id: str, client_secret: str) -> str:
    basic = base64.b64encode(f"{client_id}:{client_secret}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/x-www-form-urlencoded"}
    body = urllib.parse.urlencode({"grant_type": "client_credentials"})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/oauth2/token", body, headers)
        answer = json.loads(connection.getresponse().read())
    return str(answer["access_token"])


def _get(port: int, path: str, headers: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        answer: dict[str, list[dict[str, str]]] = json.loads(connection.getresponse().read())
        return answer
