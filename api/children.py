"""One child process of the supervisor: started, handed its configuration, and started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

EXIT_CONFIGURATION: Final = 78
"""`EX_CONFIG` of sysexits.h: the child cannot work as configured and has said why; starting it again would not help."""

_BACK_OFF_MIN_S: Final = 0.1
_BACK_OFF_MAX_S: Final = 5.0
_STEADY_S: Final = 30.0
"""A child that lived this long was healthy: its next death is the first again."""
_MAX_RAPID_DEATHS: Final = 10

_log: Final = structlog.get_logger()


class ChildGaveUp(Exception):
    """A child cannot be kept running. `configured_badly` is True when it has already said why on standard error."""

    def __init__(self, message: str, *, configured_badly: bool) -> None:
        super().__init__(message)
        self.configured_badly = configured_badly


class Child:
    """Keeps one process running.

    The first line of its standard input is its configuration, as JSON: secrets in it never stand in a command line or an
    environment. The pipe then stays open, so that its end tells the child that the supervisor has died.

    Args:
        name: for the log: `engine-0`, `api-1`.
        module: run as `python -m module`.
        config: JSON values.
        pass_fds: file descriptors that it inherits under their own numbers.
        output: a file descriptor for standard output and error; inherited when None.
        on_start: called with the pid at every start.
        on_end: called after every end.
    """

    def __init__(
        self,
        name: str,
        module: str,
        config: Mapping[str, Any],
        *,
        pass_fds: Sequence[int] = (),
        output: int | None = None,
        on_start: Callable[[int], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._module = module
        self._config = json.dumps(config).encode() + b"\n"
        self._pass_fds = tuple(pass_fds)
        self._output = output
        self._on_start = on_start
        self._on_end = on_end
        self._process: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()

    async def keep(self) -> None:
        """Run the process, and run it again when it dies, until `stop`.

        Raises:
            ChildGaveUp: it is configured badly, or died too often in a row.
        """
        rapid_deaths = 0
        while not self._stop.is_set():
            started_s = time.monotonic()
            code = await self._run_once()
            if self._stop.is_set():
                return
            if code == EXIT_CONFIGURATION:
                raise ChildGaveUp(f"{self.name} cannot start", configured_badly=True)
            rapid_deaths = 1 if time.monotonic() - started_s > _STEADY_S else rapid_deaths + 1
            if rapid_deaths >= _MAX_RAPID_DEATHS:
                raise ChildGaveUp(f"{self.name} died {rapid_deaths} times in a row", configured_badly=False)
            pause_s = min(_BACK_OFF_MAX_S, _BACK_OFF_MIN_S * 2 ** (rapid_deaths - 1))
            _log.error("child_died", child=self.name, exit_code=code, restart_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)

    async def _run_once(self) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            pass_fds=self._pass_fds,
            # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which then ends everything in order.
            start_new_session=True,
        )
        self._process = process
        try:
            if self._stop.is_set():
                process.kill()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died already: `wait` tells how
                process.stdin.write(self._config)
                await process.stdin.drain()
            if self._on_start is not None:
                self._on_start(process.pid)
            _log.info("child_started", child=self.name, child_pid=process.pid)
            return await process.wait()
        finally:
            self._process = None
            if process.returncode is None:
                process.kill()
            if self._on_end is not None:
                self._on_end()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Do not start it again; send it a signal if it runs."""
        self._stop.set()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
