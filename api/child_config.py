"""The child's end of the supervisor's pipe: its configuration first, then silence until the supervisor is gone."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any


def read_config() -> dict[str, Any]:
    """Read the configuration that the supervisor wrote. Ends the process when there is none."""
    line = sys.stdin.buffer.readline()
    if not line:
        raise SystemExit("this is started by `lensgate serve`, not by hand")
    values: dict[str, Any] = json.loads(line)
    return values


def when_supervisor_dies(act: Callable[[], object]) -> None:
    """Call `act`, on a thread of its own, when the supervisor's end of the pipe closes."""

    def watch() -> None:
        sys.stdin.buffer.read()
        act()

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
