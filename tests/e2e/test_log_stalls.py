"""A whole service whose log goes nowhere: its requests are answered as ever, what is lost is counted, and the log goes on when it can."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from api.log_writer import MAX_HELD_CHARACTERS
from support.scrape import answered, scraper
from support.service import PACKAGED, Service

_SETTINGS = {"LENSGATE_HTTP__ADDRESS_LIMIT": "1000000/minute"}
_LONG_PATH = "/" + "a" * 255
_TOO_MUCH = MAX_HELD_CHARACTERS + 512 * 1024
"""More than the writer's memory, a pipe and the test's own buffer take together."""


def _request(connection: http.client.HTTPConnection, path: str) -> int:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status


def test_requests_are_answered_while_nobody_reads_the_log_and_it_goes_on_afterwards(start_service: Callable[..., Service]) -> None:
    service = start_service(_SETTINGS)
    service.wait_for("worker_serving")
    scrape = scraper(service)
    assert scrape()("lensgate_log_drops_total") == 0
    first = service.get(_LONG_PATH)
    answered(service, first)
    line_characters = next(len(raw) for raw in service.raw_log if first.headers["x-request-id"] in raw)

    service.log_is_read.clear()
    host, port = service.url.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=30)) as connection:
        for _ in range(_TOO_MUCH // line_characters):
            assert _request(connection, _LONG_PATH) == 401
    assert service.get("/livez").status_code == 200
    dropped = scrape()("lensgate_log_drops_total")
    assert dropped > 0

    after = len(service.log)
    service.log_is_read.set()
    missing = service.wait_for("log_lines_dropped", after=after)
    assert missing["process"] == "api-0"
    assert missing["lines"] >= dropped
    answered(service, service.get("/livez"))


@pytest.fixture
def on_a_full_disk(tmp_path: Path) -> Iterator[Service]:
    """A service whose standard output is a full disk."""
    service = Service(tmp_path, PACKAGED | _SETTINGS)
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "api.cli", "serve"]
        process = subprocess.Popen(command, cwd=tmp_path, env=service.environment, stdout=full)
    service.url = f"http://127.0.0.1:{_port(process)}"
    yield service
    process.terminate()
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()


def _port(process: subprocess.Popen[bytes]) -> int:
    """Where it listens: nobody can read it in the log."""
    deadline_s = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline_s:
        listening = [one.laddr.port for one in psutil.Process(process.pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        if listening:
            return int(listening[0])
    raise AssertionError("it does not listen")


def test_a_full_disk_under_the_log_stops_no_request_and_every_lost_line_is_counted(on_a_full_disk: Service) -> None:
    scrape = scraper(on_a_full_disk)
    before = scrape()("lensgate_log_drops_total")
    assert [on_a_full_disk.get("/livez").status_code for _ in range(20)] == [200] * 20
    after = scrape()("lensgate_log_drops_total")
    # Their lines, and that of the first scrape; the lines of the engine, which is starting, may be among them.
    assert after - before >= 20
