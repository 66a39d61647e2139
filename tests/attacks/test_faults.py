"""Parts that fail, are full or too slow, at the real gate (cases 110, 111, 115, 116, 117)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from support.held import API, ENGINE, Held, InFlight, connection_to, wait_until_ready
from support.pictures import encode
from support.service import Service


@pytest.fixture(scope="module")
def pair(start_gate: Callable[..., Service]) -> Service:
    """Two workers, and a deadline that nothing here reaches."""
    return start_gate({"LENSGATE_HTTP__WORKERS": "2", "LENSGATE_INFERENCE__DEADLINE_S": "300"})


@pytest.fixture(scope="module")
def pair_token(pair: Service) -> str:
    return pair.token(pair.create_client("faults", "predict"))


@pytest.fixture
def coffee(photographs_by_name: Mapping[str, bytes]) -> bytes:
    return photographs_by_name["coffee.png"]


def test_110_a_full_queue_is_503_with_retry_after_at_once(start_gate: Callable[..., Service], coffee: bytes) -> None:
    gate = start_gate({"LENSGATE_INFERENCE__QUEUE_SIZE": "1", "LENSGATE_INFERENCE__DEADLINE_S": "300"})
    token = gate.token(gate.create_client("full", "predict"))
    held = Held(gate, coffee, token)
    try:
        for _ in range(3):
            # The engine stands still, so nothing but a refusal at once could answer this.
            refused = gate.predict(coffee, token)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
        assert held.request.is_waiting
    finally:
        held.engine.resume()
    assert held.answer().json()["label"] == "espresso"
    assert gate.predict(coffee, token).status_code == 200


def test_111_what_waits_past_its_deadline_is_504_and_is_never_run(start_gate: Callable[..., Service], coffee: bytes) -> None:
    gate = start_gate({"LENSGATE_INFERENCE__DEADLINE_S": "5"})
    token = gate.token(gate.create_client("late", "predict"))
    (engine,) = gate.children(ENGINE)

    def batch(pictures: int) -> list[int]:
        """The statuses of so many pictures in one request."""
        files = [("file", ("x", coffee, "image/png"))] * pictures
        answer = httpx.post(f"{gate.url}/predict/batch", files=files, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        return [one["error"]["status"] if "error" in one else 200 for one in answer.json()["results"]]

    before_s = cpu_s(engine)
    assert batch(4) + batch(4) == [200] * 8
    live_s = cpu_s(engine) - before_s
    engine.suspend()
    try:
        single = InFlight(gate, coffee, token)
        with ThreadPoolExecutor(3) as callers:
            assert list(callers.map(batch, [16] * 3)) == [[504] * 16] * 3
        late = single.wait()
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        before_s = cpu_s(engine)
    finally:
        engine.resume()
    # It comes to the engine behind the late ones: once it is answered, they are gone, and it shared its batch with none of them.
    after = len(gate.log)
    assert gate.predict(coffee, token).json()["label"] == "espresso"
    assert gate.wait_for("request", after=after, route="/predict")["batch_size"] == 1
    assert cpu_s(engine) - before_s < live_s * 3, "half of the 49 late ones cost more than that"


def cpu_s(process: psutil.Process) -> float:
    """The CPU seconds that it has used."""
    return sum(process.cpu_times()[:2])


def test_115_a_killed_api_worker_comes_back_while_the_other_serves(pair: Service, pair_token: str, coffee: bytes) -> None:
    victim, other = pair.children(API)
    after = len(pair.log)
    victim.kill()
    for _ in range(10):
        assert pair.get("/livez").status_code == 200
        assert pair.predict(coffee, pair_token).status_code == 200
    assert pair.wait_for("child_died", after=after)["exit_code"] == -9
    pair.wait_for("worker_serving", after=after)
    (back,) = [worker for worker in pair.children(API) if worker.pid != other.pid]
    assert back.pid != victim.pid
    with connection_to(pair, back) as http:
        wait_until_ready(http)
        assert http.get("/models", headers={"Authorization": f"Bearer {pair_token}"}).status_code == 200


def test_116_what_a_killed_engine_held_is_503_at_once_and_the_engine_comes_back(pair: Service, pair_token: str, coffee: bytes) -> None:
    workers = pair.children(API)
    with connection_to(pair, workers[0]) as http:
        wait_until_ready(http)
        held = Held(pair, coffee, pair_token, worker=workers[0], http=http)
        behind = [InFlight(pair, coffee, pair_token) for _ in range(5)]
        after = len(pair.log)
        held.engine.kill()
        for request in (held.request, *behind):
            answer = request.wait()
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert int(answer.headers["retry-after"]) >= 1
    assert not [line for line in pair.log[after:] if line["event"] == "engine_ready"], "not at once: the engine is back already"
    assert pair.get("/readyz").status_code == 503
    assert pair.get("/livez").status_code == 200
    pair.wait_ready(after=after)
    for worker in workers:
        with connection_to(pair, worker) as http:
            wait_until_ready(http)
    assert pair.predict(coffee, pair_token).json()["label"] == "espresso"
    assert [worker.pid for worker in pair.children(API)] == [worker.pid for worker in workers]


@contextmanager
def full_disk(service: Service) -> Iterator[None]:
    """No process of the service can write one byte to any file (setrlimit(2), RLIMIT_FSIZE): a full disk, for the unprivileged."""
    family = psutil.Process(service.process.pid).children(recursive=True)
    former = [process.rlimit(psutil.RLIMIT_FSIZE) for process in family]
    for process, (_, hard) in zip(family, former, strict=True):
        process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        assert all(process.rlimit(psutil.RLIMIT_FSIZE)[0] == 0 for process in family)
        yield
    finally:
        for process, limits in zip(family, former, strict=True):
            process.rlimit(psutil.RLIMIT_FSIZE, limits)


def test_117_uploads_work_while_the_disk_is_full(gate: Service) -> None:
    client = gate.create_client("full-disk", "predict")
    noise = np.random.default_rng(7).integers(0, 256, (1500, 1500, 3), np.uint8)
    picture = encode(Image.fromarray(noise), "PNG", compress_level=0)  # 6.8 MB: far past what parsers keep in memory by default
    with full_disk(gate):
        token = gate.token(client)
        bearer = {"Authorization": f"Bearer {token}"}
        answers = [
            gate.predict(picture, token),
            httpx.post(f"{gate.url}/predict", files={"file": ("noise.png", picture)}, headers=bearer, timeout=60),
            httpx.post(f"{gate.url}/predict", json={"image": base64.b64encode(picture).decode()}, headers=bearer, timeout=60),
            httpx.post(f"{gate.url}/predict/batch", files=[("file", ("noise.png", picture))], headers=bearer, timeout=60),
        ]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert "predictions" in answers[3].json()["results"][0]
