"""The real service: `lensgate serve` in a folder of its own, with its real engine process, on a real socket."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.demo import photographs
from support.service import PACKAGED, Service


@pytest.fixture(scope="session")
def photographs_by_name() -> dict[str, bytes]:
    """scikit-image's own photographs: coffee.png, chelsea.png (a cat) and rocket.jpg."""
    return {path.name: path.read_bytes() for path in photographs()}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with the packaged weights and two workers, shared by the tests that leave it as they found it."""
    with Service(tmp_path_factory.mktemp("service"), PACKAGED | {"LENSGATE_HTTP__WORKERS": "2"}) as service:
        service.wait_ready()
        yield service


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts a service of the test's own; it is ended with the test."""
    started: list[Service] = []

    def start(environment: dict[str, str] | None = None) -> Service:
        one = Service(tmp_path, PACKAGED | (environment or {}))
        started.append(one)
        return one.__enter__()

    yield start
    for one in started:
        one.__exit__()


@pytest.fixture
def lensgate(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a folder of the test's own, to its end."""

    def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "api.cli", *arguments],
            cwd=tmp_path,
            env=Service.clean_environment(environment or {}),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run
