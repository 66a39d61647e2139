"""The thread that writes the log, against real pipes, disks and processes. tests/e2e/test_log_stalls.py does it to a whole service."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.log_writer import LogWriter

WAIT_S = 10.0


def _run(program: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False)


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.holds_bytes = fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4096)

    def is_empty(self) -> bool:
        return not select.select([self.read_end], [], [], 0)[0]

    def read_lines(self, count: int) -> list[str]:
        """So many lines, as soon as they are there."""
        data = b""
        while data.count(b"\n") < count:
            data += os.read(self.read_end, 65536)
        return data.decode().splitlines(keepends=True)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for end in (pipe.read_end, pipe.write_end):
        os.close(end)


def test_lines_come_in_order_from_whatever_thread(pipe: Pipe) -> None:
    writer = LogWriter(pipe.write_end)
    threads = [threading.Thread(target=lambda n=n: [writer.write(f"{n} {i}\n") for i in range(500)]) for n in range(4)]
    for thread in threads:
        thread.start()
    lines = pipe.read_lines(2000)
    for n in range(4):
        assert [line for line in lines if line.startswith(f"{n} ")] == [f"{n} {i}\n" for i in range(500)]


def test_a_reader_that_has_stopped_holds_nobody_up_and_what_finds_no_room_is_counted(pipe: Pipe) -> None:
    writer = LogWriter(pipe.write_end, max_held_characters=10_000)
    dropped: list[int] = []
    writer.on_drops(count=dropped.append)
    line = "x" * 99 + "\n"
    for _ in range(1000):  # it would wait for ever here
        writer.write(line)
    assert len(dropped) == sum(dropped) >= 1000 - (10_000 + 2 * 4096) // len(line)  # one write is under way
    assert len(pipe.read_lines(1000 - sum(dropped))) == 1000 - sum(dropped)


def test_when_the_reader_is_back_the_log_says_how_many_lines_are_missing_and_goes_on(pipe: Pipe) -> None:
    writer = LogWriter(pipe.write_end, max_held_characters=10_000)
    told: list[int] = []

    def tell(lines: int) -> None:
        told.append(lines)
        writer.write(f"{lines} are missing\n")

    writer.on_drops(tell=tell)
    for number in range(1000):
        writer.write(f"{number:99}\n")
    assert told == []
    lines = pipe.read_lines(1)
    while not lines[-1].endswith("missing\n"):
        lines += pipe.read_lines(1)
    assert len(told) == 1
    assert len(lines) - 1 + told[0] == 1000
    writer.write("after\n")
    assert pipe.read_lines(1) == ["after\n"]


def test_there_is_always_room_for_how_many_lines_are_missing(pipe: Pipe) -> None:
    writer = LogWriter(pipe.write_end, max_held_characters=10_000)
    writer.on_drops(tell=lambda lines: writer.write(f"{lines} are missing\n"))
    while pipe.is_empty():
        writer.write("x" * 99 + "\n")
    for _ in range(1000):
        writer.write("x" * 99 + "\n")  # until there is no room for these either
        writer.write("\n")
    lines = [""]
    while not lines[-1].endswith("missing\n"):
        lines = pipe.read_lines(1)


def test_what_is_dropped_just_after_the_log_has_said_so_is_said_by_and_by(pipe: Pipe) -> None:
    writer = LogWriter(pipe.write_end, max_held_characters=10)
    told: queue.Queue[int] = queue.Queue()

    def tell(lines: int) -> None:
        if told.empty():
            other = threading.Thread(target=writer.write, args=("longer than ten\n",))
            other.start()
            other.join(WAIT_S)
        told.put(lines)

    writer.on_drops(tell=tell)
    for _ in range(3):
        writer.write("longer than ten\n")
    writer.write("short\n")
    assert told.get(timeout=WAIT_S) == 3
    assert told.get(timeout=WAIT_S) == 1


def test_what_was_dropped_before_anybody_counted_is_counted(pipe: Pipe) -> None:
    writer = LogWriter(pipe.write_end, max_held_characters=10)
    writer.write("longer than ten\n")
    counted: list[int] = []
    writer.on_drops(count=counted.append)
    assert counted == [1]


def test_every_line_is_dropped_and_counted_while_the_disk_is_full() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = LogWriter(descriptor)
        dropped: list[int] = []
        writer.on_drops(count=dropped.append)
        for _ in range(100):
            writer.write("x\n")
        assert writer.drain(WAIT_S)
        assert sum(dropped) == 100
    finally:
        os.close(descriptor)


def test_a_pipe_without_a_reader_drops_and_counts() -> None:
    pipe = Pipe()
    os.close(pipe.read_end)
    try:
        writer = LogWriter(pipe.write_end)
        dropped: list[int] = []
        writer.on_drops(count=dropped.append)
        writer.write("x\n")
        assert writer.drain(WAIT_S)
        assert dropped == [1]
    finally:
        os.close(pipe.write_end)


def test_a_pipe_that_somebody_made_non_blocking_gets_every_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_end, False)
    writer = LogWriter(pipe.write_end)
    for number in range(500):
        writer.write(f"{number:99}\n")
    assert pipe.read_lines(500) == [f"{number:99}\n" for number in range(500)]


_FILLS_UP = """
import resource, sys
from api.log_writer import LogWriter
writer = LogWriter(1)
dropped = []
writer.on_drops(count=dropped.append)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (25, hard))   # the kernel takes half of the third line, and no more
for text in ("1 whole\\n", "2 whole\\n", "3 torn in two\\n", "4 lost\\n"):
    writer.write(text)
    assert writer.drain(10)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # there is room again
writer.write("5 whole\\n")
assert writer.drain(10)
sys.stderr.write(str(sum(dropped)))
"""


def test_a_line_that_a_full_disk_has_torn_does_not_swallow_the_next(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        run = _run(_FILLS_UP, file.fileno())
    assert log.read_text() == "1 whole\n2 whole\n3 torn in\n5 whole\n"
    assert run.stderr == "2"


_SHARES = """
import sys
from api.log_writer import LogWriter
writer = LogWriter(1)
for number in range(5000):
    writer.write(f"{sys.argv[1]} {number:90}\\n")
assert writer.drain(30)
"""


def test_processes_that_share_a_file_write_whole_lines_into_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        writers = [subprocess.Popen([sys.executable, "-c", _SHARES, name], stdout=file) for name in ("a", "b", "c")]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = log.read_text().splitlines()
    for name in ("a", "b", "c"):
        assert [line for line in lines if line.startswith(f"{name} ")] == [f"{name} {number:90}" for number in range(5000)]
    assert len(lines) == 15_000


_ENDS = """
import os, sys, threading
from api.log import configure_logging
import structlog
configure_logging("info", "json", process="test")
for number in range(3000):
    structlog.get_logger().info("line", number=number)
{end}
"""


@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(3)", "raise ValueError('the end')"],
    ids=["falls off the end", "exits", "dies of an exception"],
)
def test_the_last_lines_of_a_process_are_written(end: str) -> None:
    run = _run(_ENDS.format(end=end))
    lines = run.stdout.splitlines()
    assert [line for line in lines if '"line"' in line][-1].endswith('"number":2999}')
    assert len(lines) == 3000 + end.startswith("raise")
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("end", "where"),
    [
        ("raise ValueError('a\\nb')", "main"),
        ("t = threading.Thread(target=lambda: [][1], name='worker'); t.start(); t.join()", "worker"),
        ("class Bad:\n    def __del__(self): [][1]\nBad()", "Bad.__del__"),
    ],
)
def test_what_nobody_catches_is_a_line_like_every_other(end: str, where: str) -> None:
    run = _run(_ENDS.format(end=end))
    (line,) = [line for line in run.stdout.splitlines() if '"uncaught_exception"' in line]
    assert '"level":"error"' in line
    assert json.loads(line)["where"] == where
    assert run.stderr == ""


def test_a_process_whose_reader_has_stopped_ends_all_the_same(pipe: Pipe) -> None:
    run = _run(_ENDS.format(end=""), pipe.write_end)
    assert (run.returncode, run.stderr) == (0, "")
