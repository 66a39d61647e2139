"""The child's end of the supervisor's pipe: its configuration first, then silence until the supervisor is gone."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any, Final

_STDIN: Final = 0
# Read by os.read and never through sys.stdin: a thread inside its buffer would hold a lock that the interpreter needs at its end.
_READ_BYTES: Final = 65_536


def read_config() -> dict[str, Any]:
    """Read the configuration that the supervisor wrote. Ends the process when there is none."""
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(_STDIN, _READ_BYTES)
        if not piece:
            raise SystemExit("this is started by `lensgate serve`, not by hand")
        data += piece
    values: dict[str, Any] = json.loads(data)
    return values


def when_supervisor_dies(act: Callable[[], object]) -> None:
    """Call `act`, on a thread of its own, when the supervisor's end of the pipe closes."""

    def watch() -> None:
        while os.read(_STDIN, _READ_BYTES):
            pass  # nothing is sent after the configuration
        act()

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
