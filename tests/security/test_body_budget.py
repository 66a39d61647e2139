"""What all bodies together may hold."""

from __future__ import annotations

import pytest

from security.body_budget import BodyBudget
from security.errors import TooManyBodies


def test_all_clients_together_hold_no_more_than_there_is() -> None:
    budget = BodyBudget(100)
    for client in ("a", "b"):
        budget.open(client).add(50)
    with pytest.raises(TooManyBodies):
        budget.open("c").add(1)


def test_one_client_holds_no_more_than_half_of_it_in_however_many_requests() -> None:
    budget = BodyBudget(100)
    first, second = budget.open("a"), budget.open("a")
    first.add(30)
    second.add(20)
    with pytest.raises(TooManyBodies):
        second.add(1)
    budget.open("b").add(50)


def test_what_is_refused_holds_nothing_and_what_is_answered_makes_room() -> None:
    budget = BodyBudget(100)
    first, second = budget.open("a"), budget.open("a")
    first.add(40)
    with pytest.raises(TooManyBodies):
        second.add(20)
    second.add(10)
    first.close()
    first.close()
    second.add(40)
    second.close()
    assert (budget._held_bytes, budget._by_client) == (0, {})


def test_retry_after_is_how_long_bodies_were_held(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 0.0
    monkeypatch.setattr("security.body_budget.time.monotonic", lambda: clock_s)
    budget = BodyBudget(100)
    with pytest.raises(TooManyBodies) as unmeasured:
        budget.open("a").add(51)
    assert unmeasured.value.retry_after_s == 1
    held = budget.open("a")
    held.add(50)
    clock_s = 6.5
    held.close()
    with pytest.raises(TooManyBodies) as refusal:
        budget.open("a").add(51)
    assert refusal.value.retry_after_s == 7
