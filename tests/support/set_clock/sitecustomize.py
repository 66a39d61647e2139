"""A wall clock that a test sets, for the processes of a real service: `time.time` is ahead of the machine's by what stands in a file.

Python runs this file at the start of every process that has its folder on PYTHONPATH (`environment`). The monotonic clocks go on as they
are, as they do when a machine's wall clock is set.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

_VARIABLE: Final = "CLOCK_AHEAD_FILE"
_AHEAD: Final = struct.Struct("=d")
_machines_time: Final = time.time


def environment(file: Path) -> dict[str, str]:
    """For `lensgate serve` and the commands beside it. The clock is right until `set_ahead`."""
    set_ahead(file, 0.0)
    return {"PYTHONPATH": str(Path(__file__).parent), _VARIABLE: str(file)}


def set_ahead(file: Path, seconds: float) -> None:
    """Set the clock of all the processes at once."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(_AHEAD.pack(seconds))


def _install(file: Path) -> None:
    with file.open("rb") as opened:
        shared = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)

    def shifted() -> float:
        return _machines_time() + float(_AHEAD.unpack_from(shared)[0])

    time.time = shifted


if _VARIABLE in os.environ:
    _install(Path(os.environ[_VARIABLE]))
