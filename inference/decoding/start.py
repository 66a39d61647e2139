"""How a decoder's process comes to be, and what it knows of our environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Final

_ENVIRONMENT: Final = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "VIRTUAL_ENV")
"""What a decoder may know of our environment, besides what Python itself reads: passwords and keys stand there, too."""


async def start_process(*files: int) -> asyncio.subprocess.Process:
    """Start a decoder that is handed these descriptors: a socket and its memory. Cancelled, it leaves no process.

    Raises:
        OSError: the system has no room for it.
    """
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "inference.decoding.process", *map(str, files), str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,  # which is the log's
            pass_fds=files,
            env=_environment(),
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):  # it did not start at all
            process = await starting  # else nobody would know that it is there
            process.kill()
            await process.wait()
        raise


def _environment() -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith("PYTHON")}
    return known | {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's threads would never be used
