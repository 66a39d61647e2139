"""The soak in its short form, and that it would notice: an answer that is lost or wrong, and a process that grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from soak.faults import Faults
from soak.honest import HONEST, _complaint
from soak.ledger import Ledger
from soak.memory import Life, Sample, too_big
from soak.pictures import photographs
from soak.report import render
from soak.run import Outcome
from soak.wire import Answer

_ROOT: Final = Path(__file__).parents[2]
_MIB: Final = 2**20


def outcome(ledger: Ledger, *lives: Life) -> Outcome:
    return Outcome(7, 60.0, ledger, lives, [])


def life(*sizes_mib: float, seconds: float = 600.0) -> Life:
    step_s = seconds / (len(sizes_mib) - 1)
    return Life("engine", 1, [Sample(number * step_s, int(size * _MIB)) for number, size in enumerate(sizes_mib)])


def test_a_short_soak_with_faults_loses_nothing_and_says_what_it_has_seen() -> None:
    faults = "API worker SIGKILL; signing key rotated; Redis restarted"
    options = ["--minutes", "0.2", "--compile", "off", "--seed", "5", "--faults", faults]
    run = subprocess.run(
        [sys.executable, "-m", "soak", *options],
        cwd=_ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "| **lost** | **0** |" in run.stdout
    assert "| **wrong** | **0** |" in run.stdout
    for row in (*faults.split("; "), "honest", "broken pictures", "vanishing clients", "supervisor", "engine"):
        assert f"\n| {row} |" in run.stdout


def test_the_makefile_runs_it_for_as_long_as_one_says() -> None:
    run = subprocess.run(["make", "-n", "soak", "MINUTES=3", "ARGS=--seed 9"], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert "-m soak --minutes 3 --seed 9" in run.stdout


def test_every_round_of_faults_has_each_of_them_once() -> None:
    faults = Faults(None, Ledger(), {}, Random(3))  # type: ignore[arg-type]  # no service is asked for a schedule
    assert sorted(faults.schedule(deadly=True)) == sorted([*faults.deadly, *faults.mild])
    assert sorted(faults.schedule(deadly=False)) == sorted(faults.mild)
    assert list(Faults(None, Ledger(), {}, Random(3)).schedule(deadly=True)) == list(  # type: ignore[arg-type]  # as above
        Faults(None, Ledger(), {}, Random(3)).schedule(deadly=True)  # type: ignore[arg-type]  # as above
    )


def test_a_lost_answer_breaks_the_promise_and_one_that_a_killed_worker_held_does_not() -> None:
    ledger = Ledger()
    ledger.images = 1
    held = ("127.0.1.1", 5000)
    with ledger.fault("API worker SIGKILL"):
        ledger.worker_is_killed(frozenset({held}))
        ledger.unanswered(held, "cut")
    assert outcome(ledger).broken == []
    # The same end of a connection later is another connection.
    ledger.unanswered(held, "nobody answered")
    assert outcome(ledger).broken == ["lost: nobody answered (no fault in force)"]


def test_more_cut_requests_than_a_killed_worker_held_break_the_promise() -> None:
    ledger = Ledger()
    ledger.images = 1
    held = ("127.0.1.1", 5000)
    with ledger.fault("API worker SIGKILL"):
        ledger.worker_is_killed(frozenset({held}))
        for _ in range(2):
            ledger.unanswered(held, "cut")
    assert outcome(ledger).broken == ["2 requests were cut, and the killed workers held 1 connections"]


def test_a_soak_in_which_nothing_was_served_has_shown_nothing() -> None:
    assert outcome(Ledger()).broken == ["not one picture was classified"]


def test_answers_are_told_apart_by_whether_a_fault_was_in_force() -> None:
    ledger = Ledger()
    ledger.requests[HONEST] = 2
    ledger.answered(HONEST, 200, since_s=0.0)
    with ledger.fault("engine SIGKILL"):
        began_s = ledger._current[1] if ledger._current else 0.0
        ledger.answered(HONEST, 503, since_s=began_s)
    ledger.answered(HONEST, 200, since_s=began_s)  # it began while there was a fault
    assert ledger.answers == {(HONEST, 200, False): 1, (HONEST, 503, True): 1, (HONEST, 200, True): 1}
    assert "| honest | 1 × 200 | 1 × 200, 1 × 503 |" in render(outcome(ledger))


@pytest.mark.parametrize(
    ("sizes_mib", "grows"),
    [
        ([10, 100, 100, 100, 100, 100, 100, 100, 100, 101], False),
        ([10, 100, 100, 100, 101, 102, 103, 104, 105, 106], True),
        ([100, 100, 100, 100, 90, 90, 90, 90, 90, 90], False),
    ],
)
def test_a_process_that_holds_more_at_the_end_than_at_a_third_breaks_the_promise(sizes_mib: list[float], grows: bool) -> None:
    one = life(*sizes_mib)
    assert (too_big([one]) == [one]) is grows


def test_a_short_life_is_not_judged_by_its_memory() -> None:
    assert too_big([life(10, 100, 200, seconds=60)]) == []


def test_a_wrong_prediction_is_noticed() -> None:
    picture = next(one for one in photographs() if one.name.startswith("coffee.png"))

    def said(label: str, class_id: int, confidence: float) -> dict[str, Any]:
        one = {"label": label, "class_id": class_id, "confidence": confidence}
        return {**one, "predictions": [one]}

    right = said("espresso", 967, 0.95)
    assert picture.complaint(right) is None
    picture.expected = right
    assert picture.complaint(said("espresso", 967, 0.94)) is None
    assert picture.complaint(said("espresso", 967, 0.80)) is not None
    assert picture.complaint(said("espresso", 504, 0.95)) is not None
    assert picture.complaint(said("missile", 657, 0.95)) is not None
    assert picture.complaint({**right, "class_id": 1}) is not None


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, {}, {"x-request-id": "another"}),
        (401, {"code": "invalid_token"}, {}),
        (429, {"code": "rate_limited"}, {}),
        (500, {"code": "internal_error"}, {}),
        (503, {"code": "overloaded"}, {"retry-after": ""}),
        (503, {"code": "deadline_exceeded"}, {"retry-after": "1"}),
    ],
)
def test_an_answer_that_no_honest_client_may_get_is_noticed(status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    answer = Answer(status, {"x-request-id": "mine"} | headers, json.dumps(body).encode())
    assert _complaint(answer, "mine", oauth=False) is not None


def test_an_honest_client_may_be_told_to_come_back() -> None:
    busy = Answer(503, {"x-request-id": "mine", "retry-after": "1"}, b'{"code": "not_ready"}')
    assert _complaint(busy, "mine", oauth=False) is None
    assert _complaint(Answer(503, busy.headers, b'{"error": "temporarily_unavailable"}'), "mine", oauth=True) is None
