"""Clients that vanish in every phase of a request, by an orderly close and by a reset. Nobody else notices, and nothing is kept for them.

The client may have one request in flight: what a request that was left behind still held would refuse its next one.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psutil
import pytest
from PIL import Image

from soak.gate import endpoints_held_by
from support.decoders import cpu_s, decoders_of
from support.held import API, ENGINE, Handover
from support.pictures import encode, photo
from support.raw_http import RawConnection
from support.scrape import Scrape, scraper
from support.service import PACKAGED, Service

TIERS: Final = '{"standard": {"images": "100000/minute", "in_flight": 1}}'
_BOUNDARY: Final = "----vanishing"
_WAIT_S: Final = 30


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), PACKAGED | {"LENSGATE_SECURITY__TIERS": TIERS}) as one:
        one.wait_ready()
        yield one


@pytest.fixture(scope="module")
def client(service: Service) -> dict[str, Any]:
    return service.create_client("vanishing")


@pytest.fixture(scope="module")
def token(service: Service, client: dict[str, Any]) -> str:
    return service.token(client)


@pytest.fixture(scope="module")
def scrape(service: Service) -> Callable[[], Scrape]:
    return scraper(service)


@pytest.fixture(scope="module")
def picture() -> bytes:
    return encode(photo(), "JPEG")


def wait_until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


class Visitor:
    """One client that is about to vanish."""

    def __init__(self, service: Service, token: str) -> None:
        self.service, self._token = service, token
        (self.worker,) = service.children(API)
        (self.engine,) = service.children(ENGINE)
        self.after = len(service.log)
        self.connection = RawConnection(service.url, receive_buffer_bytes=4096)

    def head(self, target: str, kind: str, size: int) -> bytes:
        lines = [f"POST {target} HTTP/1.1", "Host: a", f"Authorization: Bearer {self._token}", f"Content-Type: {kind}"]
        return "\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode()

    def vanish(self, *, by_reset: bool) -> None:
        if by_reset:
            self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.socket.close()

    def is_known(self) -> bool:
        """Whether the worker holds the connection."""
        return self._endpoint in endpoints_held_by(self.worker)

    @property
    def _endpoint(self) -> tuple[str, int]:
        if not hasattr(self, "_kept"):
            self._kept: tuple[str, int] = self.connection.socket.getsockname()
        return self._kept

    def confirm_line(self, *, status: int) -> None:
        assert self.wait_for_line(status=status)

    def wait_for_line(self, *, status: int) -> dict[str, Any]:
        return self.service.wait_for("request", after=self.after, status=status, timeout_s=_WAIT_S)


def leave_in_the_head(visitor: Visitor, picture: bytes) -> Callable[[], None]:
    visitor.connection.send(visitor.head("/predict", "image/jpeg", len(picture))[:-30])
    wait_until(visitor.is_known)
    return lambda: None


def leave_in_the_body(visitor: Visitor, picture: bytes) -> Callable[[], None]:
    visitor.connection.send(visitor.head("/predict", "image/jpeg", len(picture)) + picture[:-1])
    wait_until(visitor.is_known)
    return lambda: visitor.confirm_line(status=499)


def leave_while_it_is_decoded(visitor: Visitor, picture: bytes) -> Callable[[], None]:
    huge = encode(Image.new("RGB", (6500, 6500)), "PNG")
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'.encode() + huge + b"\r\n"
    body = part * 24 + f"--{_BOUNDARY}--\r\n".encode()
    decoders = decoders_of(visitor.worker)
    before_s = cpu_s(decoders)
    visitor.connection.send(visitor.head("/predict/batch", f"multipart/form-data; boundary={_BOUNDARY}", len(body)) + body)
    wait_until(lambda: cpu_s(decoders) - before_s > 0.2)

    def confirm() -> None:
        visitor.wait_for_line(status=499)
        # What it left behind is not decoded either: each decoder finishes the two that it holds, a quarter of a second each.
        spent_s = cpu_s(decoders) - before_s
        assert spent_s < 24 * 0.1, "all of the 24 pictures were decoded"

    return confirm


def leave_while_it_waits_for_the_engine(visitor: Visitor, picture: bytes) -> Callable[[], None]:
    visitor.engine.suspend()
    handover = Handover(visitor.worker)
    visitor.connection.send(visitor.head("/predict", "image/jpeg", len(picture)) + picture)
    handover.wait()

    def confirm() -> None:
        try:
            assert visitor.wait_for_line(status=499)["decode_ms"] > 0
        finally:
            visitor.engine.resume()

    return confirm


def leave_while_the_answer_is_written(visitor: Visitor, picture: bytes) -> Callable[[], None]:
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'.encode() + picture + b"\r\n"
    body = part * 32 + f"--{_BOUNDARY}--\r\n".encode()
    visitor.connection.send(visitor.head("/predict/batch?top_k=100", f"multipart/form-data; boundary={_BOUNDARY}", len(body)) + body)
    assert visitor.connection.socket.recv(1) == b"H"
    return lambda: visitor.confirm_line(status=200)


PHASES: Final = (
    leave_in_the_head,
    leave_in_the_body,
    leave_while_it_is_decoded,
    leave_while_it_waits_for_the_engine,
    leave_while_the_answer_is_written,
)


@pytest.mark.parametrize("by_reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_a_client_that_vanishes_leaves_nothing_behind(
    service: Service,
    token: str,
    picture: bytes,
    scrape: Callable[[], Scrape],
    phase: Callable[[Visitor, bytes], Callable[[], None]],
    by_reset: bool,
) -> None:
    visitor = Visitor(service, token)
    assert visitor._endpoint
    confirm = phase(visitor, picture)
    visitor.vanish(by_reset=by_reset)
    confirm()
    wait_until(lambda: not visitor.is_known())
    answer = service.predict(picture, token, "image/jpeg")
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == "espresso"
    assert scrape()("lensgate_requests_in_flight") == 1, "more than the scrape itself"
    assert [line for line in service.log[visitor.after :] if line["level"] == "error" or line.get("status") == 500] == []
    assert service.children(API) == [visitor.worker]
    assert psutil.pid_exists(visitor.engine.pid)
