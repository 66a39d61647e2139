"""Engines and API workers that stand still, hang or compute nonsense: noticed, replaced, and nobody waits for them.

Real processes and real signals; only the model is a stub, of which there are two engines: the other one goes on meanwhile.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import support
from support.held import API, ENGINE
from support.pictures import encode, gradient
from support.service import PACKAGED, Service
from support.stub_engine import sitecustomize as stub

_TWO_GPUS = Path(str(support.__path__[0])) / "two_gpus"
SETTINGS = PACKAGED | {
    "PYTHONPATH": os.pathsep.join([stub.FOLDER, str(_TWO_GPUS)]),
    "STUB_SECONDS_PER_BATCH": "0",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "LENSGATE_INFERENCE__STUCK_AFTER_S": "3",
    # Nothing but what is tested here can end a request.
    "LENSGATE_INFERENCE__DEADLINE_S": "300",
}


PICTURE = encode(gradient(32, 32), "PNG")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("watchdog"), SETTINGS) as service:
        service.wait_ready()
        yield service


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    token = service.token(service.create_client("watched"))
    wait_for_both_engines(service, token)
    return token


def wait_for_both_engines(service: Service, token: str) -> None:
    """Wait until the API worker knows that both engines are ready: it hears so a little after they are."""
    listed = 0
    deadline_s = time.monotonic() + 60
    while listed != 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
        listed = len(service.get("/models", token).json()["models"])


def ask(service: Service, token: str, times: int) -> Counter[tuple[int, str]]:
    """So many requests at once: how often each status and code came."""

    def one(_: int) -> tuple[int, str]:
        answer = service.predict(PICTURE, token)
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code, answer.json().get("code", "")

    with ThreadPoolExecutor(times) as callers:
        return Counter(callers.map(one, range(times)))


def test_an_engine_that_is_halted_is_replaced_while_the_other_serves(service: Service, token: str) -> None:
    after = len(service.log)
    halted = service.children(ENGINE)[0]
    halted.suspend()
    answers = ask(service, token, 6)
    # Nobody waits until a deadline: what the halted one held was refused when it was killed, what the other one held was served.
    assert set(answers) == {(200, ""), (503, "not_ready")}
    silent = service.wait_for("child_silent", after=after)
    assert (silent["child_pid"], silent["serving"]) == (halted.pid, True)
    assert service.get("/readyz").status_code == 200
    assert ask(service, token, 6) == {(200, ""): 6}
    assert service.wait_for("child_died", after=after)["exit_code"] == -9
    service.wait_for("engine_ready", after=after)
    wait_for_both_engines(service, token)
    assert len(service.children(ENGINE)) == 2


def test_an_engine_whose_forward_pass_hangs_is_replaced_while_the_other_serves(service: Service, token: str) -> None:
    after = len(service.log)
    (service.folder / stub.HANGS).touch()
    answers = ask(service, token, 6)
    assert set(answers) == {(200, ""), (503, "not_ready")}
    failed = service.wait_for("engine_failed", after=after)
    assert failed["exception"][0]["exc_type"] == "LaneStuck"
    assert service.wait_for("child_died", after=after)["exit_code"] == 1
    assert not [line for line in service.log[after:] if line["event"] == "child_silent"]
    service.wait_for("engine_ready", after=after)
    wait_for_both_engines(service, token)
    assert ask(service, token, 6) == {(200, ""): 6}


@pytest.mark.parametrize("fault", [stub.NAN, stub.RAISES])
def test_an_engine_whose_device_computes_nonsense_or_fails_is_replaced_at_once(service: Service, token: str, fault: str) -> None:
    after = len(service.log)
    (service.folder / fault).touch()
    assert ask(service, token, 1) == {(500, "internal_error"): 1}
    # Its regular test may be half a minute away.
    failed = service.wait_for("engine_failed", after=after, timeout_s=20)
    assert failed["exception"][0]["exc_type"] == "InferenceFailed"
    service.wait_for("engine_ready", after=after)
    wait_for_both_engines(service, token)
    assert ask(service, token, 6) == {(200, ""): 6}


def test_an_api_worker_that_is_halted_is_replaced(service: Service, token: str) -> None:
    after = len(service.log)
    (halted,) = service.children(API)
    halted.suspend()
    assert service.wait_for("child_silent", after=after)["child_pid"] == halted.pid
    service.wait_for("worker_serving", after=after)
    assert ask(service, token, 6) == {(200, ""): 6}
