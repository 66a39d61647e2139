"""How the supervisor knows that a child is at work: a byte on a pipe once a second, for as long as that is so.

What is counted are beats that were missed while the supervisor itself was awake, not seconds: a machine that was suspended, or a container
that was frozen, costs a child one beat, however long it lasted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final

BEAT_S: Final = 1.0
START_PATIENCE_S: Final = 300.0
"""How long a child may be silent before it serves: loading a large library holds the interpreter's lock, from a slow disk for minutes."""

_STARTING: Final = b"."
_SERVING: Final = b"!"
_READ_BYTES: Final = 4096


class Pulse:
    """The child's end.

    Args:
        fd: the pipe, which is taken over.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)

    def beat(self, *, serving: bool) -> None:
        """Say that the child is at work, and whether it is done with starting."""
        # The pipe is full of beats that a halted supervisor has not read yet, or it has died: then another watch ends this process.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, _SERVING if serving else _STARTING)

    async def beat_regularly(self, serving: Callable[[], bool]) -> None:
        """Beat for as long as the event loop runs, until cancelled."""
        while True:
            self.beat(serving=serving())
            await asyncio.sleep(BEAT_S)


class PulseMonitor:
    """The supervisor's end.

    Args:
        fd: the pipe, which is taken over until `close`.
        stuck_after_s: for how long a child that serves may be silent.
    """

    def __init__(self, fd: int, *, stuck_after_s: float) -> None:
        self.serving = asyncio.Event()
        self._fd = fd
        self._stuck_after_s = stuck_after_s
        self._beaten = False
        os.set_blocking(fd, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._on_beat)

    async def until_silent(self) -> None:
        """Return once the child has missed as many beats in a row as it may."""
        missed = 0
        while missed * BEAT_S < self._allowed_s:
            await asyncio.sleep(BEAT_S)
            missed = 0 if self._beaten else missed + 1
            self._beaten = False

    @property
    def _allowed_s(self) -> float:
        return self._stuck_after_s if self.serving.is_set() else max(START_PATIENCE_S, self._stuck_after_s)

    def _on_beat(self) -> None:
        beats = os.read(self._fd, _READ_BYTES)
        if not beats:
            self._loop.remove_reader(self._fd)  # the child has ended, which is noticed elsewhere
            return
        self._beaten = True
        if _SERVING in beats:
            self.serving.set()

    def close(self) -> None:
        """Let go of the pipe."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
