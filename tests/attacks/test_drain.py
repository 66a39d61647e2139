"""Case 118: SIGTERM under load."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from support.held import Held
from support.load import Load
from support.raw_http import RawConnection
from support.service import Service

GRACE_S = 10.0
EXIT_SLACK_S = 5.0
"""Until the supervisor itself has gone, on a busy machine."""


def assert_quiet(service: Service) -> None:
    """Nothing went wrong in the service's own eyes."""
    assert "Traceback" not in "".join(service.raw_log)
    assert [line for line in service.log if line["level"] == "error" or line.get("status") == 500] == []


@pytest.fixture
def draining_gate(start_gate: Callable[..., Service]) -> Service:
    return start_gate({"LENSGATE_HTTP__GRACE_S": str(GRACE_S), "LENSGATE_INFERENCE__DEADLINE_S": "300"})


def test_118_sigterm_under_load_loses_no_complete_upload_and_cuts_off_a_stalled_one(
    draining_gate: Service, photographs_by_name: Mapping[str, bytes]
) -> None:
    service, picture = draining_gate, photographs_by_name["coffee.png"]
    token = service.token(service.create_client("load"))
    loads = [Load(service, picture, token, keep_alive=number % 2 == 0) for number in range(4)]
    with RawConnection(service.url) as stalled, RawConnection(service.url) as idle, RawConnection(service.url) as late:
        idle.request("GET", "/livez")
        assert idle.answer().status == 200
        head = f"Authorization: Bearer {token}", "Content-Type: image/png", f"Content-Length: {len(picture)}"
        stalled.request("POST", "/predict", *head, body=picture[:-1])
        late.request("POST", "/predict", *head, body=picture[:-1])
        while min(load.served for load in loads) < 3:
            assert not [failure for load in loads for failure in load.failures]
            time.sleep(0.05)
        after, began_s = len(service.log), time.monotonic()
        service.process.terminate()
        service.wait_for("stopping", after=after)
        late.send(picture[-1:])
        answer = late.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert idle.closed_after_s() < GRACE_S / 2
        cut = stalled.answer()
        assert (cut.status, cut.problem()["code"]) == (408, "slow_client")
        code = service.process.wait(60)
    took_s = time.monotonic() - began_s
    for load in loads:
        load.wait()
    assert [failure for load in loads for failure in load.failures] == []
    assert code == 0
    assert took_s < GRACE_S + EXIT_SLACK_S
    assert_quiet(service)


def test_118_a_request_that_outlasts_the_grace_period_gets_503_and_the_exit_code_is_0(
    draining_gate: Service, photographs_by_name: Mapping[str, bytes]
) -> None:
    service = draining_gate
    held = Held(service, photographs_by_name["coffee.png"], service.token(service.create_client("held")))
    began_s = time.monotonic()
    service.process.terminate()
    answer = held.answer()
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"], answer.headers["connection"]) == (503, "not_ready", "close")
    assert int(answer.headers["retry-after"]) >= 1
    assert service.process.wait(60) == 0
    assert time.monotonic() - began_s < GRACE_S + EXIT_SLACK_S
    assert_quiet(service)
