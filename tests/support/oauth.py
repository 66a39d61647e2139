"""What a client asks of the gate's OAuth endpoints, and what an operator types beside the running service."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, Final

import httpx

from support.service import Service

GRANT: Final = {"grant_type": "client_credentials"}
STALENESS_S: Final = 2.0
"""The default of LENSGATE_SECURITY__POLL_S."""
_SLACK_S: Final = 3.0
"""For a busy machine."""


def post(gate: Service, path: str, form: dict[str, str], client: dict[str, Any] | None) -> httpx.Response:
    """POST a form, the client authenticated by HTTP Basic."""
    auth = None if client is None else httpx.BasicAuth(client["client_id"], client["client_secret"])
    return httpx.post(gate.url + path, data=form, auth=auth, timeout=30)


def revoke(gate: Service, client: dict[str, Any], token: str) -> None:
    """Revoke a token as RFC 7009 says."""
    answer = post(gate, "/oauth2/revoke", {"token": token}, client)
    assert (answer.status_code, answer.content) == (200, b"")


def operate(gate: Service, *arguments: str) -> str:
    """Run a command of the operator's; return what it said."""
    run = subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        cwd=gate.folder,
        env=gate.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def wait_for_status(gate: Service, token: str, status: int, *, path: str = "/models") -> None:
    """Ask with this token until the answer has this status, for as long as the stated staleness allows."""
    deadline_s = time.monotonic() + STALENESS_S + _SLACK_S
    while gate.get(path, token).status_code != status:
        assert time.monotonic() < deadline_s, f"no {status} within the staleness"
