"""When the supervisor ends the service by itself, and how many engines it wants."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from api import supervisor as module
from api.children import ChildGaveUp
from api.settings import Settings
from api.supervisor import Supervisor
from inference.gpus import Gpu
from inference.settings import InferenceSettings

TWO = [Gpu(0, "0"), Gpu(1, "1")]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as one:
        yield one


class Children:
    """Stand-ins for the children: each runs until it is told how to end."""

    def __init__(self, *names: str) -> None:
        loop = asyncio.get_running_loop()
        self.endings: dict[str, asyncio.Future[None]] = {name: loop.create_future() for name in names}
        self.tasks = {name: asyncio.create_task(self._run(name), name=name) for name in names}
        self.stop: asyncio.Task[Any] = asyncio.create_task(asyncio.Event().wait())

    async def _run(self, name: str) -> None:
        await self.endings[name]

    def give_up(self, name: str, *, configured_badly: bool = False) -> None:
        self.endings[name].set_exception(ChildGaveUp(f"{name} died 10 times in a row", configured_badly=configured_badly))

    async def watched_by(self, supervisor: Supervisor) -> asyncio.Task[BaseException | None]:
        engines = {task for name, task in self.tasks.items() if name.startswith("engine")}
        watch = asyncio.create_task(supervisor._until_the_end(self.stop, set(self.tasks.values()), engines))
        await asyncio.sleep(0)
        return watch

    async def close(self) -> None:
        self.stop.cancel()
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(self.stop, *self.tasks.values(), return_exceptions=True)


async def test_the_service_goes_on_until_its_last_engine_is_given_up(listener: socket.socket) -> None:
    children = Children("engine-0", "engine-1", "api-0")
    watch = await children.watched_by(Supervisor(Settings(), listener))
    with structlog.testing.capture_logs() as lines:
        children.give_up("engine-1")
        await asyncio.wait({children.tasks["engine-1"]})
        await asyncio.sleep(0)
        assert not watch.done()
        children.give_up("engine-0")
        cause = await watch
    assert str(cause) == "engine-0 died 10 times in a row"
    assert [(line["event"], line["engines_left"]) for line in lines] == [("engine_given_up", 1)]
    await children.close()


@pytest.mark.parametrize(("name", "configured_badly"), [("api-0", False), ("engine-0", True)])
async def test_without_an_api_worker_or_with_a_bad_configuration_it_ends(
    listener: socket.socket, name: str, configured_badly: bool
) -> None:
    children = Children("engine-0", "engine-1", "api-0")
    watch = await children.watched_by(Supervisor(Settings(), listener))
    children.give_up(name, configured_badly=configured_badly)
    assert isinstance(await watch, ChildGaveUp)
    await children.close()


async def test_one_that_is_asked_to_end_has_no_cause(listener: socket.socket) -> None:
    children = Children("engine-0", "api-0")
    watch = await children.watched_by(Supervisor(Settings(), listener))
    children.stop.cancel()
    assert await watch is None
    await children.close()


@pytest.mark.parametrize("on_terminal", [True, False])
async def test_the_end_of_its_terminal_ends_a_service_and_renews_none(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, on_terminal: bool
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: on_terminal and fd == 0)
    supervisor = Supervisor(Settings(), listener)
    supervisor.request_renewal()
    assert (supervisor._stop_requested.is_set(), supervisor._renewal_requested.is_set()) == (on_terminal, not on_terminal)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def answer(device: str) -> list[Gpu]:
        asked.append(device)
        return TWO

    monkeypatch.setattr(module, "gpus_for_engines", answer)
    return asked


async def test_the_device_setting_decides_how_many_engines_there_are(listener: socket.socket, asked: list[str]) -> None:
    settings = Settings(inference=InferenceSettings(device="cuda"))
    assert await Supervisor(settings, listener)._gpus() == TWO
    assert asked == ["cuda"]


async def test_the_demo_which_chooses_its_model_at_the_start_has_one_engine(listener: socket.socket, asked: list[str]) -> None:
    candidates = [InferenceSettings(), InferenceSettings(model="efficientnet_lite0", weights="package:efficientnet_lite0")]
    assert await Supervisor(Settings(), listener, candidates=candidates)._gpus() == (None,)
    assert asked == []
