"""Requests that are in flight for as long as a test wants: the engine's process is stopped, so that nothing is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import psutil

from support.service import Service

API: Final = "api.worker_process"
ENGINE: Final = "api.engine_process"
_WATCHED_BYTES: Final = 1024 * 1024
"""The places of the first six pictures."""


class InFlight:
    """One /predict in a thread of its own, on a connection of its own or on `http`."""

    def __init__(self, service: Service, picture: bytes, token: str, http: httpx.Client | None = None) -> None:
        self._service, self._picture, self._token, self._http = service, picture, token, http
        self.answer: httpx.Response | None = None
        self.error: httpx.TransportError | None = None
        self._caller = threading.Thread(target=self._call)
        self._caller.start()

    def _call(self) -> None:
        try:
            if self._http is None:
                self.answer = self._service.predict(self._picture, self._token)
            else:
                headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "image/png"}
                self.answer = self._http.post("/predict", content=self._picture, headers=headers)
        except httpx.TransportError as error:
            self.error = error

    @property
    def is_waiting(self) -> bool:
        """True until there is an answer, or none to be had."""
        return self._caller.is_alive()

    def wait(self) -> httpx.Response:
        """The answer; the error where the connection broke."""
        self._caller.join(90)
        if self.error is not None:
            raise self.error
        assert self.answer is not None, "still in flight"
        return self.answer


def _open_files(process: psutil.Process, name: str) -> list[Path]:
    """The descriptors of a running process that are open on a file whose name holds `name`."""
    found = []
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the process has closed this one since the folder was listed
            if name in str(link.readlink()):
                found.append(link)
    return found


class Handover:
    """Sees when a worker hands the next picture to an engine. Made while none of its pictures is in flight."""

    def __init__(self, worker: psutil.Process) -> None:
        self._files = _open_files(worker, "lensgate-pictures")
        assert self._files, "the worker is not connected to an engine"
        for file in self._files:
            with file.open("r+b") as memory:
                memory.write(bytes(min(_WATCHED_BYTES, file.stat().st_size)))

    def wait(self, request: InFlight | None = None) -> None:
        """Wait until there is one; `request`, which brings it, must not be answered before."""
        deadline_s = time.monotonic() + 30
        while not self._has_come():
            assert time.monotonic() < deadline_s, "the picture never reached the engine"
            assert request is None or request.is_waiting, request.wait().text

    def _has_come(self) -> bool:
        for file in self._files:
            with file.open("rb") as memory:
                if any(memory.read(_WATCHED_BYTES)):
                    return True
        return False


class Held:
    """A /predict whose pixels lie before a stopped engine. `worker` is the process that serves it."""

    def __init__(
        self, service: Service, picture: bytes, token: str, *, worker: psutil.Process | None = None, http: httpx.Client | None = None
    ) -> None:
        (self.engine,) = service.children(ENGINE)
        serving = worker or service.children(API)[0]
        self.engine.suspend()
        handover = Handover(serving)
        self.request = InFlight(service, picture, token, http)
        handover.wait(self.request)

    def answer(self) -> httpx.Response:
        """What the caller got in the end."""
        return self.request.wait()


@contextmanager
def connection_to(service: Service, worker: psutil.Process) -> Iterator[httpx.Client]:
    """A kept connection to that one of the workers: while it is made, the others cannot accept it."""
    others = [other for other in service.children(API) if other.pid != worker.pid]
    with httpx.Client(base_url=service.url, timeout=60) as http:
        for other in others:
            other.suspend()
        try:
            after = len(service.log)
            assert http.get("/livez", headers={"X-Request-ID": f"to-{worker.pid}"}).status_code == 200
        finally:
            for other in others:
                other.resume()
        assert service.wait_for("request", after=after, request_id=f"to-{worker.pid}")["pid"] == worker.pid
        yield http


def wait_until_ready(http: httpx.Client) -> None:
    """Wait until the worker at the other end has heard from a warm engine."""
    deadline_s = time.monotonic() + 60
    while http.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline_s, "not ready again"
