"""The wall clock jumps by an hour, both ways, under a running service, and is set right again.

Tokens live by the wall clock, as their standard says: a jump may cost clients the ones they have. It must cost nobody more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from support.oauth import operate, revoke, wait_for_status
from support.pictures import encode, photo
from support.service import PACKAGED, Service
from support.set_clock.sitecustomize import environment, set_ahead

HOUR_S: Final = 3600.0
SETTINGS: Final = {
    "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "600/minute", "in_flight": 16}, "few": {"images": "3/hour", "in_flight": 16}}',
    "LENSGATE_SECURITY__POLL_S": "0.2",
}

SetAhead = Callable[[float], None]


@pytest.fixture(scope="module")
def clock_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock") / "ahead"


@pytest.fixture(scope="module")
def service(clock_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), PACKAGED | SETTINGS | environment(clock_file)) as one:
        one.wait_ready()
        yield one


@pytest.fixture(autouse=True)
def jump(clock_file: Path) -> Iterator[SetAhead]:
    """Sets the clock; it is right again after the test."""
    yield lambda seconds: set_ahead(clock_file, seconds)
    set_ahead(clock_file, 0.0)


@pytest.fixture(scope="module")
def picture() -> bytes:
    return encode(photo(), "JPEG")


@pytest.fixture(scope="module")
def client(service: Service) -> dict[str, Any]:
    return service.create_client("clock")


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["forwards", "backwards"])
def test_a_jump_costs_the_tokens_there_are_and_a_new_one_is_good_at_once(
    service: Service, client: dict[str, Any], picture: bytes, jump: SetAhead, ahead_s: float
) -> None:
    before = service.token(client)
    assert service.predict(picture, before, "image/jpeg").json()["label"] == "espresso"
    jump(ahead_s)
    refused = service.predict(picture, before, "image/jpeg")
    # Expired, or issued in what is now the future.
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
    assert service.get("/readyz").status_code == service.get("/livez").status_code == 200
    during = service.token(client)
    assert service.predict(picture, during, "image/jpeg").json()["label"] == "espresso"
    jump(0.0)
    # As it was: the old token is good again, and the one of the wrong hour is not.
    assert service.predict(picture, before, "image/jpeg").status_code == 200
    assert service.predict(picture, during, "image/jpeg").status_code == 401


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["forwards", "backwards"])
def test_a_jump_neither_opens_nor_closes_a_rate_limit(service: Service, picture: bytes, jump: SetAhead, ahead_s: float) -> None:
    few = service.create_client(f"few {ahead_s:.0f}", tier="few")
    token = service.token(few)
    assert [service.predict(picture, token, "image/jpeg").status_code for _ in range(4)] == [200, 200, 200, 429]
    jump(ahead_s)
    after = service.predict(picture, service.token(few), "image/jpeg")
    assert (after.status_code, after.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(after.headers["retry-after"]) <= HOUR_S
    assert service.predict(picture, service.token(service.create_client(f"other {ahead_s:.0f}")), "image/jpeg").status_code == 200


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["forwards", "backwards"])
def test_operators_are_heard_as_soon_after_a_jump_as_before(service: Service, jump: SetAhead, ahead_s: float) -> None:
    name = f"heard {ahead_s:.0f}"
    client = service.create_client(name)
    jump(ahead_s)
    token = service.token(client)
    wait_for_status(service, token, 200)
    # A key that is made in the wrong hour is published, and does not stop tokens from being signed.
    before = service.get("/.well-known/jwks.json").json()["keys"]
    operate(service, "keys", "rotate")
    service.wait_for("keys_reloaded", after=0, timeout_s=10)
    operate(service, "clients", "disable", name)
    wait_for_status(service, token, 401)
    operate(service, "clients", "enable", name)
    wait_for_status(service, token, 200)
    assert len(service.get("/.well-known/jwks.json").json()["keys"]) == len(before) + 1
    jump(0.0)
    wait_for_status(service, service.token(client), 200)


def test_a_token_that_was_revoked_stays_so_when_the_clock_comes_back(service: Service, client: dict[str, Any], jump: SetAhead) -> None:
    token = service.token(client)
    revoke(service, client, token)
    wait_for_status(service, token, 401)
    jump(HOUR_S)
    other = service.token(client)
    revoke(service, client, other)
    wait_for_status(service, other, 401)
    # That was heard, so the registry was read an hour ahead, when the first token had expired and needed no refusal.
    jump(0.0)
    wait_for_status(service, token, 401)
