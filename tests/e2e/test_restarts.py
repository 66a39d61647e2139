"""Restarts under load: of API workers by SIGHUP, and of whole services behind a proxy. What was sent in full is served.

Twenty of each: RESTARTS=20 pytest tests/e2e/test_restarts.py
"""

from __future__ import annotations

import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from support.held import API, ENGINE
from support.load import Load
from support.pictures import encode, gradient
from support.service import PACKAGED, Service
from support.stub_engine import sitecustomize as stub
from support.tcp_proxy import TcpProxy

RESTARTS = int(os.environ.get("RESTARTS", "1"))
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
    with Service(tmp_path, SETTINGS | {"LENSGATE_HTTP__WORKERS": "2"}) as service:
        service.wait_ready()
        engines = service.children(ENGINE)
        with loaded(service, service.url) as loads, probed(service, service.url):
            for _ in range((RESTARTS + 1) // 2):  # each is the restart of two workers
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


class OverTls:
    """A service with a certificate that can be renewed."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._path = folder / "tls.pem"
        self.certificate = self.renew_certificate()
        settings = {"LENSGATE_HTTP__TLS_CERT": str(self._path), "LENSGATE_HTTP__TLS_KEY": str(self._path)}
        self.service = Service(folder, SETTINGS | settings)

    def renew_certificate(self) -> bytes:
        """The new one, in DER."""
        made = self._authority.issue_cert("127.0.0.1")
        made.private_key_and_cert_chain_pem.write_to_path(self._path)
        return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    def served_certificate(self) -> bytes:
        """What a new connection is shown, in DER."""
        parts = urlsplit(self.service.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((parts.hostname, parts.port), timeout=30))


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OverTls]:
    one = OverTls(tmp_path_factory.mktemp("over-tls"))
    with one.service:
        one.service.wait_for("worker_serving")
        yield one


def test_a_renewed_certificate_is_served_after_sighup(over_tls: OverTls) -> None:
    service = over_tls.service
    assert over_tls.served_certificate() == over_tls.certificate
    renewed, after = over_tls.renew_certificate(), len(service.log)
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("workers_renewed", after=after)
    assert over_tls.served_certificate() == renewed != over_tls.certificate


def test_a_certificate_that_is_half_written_is_named_and_the_old_one_stays(over_tls: OverTls) -> None:
    service = over_tls.service
    served, former, after = over_tls.served_certificate(), service.children(API), len(service.log)
    path = service.folder / "tls.pem"
    whole = path.read_text()
    path.write_text(whole[: whole.index("BEGIN CERTIFICATE") + 300])
    service.process.send_signal(signal.SIGHUP)
    said = service.wait_for("workers_not_renewed", after=after)
    assert said["reason"] == f"LENSGATE_HTTP__TLS_CERT: {path} is no PEM certificate, or a damaged one"
    assert said["effect"] == "the old certificate stays in use"
    assert service.children(API) == former
    assert over_tls.served_certificate() == served
    # The next one is taken.
    renewed = over_tls.renew_certificate()
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("workers_renewed", after=after)
    assert over_tls.served_certificate() == renewed


def test_a_worker_that_dies_while_its_certificate_is_broken_says_so_and_comes_back_when_it_is_whole(over_tls: OverTls) -> None:
    service = over_tls.service
    (worker,) = service.children(API)
    after = len(service.log)
    path = service.folder / "tls.pem"
    path.write_text("half")
    worker.kill()
    said = service.wait_for("start_failed", after=after)
    assert said["reason"] == f"LENSGATE_HTTP__TLS_CERT: {path} is no PEM certificate, or a damaged one"
    repaired, after = over_tls.renew_certificate(), len(service.log)
    service.wait_for("worker_serving", after=after)
    assert over_tls.served_certificate() == repaired
    assert "Traceback" not in "".join(service.raw_log)


def test_a_worker_that_cannot_start_stops_the_renewal_and_the_former_ones_go_on(over_tls: OverTls) -> None:
    service = over_tls.service
    former, after = service.children(API), len(service.log)
    served = over_tls.served_certificate()
    for key in (service.folder / "keys").iterdir():
        key.unlink()
    service.process.send_signal(signal.SIGHUP)
    assert service.wait_for("child_not_renewed", after=after)["exit_code"] == 78
    assert service.children(API) == former
    assert over_tls.served_certificate() == served
