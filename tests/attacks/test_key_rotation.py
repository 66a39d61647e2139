"""Case 120: keys are rotated, and an old one is pruned, while clients get tokens and use them; nobody notices."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from security.key_ring import publication_delay_s
from security.keys import create_key
from support.oauth import GRANT, operate
from support.service import Service

POLL_S: Final = 0.2
DAY_S: Final = 86_400
CLIENTS: Final = 3


class Load:
    """Clients in threads of their own: each gets tokens from every replica in turn, and uses the newest of them at all replicas."""

    def __init__(self, replicas: list[Service], clients: list[dict[str, Any]]) -> None:
        self.statuses: Counter[int] = Counter()
        self.kids: set[str] = set()
        self._stop = threading.Event()
        self._urls = [replica.url for replica in replicas]
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in clients]
        for thread in self._threads:
            thread.start()

    def _run(self, client: dict[str, Any]) -> None:
        kept: list[str] = []
        with httpx.Client(timeout=30) as http:
            for url in cycle(self._urls):
                if self._stop.is_set():
                    return
                granted = http.post(f"{url}/oauth2/token", data=GRANT, auth=(client["client_id"], client["client_secret"]))
                self.statuses[granted.status_code] += 1
                if granted.status_code != 200:
                    return
                kept = [*kept, granted.json()["access_token"]][-6:]
                self.kids.add(_kid(kept[-1]))
                for other, token in product(self._urls, kept):
                    self.statuses[http.get(f"{other}/models", headers={"Authorization": f"Bearer {token}"}).status_code] += 1
                self._stop.wait(0.05)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def _kid(token: str) -> str:
    header = token.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])


def _wait(what: Callable[[], bool], within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.timeout(180)
def test_120_rotating_and_pruning_keys_under_load_gives_not_one_401(start_gate: Callable[..., Service], tmp_path: Path) -> None:
    """Two replicas look at the folder at different moments; the second rotation changes the algorithm."""
    keys_dir = tmp_path / "keys"
    ancient = create_key(keys_dir, created_at=time.time() - 5 * DAY_S)
    present = create_key(keys_dir, created_at=time.time() - 3 * DAY_S)
    replicas = [
        start_gate(
            {
                "LENSGATE_SECURITY__KEYS_DIR": str(keys_dir),
                "LENSGATE_SECURITY__DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/lensgate.db",
                "LENSGATE_SECURITY__ISSUER": "http://gate.example",
                "LENSGATE_SECURITY__POLL_S": str(POLL_S),
                "LENSGATE_SECURITY__TOKEN_TTL_S": "30",
                "LENSGATE_HTTP__ADDRESS_LIMIT": "1000000/minute",
                "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "1000000/minute", "in_flight": 64}}',
            },
            ready=False,
        )
        for _ in range(2)
    ]
    for replica in replicas:
        replica.wait_for("worker_serving")
    gate = replicas[0]
    load = Load(replicas, [gate.create_client(f"load {number}") for number in range(CLIENTS)])
    try:
        first = _rotated(gate)
        assert f"Deleted the key {ancient}." in operate(gate, "keys", "prune")
        second = _rotated(gate, "--algorithm", "RS256")
        _wait(lambda: second in load.kids, publication_delay_s(POLL_S) + 20)
    finally:
        load.stop()
    assert set(load.statuses) == {200}, load.statuses
    assert load.statuses.total() > 50
    assert {present, second} <= load.kids <= {present, first, second}
    listed = json.loads(operate(gate, "keys", "list", "--json"))
    assert [(key["kid"], key["state"]) for key in listed] == [(present, "retired"), (first, "retired"), (second, "signing")]


def _rotated(gate: Service, *options: str) -> str:
    before = {key["kid"] for key in json.loads(operate(gate, "keys", "list", "--json"))}
    assert "Made the key" in operate(gate, "keys", "rotate", *options)
    (made,) = {key["kid"] for key in json.loads(operate(gate, "keys", "list", "--json"))} - before
    return str(made)
