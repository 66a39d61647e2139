"""More than the service can hold, over real sockets: it holds its bounds, and who did not bring it about is served."""

from __future__ import annotations

import json
import select
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.pictures import encode, gradient
from support.raw_http import RawConnection
from support.scrape import scraper
from support.service import PACKAGED, Service
from support.stub_engine import sitecustomize as stub

MAX_BODY_BYTES = 256 * 1024
MAX_BODIES_BYTES = 1024 * 1024
SENT_BYTES = 190 * 1024
"""Of each upload that then stops: five fit into what there is, and two into what one client may hold of it."""
QUEUE_SIZE, LANES = 4, 2
FLOOD = 10 * (QUEUE_SIZE + LANES)
"""Callers at once: ten times what the engine can hold."""
PICTURE = encode(gradient(32, 32), "PNG")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = stub.environment(seconds_per_batch=0.01) | {
        "LENSGATE_HTTP__MAX_BODY_BYTES": str(MAX_BODY_BYTES),
        "LENSGATE_HTTP__MAX_BODIES_BYTES": str(MAX_BODIES_BYTES),
        "LENSGATE_HTTP__ADDRESS_LIMIT": "1000000/minute",
        "LENSGATE_SECURITY__TIERS": json.dumps({"standard": {"images": "1000000/minute", "in_flight": 10 * FLOOD}}),
        "LENSGATE_INFERENCE__MAX_BATCH": "1",
        "LENSGATE_INFERENCE__QUEUE_SIZE": str(QUEUE_SIZE),
    }
    with Service(tmp_path_factory.mktemp("overload"), PACKAGED | settings) as service:
        service.wait_ready()
        yield service


@pytest.fixture(scope="module")
def tokens(service: Service) -> list[str]:
    """Of three clients."""
    return [service.token(service.create_client(f"client {number}")) for number in range(3)]


def request(url: str, token: str, body: bytes, length: int | None = None) -> bytes:
    lines = ["POST /predict HTTP/1.1", f"Host: {url.removeprefix('http://')}", f"Authorization: Bearer {token}", "Content-Type: image/png"]
    return "\r\n".join([*lines, f"Content-Length: {length or len(body)}", "", ""]).encode() + body


def test_uploads_hold_no_more_memory_than_they_may_and_no_client_more_than_half(service: Service, tokens: list[str]) -> None:
    body = PICTURE + bytes(MAX_BODY_BYTES - len(PICTURE))
    with ExitStack() as stack:
        uploads = [stack.enter_context(RawConnection(service.url)) for _ in range(60)]
        for number, upload in enumerate(uploads):
            upload.send(request(service.url, tokens[number % 3], body[:SENT_BYTES], MAX_BODY_BYTES))
        deadline_s = time.monotonic() + 30
        while True:
            answered = select.select([upload.socket for upload in uploads], [], [], 0.05)[0]
            held = [(number % 3, upload) for number, upload in enumerate(uploads) if upload.socket not in answered]
            of_clients = Counter(client for client, _ in held)
            if max(of_clients.values()) <= 2 and len(held) <= 5:
                break
            assert time.monotonic() < deadline_s, f"{len(answered)} of {len(uploads)} were refused"
        # What still arrives takes room, too, until it finds none: so it may be one less.
        assert len(held) >= 4
        refused = [upload for upload in uploads if upload.socket in answered]
        for upload in refused:
            answer = upload.answer()
            assert (answer.status, answer.problem()["code"]) == (503, "overloaded")
            assert int(answer.header("retry-after")) >= 1
        assert service.get("/livez").status_code == 200
        # What was let in is served to its end, and then there is room again.
        for _, upload in held:
            upload.send(body[SENT_BYTES:])
            assert upload.answer().status == 200
    assert service.predict(body, tokens[0]).status_code == 200


class Flood:
    """Callers of one client, each asking again at once. `statuses`: how often they got which."""

    def __init__(self, service: Service, token: str, callers: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._data = request(service.url, token, PICTURE)
        self._url = service.url
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        with RawConnection(self._url) as connection:
            while not self._ended.is_set():
                connection.send(self._data)
                self.statuses[connection.answer().status] += 1

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)


def test_a_flood_of_ten_times_capacity_is_refused_and_nobody_else_is(service: Service, tokens: list[str]) -> None:
    flood = Flood(service, tokens[0], FLOOD)
    try:
        deadline_s = time.monotonic() + 30
        while flood.statuses[503] < FLOOD or flood.statuses[200] < FLOOD:
            assert time.monotonic() < deadline_s, flood.statuses
            time.sleep(0.01)
        with RawConnection(service.url) as connection:
            data = request(service.url, tokens[1], PICTURE)
            statuses: Counter[int] = Counter()
            for _ in range(30):
                connection.send(data)
                statuses[connection.answer().status] += 1
    finally:
        flood.end()
    assert statuses == {200: 30}
    assert set(flood.statuses) == {200, 503}


def test_a_queue_and_its_end_are_seen_in_the_metrics(service: Service, tokens: list[str]) -> None:
    scrape = scraper(service)

    def wait_for(names: tuple[str, ...], *, zero: bool) -> None:
        deadline_s = time.monotonic() + 30
        while any((scrape()(name) == 0) != zero for name in names):
            assert time.monotonic() < deadline_s, names
            time.sleep(0.05)

    names = ("lensgate_queue_depth", "lensgate_predicted_wait_seconds")
    flood = Flood(service, tokens[0], FLOOD)
    try:
        wait_for(names, zero=False)
    finally:
        flood.end()
    wait_for(names, zero=True)
