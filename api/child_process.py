"""One process of the service: started, handed its configuration, watched, and killed when it is silent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import structlog

from api.pulse import PulseMonitor

_log: Final = structlog.get_logger()


class ChildProcess:
    """One life of a child. Made by `start`.

    The first line of its standard input is its configuration, as JSON: secrets in it never stand in a command line or an
    environment. The pipe then stays open, so that its end tells the child that the supervisor has died.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, monitor: PulseMonitor) -> None:
        self.name = name
        self.pid = process.pid
        self.serving = monitor.serving
        """Set once it says that it is done with starting."""
        self._process = process
        self._monitor = monitor
        self.ended = asyncio.create_task(self._live(), name=name)
        """Its exit code. A child that is cancelled is killed."""

    @classmethod
    async def start(
        cls,
        name: str,
        module: str,
        config: Mapping[str, Any],
        *,
        pass_fds: Sequence[int] = (),
        output: int | None = None,
        stuck_after_s: float,
    ) -> Self:
        """Start one.

        Args:
            name: for the log: `engine-0`, `api-1`. The child is told.
            module: run as `python -m module name`.
            config: JSON values.
            pass_fds: file descriptors that it inherits under their own numbers.
            output: a file descriptor for standard output and error; inherited when None.
            stuck_after_s: once it serves, for how long it may be silent.
        """
        ours, its = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                name,  # for people who look at `ps`; the child reads its configuration
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(*pass_fds, its),
                # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which then ends everything in order.
                start_new_session=True,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(its)
        child = cls(name, process, PulseMonitor(ours, stuck_after_s=stuck_after_s))
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died already: `ended` tells how
                process.stdin.write(json.dumps({**config, "name": name, "pulse": its}).encode() + b"\n")
                await process.stdin.drain()
        except BaseException:
            child.ended.cancel()
            raise
        _log.info("child_started", child=name, child_pid=process.pid)
        return child

    def send_signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self, number: int, timeout_s: float) -> None:
        """Send a signal, and kill it if it has not ended in time."""
        self.send_signal(number)
        await asyncio.wait({self.ended}, timeout=timeout_s)
        self.send_signal(signal.SIGKILL)
        await asyncio.wait({self.ended})

    async def _live(self) -> int:
        silent = asyncio.create_task(self._monitor.until_silent())
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({silent, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                _log.error("child_silent", child=self.name, child_pid=self.pid, serving=self.serving.is_set())
                self.send_signal(signal.SIGKILL)
            return await ended
        finally:
            self.send_signal(signal.SIGKILL)
            silent.cancel()
            self._monitor.close()
