"""What runs, what it holds, how it ends, and what happens when a part of it dies."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping

import httpx
import psutil
import pytest

from support.service import Service

API, ENGINE = "api.worker_process", "api.engine_process"
MAX_WORKER_BYTES = 150 * 1024 * 1024
CROP_BYTES = 224 * 224 * 3


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
    assert len(family) == 2
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


def test_a_request_held_by_a_killed_engine_gets_503_at_once_and_the_engine_comes_back(
    start_service: Callable[..., Service], photographs_by_name: Mapping[str, bytes]
) -> None:
    service = start_service({"LENSGATE_INFERENCE__DEADLINE_S": "300"})
    service.wait_ready()
    token = service.token(service.create_client("held", "predict"))
    picture = photographs_by_name["coffee.png"]
    held = Held(service, picture, token)
    after = len(service.log)
    held.engine.kill()
    answer = held.answer()
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) >= 1
    assert service.get("/readyz").status_code == 503
    service.wait_ready(after=after)
    assert service.predict(picture, token).json()["label"] == "espresso"


def test_a_killed_api_worker_comes_back_while_the_other_serves(service: Service) -> None:
    victim = service.children(API)[0]
    after = len(service.log)
    victim.kill()
    for _ in range(20):
        assert service.get("/livez").status_code == 200
    service.wait_for("child_died", after=after)
    service.wait_for("worker_serving", after=after)
    assert len(service.children(API)) == 2


def test_a_predict_in_flight_at_sigterm_is_answered(
    start_service: Callable[..., Service], photographs_by_name: Mapping[str, bytes]
) -> None:
    service = start_service()
    service.wait_ready()
    token = service.token(service.create_client("drain", "predict"))
    held = Held(service, photographs_by_name["coffee.png"], token)
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("stopping")
    held.engine.resume()
    assert held.answer().json()["label"] == "espresso"
    assert service.process.wait(60) == 0


class Held:
    """A /predict whose pixels lie in the socket of a stopped engine: it is in flight for as long as the test wants."""

    def __init__(self, service: Service, picture: bytes, token: str) -> None:
        (self.engine,) = service.children(ENGINE)
        (worker,) = service.children(API)
        self.engine.suspend()
        self._answers: list[httpx.Response] = []
        written = worker.io_counters().write_chars
        self._caller = threading.Thread(target=lambda: self._answers.append(service.predict(picture, token)))
        self._caller.start()
        deadline_s = time.monotonic() + 30
        while worker.io_counters().write_chars - written < CROP_BYTES:
            assert time.monotonic() < deadline_s, "the picture never reached the engine"

    def answer(self) -> httpx.Response:
        self._caller.join(60)
        return self._answers[0]
