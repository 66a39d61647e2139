"""The real gate for the attacks: `lensgate serve` with the packaged model, one worker and the shipped middleware, on a real socket.

`gate` is shared by everything that leaves it as it found it. What needs other settings, or breaks something, starts one of its own with
`start_gate` (about 10 s each: one for a module, not one for a test).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest

from api.demo import photographs
from support.service import PACKAGED, Service

GATE: Final[Mapping[str, str]] = PACKAGED | {
    # One test must not use up another's: what the limits do is tried against gates that have small ones.
    "LENSGATE_HTTP__ADDRESS_LIMIT": "1000000/minute",
    "LENSGATE_SECURITY__TIERS": '{"standard": {"images": "1000000/minute", "in_flight": 64}}',
}
"""The settings of the shared gate."""


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The shared gate, ready."""
    with Service(tmp_path_factory.mktemp("gate"), dict(GATE)) as service:
        service.wait_ready()
        yield service


@pytest.fixture(scope="module")
def start_gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Starts a gate of the module's own with `environment` on top of the shared one's; it is ended with the module."""
    started: list[Service] = []

    def start(environment: Mapping[str, str] | None = None, *, ready: bool = True) -> Service:
        service = Service(tmp_path_factory.mktemp("own-gate"), {**GATE, **(environment or {})})
        service.__enter__()
        started.append(service)
        if ready:
            service.wait_ready()
        return service

    yield start
    for service in started:
        service.__exit__()


@pytest.fixture(scope="session")
def client(gate: Service) -> dict[str, Any]:
    """A client of the shared gate with the scope `predict`, as `lensgate clients create --json` prints it."""
    return gate.create_client("attacker", "predict")


@pytest.fixture(scope="session")
def second_client(gate: Service) -> dict[str, Any]:
    """Another client of the shared gate with the scope `predict`."""
    return gate.create_client("bystander", "predict")


@pytest.fixture(scope="session")
def metrics_client(gate: Service) -> dict[str, Any]:
    """A client of the shared gate with the scope `metrics` only."""
    return gate.create_client("scraper", "metrics")


@pytest.fixture(scope="module")  # a token lives for 15 minutes, and the whole run may be longer
def token(gate: Service, client: dict[str, Any]) -> str:
    """A live token of `client`."""
    return gate.token(client)


@pytest.fixture(scope="module")  # a token lives for 15 minutes, and the whole run may be longer
def second_token(gate: Service, second_client: dict[str, Any]) -> str:
    """A live token of `second_client`."""
    return gate.token(second_client)


@pytest.fixture(scope="session")
def photographs_by_name() -> dict[str, bytes]:
    """scikit-image's own photographs: coffee.png, chelsea.png (a cat) and rocket.jpg."""
    return {path.name: path.read_bytes() for path in photographs()}
