"""`lensgate demo`: the whole service in a throw-away folder, shown real photographs through its own guarded door."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import re
import tempfile
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from api.children import ChildGaveUp
from api.demo_view import CONTENT_TYPES, show_curl, show_prediction, show_step
from api.http_settings import HttpSettings
from api.listener import bind
from api.prepare import prepare
from api.settings import ConfigurationError, LogSettings, Settings
from api.supervisor import Supervisor
from inference.settings import InferenceSettings
from security.client_records import CreatedClient
from security.clients import ClientRegistry
from security.database import Database
from security.settings import SecuritySettings

CONNECT_TIMEOUT_S: Final = 3.0
"""How long ResNet-50's weights may take to begin to come before the packaged ones are used."""
MODELS: Final = {
    "auto": ("resnet50", "efficientnet_lite0"),
    "resnet50": ("resnet50",),
    "efficientnet_lite0": ("efficientnet_lite0",),
}
_WEIGHTS: Final = {"resnet50": "DEFAULT", "efficientnet_lite0": "package:efficientnet_lite0"}
_PHOTOGRAPHS: Final = ("coffee.png", "chelsea.png", "rocket.jpg")
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


class _Caller:
    """A client app as anyone would write it: plain HTTP calls to the service's port."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self._port = port

    async def call(self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> _Answer:
        return await asyncio.to_thread(self._call, method, path, body, headers or {})

    def _call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> _Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return _Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read()))


def run_demo(*, once: bool, port: int, model: str, console: Console) -> None:
    """Serve, classify the photographs, and stay up until Ctrl-C unless `once`.

    Args:
        once: end after the pictures.
        port: where to listen on loopback; 0 takes a free one.
        model: a key of `MODELS`.
        console: where to show it.

    Raises:
        ConfigurationError: something that the demo needs is missing; nothing is left running.
    """
    pictures = photographs()
    with tempfile.TemporaryDirectory(prefix="lensgate-demo-") as folder:
        asyncio.run(_demo(Path(folder), pictures, once=once, port=port, models=MODELS[model], console=console))


def photographs() -> list[Path]:
    """The photographs that scikit-image ships: a cup of coffee, a cat, a rocket."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("the demo's photographs come with scikit-image: the extra demo. In a checkout: make demo")
    data = Path(spec.submodule_search_locations[0]) / "data"
    return [data / name for name in _PHOTOGRAPHS]


def _settings(folder: Path, port: int, model: str) -> Settings:
    return Settings.model_construct(
        http=HttpSettings(port=port, grace_s=5),
        security=SecuritySettings.model_validate(
            {"keys_dir": folder / "keys", "database_url": f"sqlite+aiosqlite:///{folder / 'lensgate.db'}"},
        ),
        inference=_inference(model),
        log=LogSettings(format="json"),
    )


def _inference(model: str) -> InferenceSettings:
    # Not compiled: that takes longer than the whole demo.
    return InferenceSettings(model=model, weights=_WEIGHTS[model], compile="off")


async def _demo(folder: Path, photographs: Sequence[Path], *, once: bool, port: int, models: Sequence[str], console: Console) -> None:
    started_s = time.monotonic()
    listener = bind(HttpSettings(port=port), port_name="--port")
    port = listener.getsockname()[1]
    settings = _settings(folder, port, models[0])
    await prepare(settings)
    client = await _make_client(settings)
    show_step(console, "a signing key, a client registry, and a client called demo", started_s)

    log_path = folder / "serve.log"
    with log_path.open("wb") as log:
        supervisor = Supervisor(
            settings,
            listener,
            candidates=[_inference(model) for model in models],
            connect_timeout_s=CONNECT_TIMEOUT_S,
            output=log.fileno(),
        )
        service = asyncio.create_task(supervisor.run())
        try:
            caller = _Caller(port)
            await _until_ready(caller, service, console)
            await _show(caller, client, photographs, models[0], started_s, console)
            if not once:
                console.print("\n[bold]The service stays up.[/bold] Ctrl-C ends it, and leaves nothing behind.")
                await service
        except (OSError, http.client.HTTPException) as error:
            raise ConfigurationError(f"the service stopped answering; the last of its log:\n{_tail(log_path)}") from error
        except ChildGaveUp as error:
            raise ConfigurationError(_reason(log_path) or f"{error}; the last of its log:\n{_tail(log_path)}") from error
        finally:
            supervisor.request_stop()
            # A failure of the service was raised above, where it was awaited; here it only has to end.
            await asyncio.gather(service, return_exceptions=True)


async def _make_client(settings: Settings) -> CreatedClient:
    database = Database(settings.security.database_url.get_secret_value())
    try:
        return await ClientRegistry(database).create("demo", ["predict"])
    finally:
        await database.aclose()


async def _until_ready(caller: _Caller, service: asyncio.Task[None], console: Console) -> None:
    with console.status("Starting the engine …") as status:
        while True:
            if service.done():
                await service
                raise KeyboardInterrupt  # it was asked to end
            try:
                answer = await caller.call("GET", "/readyz")
            except OSError:
                pass  # the API worker is not there yet; it is asked again
            else:
                if answer.status == 200:
                    return
                status.update(answer.body["detail"])
            await asyncio.sleep(_POLL_S)


async def _show(
    caller: _Caller, client: CreatedClient, photographs: Sequence[Path], wanted_model: str, started_s: float, console: Console
) -> None:
    asked_s = time.monotonic()
    basic = b64encode(f"{client.client_id}:{client.client_secret}".encode()).decode()
    token_answer = await caller.call(
        "POST",
        "/oauth2/token",
        body=b"grant_type=client_credentials",
        headers={"Authorization": f"Basic {basic}", "Content-Type": "application/x-www-form-urlencoded"},
    )
    token = _checked(token_answer)["access_token"]
    bearer = {"Authorization": f"Bearer {token}"}
    model = _checked(await caller.call("GET", "/models", headers=bearer))["models"][0]
    show_step(console, f"{model['name']} {model['version']} is warm ({model['precision']} on {model['device']})", started_s)
    if model["name"] != wanted_model:
        console.print(
            f"    [yellow]{wanted_model}'s own weights cannot be had here; the packaged {model['name']} answers instead.[/yellow]"
        )
    show_step(console, f"an access token for {token_answer.body['expires_in'] // 60} minutes", asked_s)

    for photograph in photographs:
        asked_s = time.monotonic()
        answer = await caller.call(
            "POST",
            "/predict?top_k=3",
            body=photograph.read_bytes(),
            headers=bearer | {"Content-Type": CONTENT_TYPES[photograph.suffix]},
        )
        show_prediction(console, photograph.name, _checked(answer), answer.headers["server-timing"], time.monotonic() - asked_s)
    show_curl(console, caller.base_url, client, photographs[0])


def _checked(answer: _Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise ConfigurationError(
            f"the service answered {answer.status}: {answer.body.get('detail') or answer.body.get('error_description')}"
        )
    return answer.body


def _reason(path: Path) -> str | None:
    """What a child that cannot work as configured has said of it, in its one line, whatever was logged around it."""
    said = re.findall(r"^lensgate: error: (.*)$", path.read_text(errors="replace"), re.MULTILINE)
    return said[-1] if said else None


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-5:])
