"""Starts the real service for a test, and talks to it as a client app does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import psutil

from support.leaks import leaks
from support.log_schema import faults

PACKAGED: Final = {"LENSGATE_INFERENCE__MODEL": "efficientnet_lite0", "LENSGATE_INFERENCE__WEIGHTS": "package:efficientnet_lite0"}
_START_TIMEOUT_S: Final = 100.0


class Service:
    """`lensgate serve` in `folder`, on a free port of loopback. Its log is read line by line as it is written."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = self.clean_environment(
            {
                "LENSGATE_HTTP__PORT": "0",
                "LENSGATE_LOG__FORMAT": "json",
                # A minute for each model and machine; tests/inference/worker/test_compilation.py compiles.
                "LENSGATE_INFERENCE__COMPILE": "off",
                # Tests that hold up a process do not want it killed; tests/e2e/test_watchdog.py does.
                "LENSGATE_INFERENCE__STUCK_AFTER_S": "300",
                "TMPDIR": str(folder),
            }
            | environment
        )
        self.log: list[dict[str, Any]] = []
        self.raw_log: list[str] = []
        self._logged = threading.Condition()
        self.log_is_read = threading.Event()
        self.log_is_read.set()

    @staticmethod
    def clean_environment(extra: dict[str, str]) -> dict[str, str]:
        """The environment without any setting of the person who runs the tests."""
        return {name: value for name, value in os.environ.items() if not name.startswith("LENSGATE_")} | extra

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "serve"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,  # no terminal: there SIGHUP means something else
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = str(self.wait_for("listening")["url"])
        return self

    def __exit__(self, _: type[BaseException] | None = None, __: BaseException | None = None, ___: TracebackType | None = None) -> None:
        if self.process.poll() is None:
            self.stop()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        # Case 104 of the attacks, for every service of every test.
        assert leaks(self.raw_log, self.folder / "keys") == []
        assert faults(self.log) == []

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log_is_read.wait()
            with self._logged:
                self.raw_log.append(line)
                if line.startswith("{"):
                    self.log.append(json.loads(line))
                self._logged.notify_all()
        with self._logged:
            self._logged.notify_all()

    def wait_for(self, event: str, *, after: int = 0, timeout_s: float = _START_TIMEOUT_S, **fields: object) -> dict[str, Any]:
        """The first line logged with this event and these fields, from line `after` of `log` on."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found.extend(line for line in self.log[after:] if line["event"] == event and fields.items() <= line.items())
            return bool(found) or self.process.poll() is not None

        with self._logged:
            self._logged.wait_for(look, timeout_s)
        assert found, f"no {event} {fields} in the log:\n{''.join(self.raw_log)}"
        return found[0]

    def wait_ready(self, *, after: int = 0) -> None:
        """Wait until the engine says that it is warm, and the API has heard it."""
        self.wait_for("engine_ready", after=after)
        deadline_s = time.monotonic() + 30
        while self.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline_s

    def create_client(self, name: str, *scopes: str, tier: str = "standard") -> dict[str, Any]:
        """`lensgate clients create --json`, as an operator does beside the running service."""
        options = [option for scope in scopes or ("predict",) for option in ("--scope", scope)] + ["--tier", tier]
        run = subprocess.run(
            [sys.executable, "-m", "api.cli", "clients", "create", name, *options, "--json"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        created: dict[str, Any] = json.loads(run.stdout)
        return created

    def token(self, client: dict[str, Any]) -> str:
        """A token by HTTP Basic."""
        answer = httpx.post(
            f"{self.url}/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(client["client_id"], client["client_secret"]),
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        """GET, with a token if there is one."""
        return httpx.get(self.url + path, headers=_bearer(token), timeout=30)

    def predict(self, picture: bytes, token: str, content_type: str = "image/png", query: str = "") -> httpx.Response:
        """POST the raw bytes to /predict."""
        return httpx.post(
            f"{self.url}/predict{query}", content=picture, headers=_bearer(token) | {"Content-Type": content_type}, timeout=60
        )

    def children(self, module: str) -> list[psutil.Process]:
        """The child processes that run `module`."""
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if module in child.cmdline()]


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
