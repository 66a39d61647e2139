"""What runs, what it holds and how it ends. What happens when a part of it dies is in tests/attacks (cases 115 and 116)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping

import psutil
import pytest

from inference.cores import usable_cores
from support.held import API, ENGINE, Held
from support.raw_http import RawConnection
from support.service import Service

MAX_WORKER_BYTES = 150 * 1024 * 1024


def test_no_api_worker_has_torch_mapped_and_each_is_small(service: Service, photographs_by_name: Mapping[str, bytes]) -> None:
    token = service.token(service.create_client("memory", "predict"))
    for _ in range(20):
        assert service.predict(photographs_by_name["chelsea.png"], token).status_code == 200
    workers = service.children(API)
    assert len(workers) == 2
    for worker in workers:
        assert not [mapped.path for mapped in worker.memory_maps() if "torch" in mapped.path]
        assert worker.memory_info().rss < MAX_WORKER_BYTES
    # The check can fail: the engine has it.
    (engine,) = service.children(ENGINE)
    assert [mapped.path for mapped in engine.memory_maps() if "torch" in mapped.path]


def test_clients_that_come_at_once_and_stay_are_spread_over_the_workers(service: Service) -> None:
    with served_connections(service, 48) as taken:
        few, many = sorted(taken.values())
        assert few + many == 48
        assert many - few <= 8  # a few and a sixteenth, and whoever else was here a moment ago


def test_a_worker_that_stands_still_keeps_nobody_waiting(service: Service) -> None:
    halted, other = service.children(API)
    halted.suspend()
    try:
        with served_connections(service, 48) as taken:
            assert taken == {halted.pid: 0, other.pid: 48}
    finally:
        halted.resume()


@contextlib.contextmanager
def served_connections(service: Service, count: int) -> Iterator[dict[int, int]]:
    """So many connections, opened at once and answered on; how many of them each worker has."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(service.url)) for _ in range(count)]
        for connection in connections:
            connection.request("GET", "/livez")
        assert {connection.answer().status for connection in connections} == {200}
        ports = {connection.socket.getsockname()[1] for connection in connections}
        yield {
            worker.pid: sum(bool(taken.raddr) and taken.raddr.port in ports for taken in worker.net_connections())
            for worker in service.children(API)
        }


def test_it_is_alive_before_it_is_ready_and_says_what_it_is_doing(start_service: Callable[..., Service]) -> None:
    service = start_service()
    service.wait_for("worker_serving")
    assert service.get("/livez").status_code == 200
    refused = service.get("/readyz")
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert refused.json()["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    assert service.get("/healthz").json() == {"status": "unavailable", "gpu": False}
    token = service.token(service.create_client("early", "predict"))
    early = service.predict(b"\x89PNG\r\n\x1a\n", token)
    assert (early.status_code, early.json()["code"]) == (503, "not_ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_code_0_and_leaves_nothing_behind(start_service: Callable[..., Service], number: signal.Signals) -> None:
    service = start_service()
    service.wait_ready()
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert len(family) == 2 + usable_cores()  # an engine, a worker and its decoders
    service.process.send_signal(number)
    assert service.process.wait(60) == 0
    assert [member for member in family if member.is_running()] == []
    left = sorted(path.name for path in service.folder.iterdir())
    assert left == ["keys", "lensgate.db"]
    assert "Traceback" not in "".join(service.raw_log)


def test_its_children_end_when_it_is_killed(start_service: Callable[..., Service]) -> None:
    service = start_service()
    service.wait_ready()
    family = psutil.Process(service.process.pid).children(recursive=True)
    service.process.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_a_predict_in_flight_at_sigterm_is_answered(
    start_service: Callable[..., Service], photographs_by_name: Mapping[str, bytes]
) -> None:
    service = start_service()
    service.wait_ready()
    token = service.token(service.create_client("drain", "predict"))
    held = Held(service, photographs_by_name["coffee.png"], token)
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("stopping", reason="requested")
    held.engine.resume()
    assert held.answer().json()["label"] == "espresso"
    assert service.process.wait(60) == 0
