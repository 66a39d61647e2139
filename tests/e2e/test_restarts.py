"""Restarts under load: of API workers by SIGHUP, and of whole services behind a proxy. What was sent in full is served.

Twenty of each: RESTARTS=20 pytest tests/e2e/test_restarts.py
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.held import API, ENGINE
from support.load import Load
from support.pictures import encode, gradient
from support.redis_server import redis_server
from support.service import PACKAGED, Service
from support.stub_engine import sitecustomize as stub
from support.tcp_proxy import TcpProxy

RESTARTS = int(os.environ.get("RESTARTS", "2"))
PICTURE = encode(gradient(300, 200), "PNG")
SETTINGS = {
    **PACKAGED,
    **stub.environment(seconds_per_batch=0.005),
    # The same for all, whatever their ports: a token of one is good at the next.
    "LENSGATE_SECURITY__ISSUER": "http://restarts.test",
    "LENSGATE_HTTP__ADDRESS_LIMIT": "10000000/minute",
    "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "10000000/minute", "in_flight": 64}}',
}

pytestmark = pytest.mark.timeout(120 + 60 * RESTARTS)


@contextmanager
def loaded(service: Service, url: str) -> Iterator[list[Load]]:
    """Four clients at work, two of them on kept connections. At the end each must have been served, and nothing lost."""
    token = service.token(service.create_client("load"))
    loads = [Load(service, PICTURE, token, keep_alive=number % 2 == 0, url=url) for number in range(4)]
    try:
        wait_until_each_is_served(loads)
        yield loads
        wait_until_each_is_served(loads)
    finally:
        for load in loads:
            load.end()
    assert [failure for load in loads for failure in load.failures] == []


def wait_until_each_is_served(loads: list[Load], times: int = 5) -> None:
    """Wait until each has been served so many times more."""
    before = [load.served for load in loads]
    deadline_s = time.monotonic() + 60
    while any(load.served < count + times for load, count in zip(loads, before, strict=True)):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@contextmanager
def probed(service: Service, url: str) -> Iterator[None]:
    """`/readyz` is asked all the time, and never says anything but ready."""
    ended, statuses = threading.Event(), set()

    def probe() -> None:
        while not ended.wait(0.02):
            statuses.add(service.get("/readyz").status_code)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
    assert statuses == {200}


def test_renewing_the_api_workers_loses_nothing_and_leaves_the_engine_alone(tmp_path: Path) -> None:
    with redis_server() as redis:
        several = {"LENSGATE_HTTP__WORKERS": "2", "LENSGATE_SECURITY__RATE_LIMIT_STORAGE": redis.url}
        with Service(tmp_path, SETTINGS | several) as service:
            service.wait_ready()
            engines = service.children(ENGINE)
            with loaded(service, service.url) as loads, probed(service, service.url):
                for _ in range(RESTARTS // 2):  # each is the restart of two workers
                    former, after = {worker.pid for worker in service.children(API)}, len(service.log)
                    service.process.send_signal(signal.SIGHUP)
                    service.wait_for("workers_renewed", after=after)
                    workers = service.children(API)
                    assert (len(workers), {worker.pid for worker in workers} & former) == (2, set())
                    wait_until_each_is_served(loads)
            assert service.children(ENGINE) == engines
            assert [line for line in service.log if line["event"] in {"child_died", "child_silent", "internal_error"}] == []
            metrics = service.get("/metrics", service.token(service.create_client("scraper", "metrics"))).text
            assert [line for line in metrics.splitlines() if line.startswith("lensgate_restarts_total") and not line.endswith(" 0.0")] == []
            assert service.stop() == 0


def test_restarting_whole_services_behind_a_proxy_loses_nothing(tmp_path: Path) -> None:
    service = Service(tmp_path, SETTINGS).__enter__()
    try:
        service.wait_ready()
        with TcpProxy(service.url) as proxy, loaded(service, proxy.url) as loads:
            for _ in range(RESTARTS):
                successor = Service(tmp_path, SETTINGS).__enter__()
                former, service = service, successor
                try:
                    service.wait_ready()
                    proxy.target = service.url
                finally:
                    former.process.send_signal(signal.SIGTERM)
                assert former.process.wait(60) == 0
                former.__exit__()
                wait_until_each_is_served(loads)
    finally:
        service.__exit__()


def test_a_worker_that_cannot_start_stops_the_renewal_and_the_former_ones_go_on(start_service: Callable[..., Service]) -> None:
    service = start_service(SETTINGS)
    service.wait_ready()
    (worker,) = service.children(API)
    for key in (service.folder / "keys").iterdir():
        key.unlink()
    after = len(service.log)
    service.process.send_signal(signal.SIGHUP)
    assert service.wait_for("child_not_renewed", after=after)["exit_code"] == 78
    assert service.children(API) == [worker]
    assert service.get("/livez").status_code == 200
