"""One child of the supervisor, as a real process: configured by its pipe, started again, given up, ended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import structlog

from api import children
from api.child_process import ChildProcess
from api.children import EXIT_CONFIGURATION, Child, ChildGaveUp

Write = Callable[[str], None]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the module `child_under_test`, in a folder where children find it and where they run."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    monkeypatch.chdir(tmp_path)

    def write(source: str) -> None:
        (tmp_path / "child_under_test.py").write_text(source)

    return write


def make_child(pids: asyncio.Queue[int], config: object = None, *, stuck_after_s: float = 60) -> Child:
    return Child("child", "child_under_test", {"value": config}, stuck_after_s=stuck_after_s, on_start=pids.put_nowait)


async def test_a_child_reads_its_configuration_and_ends_when_the_supervisors_end_of_the_pipe_closes(
    write_module: Write, tmp_path: Path
) -> None:
    write_module(
        "import json, threading\n"
        "from api.child_config import read_config, when_supervisor_dies\n"
        "config = read_config()\n"
        "ended = threading.Event()\n"
        "when_supervisor_dies(ended.set)\n"
        "open('config', 'w').write(json.dumps(config))\n"
        "ended.wait()\n"
        "open('ended', 'w').close()\n"
    )
    large = "x" * 300_000  # more than a pipe holds: the child reads while the parent writes
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "child_under_test", stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"value": large}).encode() + b"\n")
    await process.stdin.drain()
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert json.loads((tmp_path / "config").read_text()) == {"value": large}
    assert (tmp_path / "ended").exists()


async def test_a_child_that_dies_is_started_again_with_the_same_configuration(write_module: Write, tmp_path: Path) -> None:
    write_module("import sys, time\nopen('lines', 'a').write(sys.stdin.readline())\ntime.sleep(1000)\n")
    pids: asyncio.Queue[int] = asyncio.Queue()
    child = make_child(pids, "secret")
    keeper = asyncio.create_task(child.keep())
    first = await asyncio.wait_for(pids.get(), 60)
    await _until(lambda: (tmp_path / "lines").exists() and (tmp_path / "lines").stat().st_size > 0)
    assert psutil.Process(first).cmdline()[-2:] == ["child_under_test", child.name]  # for people who look at `ps`
    assert "secret" not in " ".join(psutil.Process(first).cmdline())
    assert "secret" not in "".join(psutil.Process(first).environ().values())
    psutil.Process(first).kill()
    second = await asyncio.wait_for(pids.get(), 60)
    assert second != first
    await _until(lambda: len((tmp_path / "lines").read_text().splitlines()) == 2)
    assert [json.loads(line)["value"] for line in (tmp_path / "lines").read_text().splitlines()] == ["secret"] * 2
    child.stop()
    await asyncio.wait_for(keeper, 60)
    assert not psutil.pid_exists(second)


async def test_a_child_that_is_configured_badly_is_not_started_again(write_module: Write) -> None:
    write_module(f"raise SystemExit({EXIT_CONFIGURATION})\n")
    pids: asyncio.Queue[int] = asyncio.Queue()
    with pytest.raises(ChildGaveUp) as gave_up:
        await asyncio.wait_for(make_child(pids).keep(), 60)
    assert gave_up.value.configured_badly
    assert pids.qsize() == 1


async def test_a_child_that_keeps_dying_is_given_up_loudly(write_module: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_BACK_OFF_MAX_S", 0.01)
    monkeypatch.setattr(children, "_MAX_DEATHS", 3)
    write_module("raise SystemExit(1)\n")
    pids: asyncio.Queue[int] = asyncio.Queue()
    with pytest.raises(ChildGaveUp, match="child died 3 times in 1 minutes") as gave_up:
        await asyncio.wait_for(make_child(pids).keep(), 60)
    assert not gave_up.value.configured_badly
    assert pids.qsize() == 3


@pytest.mark.parametrize(("minutes_between", "given_up_after"), [(6.5, 10), (6.8, None)])
async def test_deaths_are_counted_within_an_hour_however_long_each_life_was(
    monkeypatch: pytest.MonkeyPatch, minutes_between: float, given_up_after: int | None
) -> None:
    clock_s = 0.0
    monkeypatch.setattr(children, "_BACK_OFF_MAX_S", 0.0)
    monkeypatch.setattr("api.children.time.monotonic", lambda: clock_s)
    child = make_child(asyncio.Queue())

    async def deaths_until_given_up() -> int | None:
        nonlocal clock_s
        for deaths in range(1, 31):
            clock_s += 60 * minutes_between
            try:
                await child._pause(1)
            except ChildGaveUp:
                return deaths
        return None

    assert await deaths_until_given_up() == given_up_after


SERVES = (
    "import os, signal, sys, time\n"
    "from api.child_config import read_config\n"
    "from api.pulse import Pulse\n"
    "config = read_config()\n"
    "pulse = Pulse(config['pulse'])\n"
    "open(config['name'], 'w').close()\n"
    "while True:\n"
    "    pulse.beat(serving=True)\n"
    "    time.sleep(0.2)\n"
)


async def test_a_child_that_falls_silent_is_killed_and_started_again(write_module: Write) -> None:
    write_module(SERVES)
    pids: asyncio.Queue[int] = asyncio.Queue()
    child = make_child(pids, stuck_after_s=2)
    keeper = asyncio.create_task(child.keep())
    first = await asyncio.wait_for(pids.get(), 60)
    await _until(lambda: child._current is not None and child._current.serving.is_set())
    with structlog.testing.capture_logs() as lines:
        psutil.Process(first).suspend()
        assert await asyncio.wait_for(pids.get(), 60) != first
    assert [(line["event"], line["child"]) for line in lines if line["log_level"] == "error"] == [
        ("child_silent", "child"),
        ("child_died", "child"),
    ]
    child.stop()
    await asyncio.wait_for(keeper, 60)


async def test_a_child_is_renewed_as_soon_as_its_successor_serves_and_not_before(write_module: Write, tmp_path: Path) -> None:
    write_module(SERVES)
    pids: asyncio.Queue[int] = asyncio.Queue()
    child = make_child(pids)
    keeper = asyncio.create_task(child.keep())
    first = await asyncio.wait_for(pids.get(), 60)
    await _until(lambda: child._current is not None and child._current.serving.is_set())
    ended: list[bool] = []
    assert child._current is not None
    child._current.ended.add_done_callback(lambda _: ended.append((tmp_path / "other").exists()))
    assert await asyncio.wait_for(child.renew("other", grace_s=30), 60)
    assert ended == [True]
    assert child.name == "other"
    second = pids.get_nowait()
    assert (psutil.pid_exists(first), psutil.pid_exists(second)) == (False, True)
    # Its end was asked for: nothing is started in its place. The death of the successor is one like any other.
    psutil.Process(second).kill()
    third = await asyncio.wait_for(pids.get(), 60)
    child.stop()
    await asyncio.wait_for(keeper, 60)
    assert not psutil.pid_exists(third)


async def test_no_name_is_free_while_another_process_with_it_is_being_started(write_module: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_BACK_OFF_MIN_S", 0.0)
    write_module(SERVES)
    pids: asyncio.Queue[int] = asyncio.Queue()
    child = make_child(pids)
    keeper = asyncio.create_task(child.keep())
    first = await asyncio.wait_for(pids.get(), 60)
    start, being_started, go_on = child._start, asyncio.Event(), asyncio.Event()

    async def start_slowly(name: str, *, planned: bool = False) -> ChildProcess:
        process = await start(name, planned=planned)
        if not being_started.is_set():
            being_started.set()
            await go_on.wait()
        return process

    monkeypatch.setattr(child, "_start", start_slowly)
    psutil.Process(first).kill()
    await asyncio.wait_for(being_started.wait(), 60)
    renewal = asyncio.create_task(child.renew("other", grace_s=30))
    await asyncio.wait({renewal}, timeout=1)  # longer than a successor takes to serve
    go_on.set()
    assert await asyncio.wait_for(renewal, 60)
    assert [process.name for process in child._living] == ["other"]
    child.stop()
    await asyncio.wait_for(keeper, 60)


async def test_a_successor_that_cannot_serve_leaves_the_former_one_in_its_place(write_module: Write) -> None:
    write_module(SERVES.replace("while True:", "while config['name'] == 'child':"))
    pids: asyncio.Queue[int] = asyncio.Queue()
    child = make_child(pids)
    keeper = asyncio.create_task(child.keep())
    first = await asyncio.wait_for(pids.get(), 60)
    assert not await asyncio.wait_for(child.renew("other", grace_s=30), 60)
    assert child.name == "child"
    assert psutil.pid_exists(first)
    child.stop()
    await asyncio.wait_for(keeper, 60)


async def test_stopping_during_the_pause_ends_it_at_once(write_module: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_BACK_OFF_MIN_S", 1000.0)
    monkeypatch.setattr(children, "_BACK_OFF_MAX_S", 1000.0)
    write_module("raise SystemExit(1)\n")
    pids: asyncio.Queue[int] = asyncio.Queue()
    child = make_child(pids)
    keeper = asyncio.create_task(child.keep())
    first = await asyncio.wait_for(pids.get(), 60)
    await _until(lambda: not psutil.pid_exists(first))
    child.stop()
    await asyncio.wait_for(keeper, 60)
    assert pids.empty()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the condition is of another process
            await asyncio.sleep(0.01)
