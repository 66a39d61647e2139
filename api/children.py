"""Keeps one child of the supervisor running: started again when it dies, renewed when that is asked for, given up when it is no use."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from api.child_process import ChildProcess

EXIT_CONFIGURATION: Final = 78
"""`EX_CONFIG` of sysexits.h: the child cannot work as configured and has said why; starting it again would not help."""

_BACK_OFF_MIN_S: Final = 0.1
_BACK_OFF_MAX_S: Final = 5.0
_MAX_DEATHS: Final = 10
_DEATHS_WINDOW_S: Final = 3600.0
"""A child that dies so often within so long is no use to anybody; whoever keeps the service itself running shall hear of it."""

_log: Final = structlog.get_logger()


class ChildGaveUp(Exception):
    """A child cannot be kept running. `configured_badly` is True when it has already said why on standard error."""

    def __init__(self, message: str, *, configured_badly: bool) -> None:
        super().__init__(message)
        self.configured_badly = configured_badly


class Child:
    """Keeps one process running.

    Args:
        name: for the log and the metrics: `engine-0`, `api-1`.
        module: run as `python -m module name`.
        config: JSON values.
        stuck_after_s: once it serves, for how long it may be silent before it is killed.
        pass_fds: file descriptors that it inherits under their own numbers.
        output: a file descriptor for standard output and error; inherited when None.
        on_start: called with the pid at every start.
        on_end: called with the name after every end.
    """

    def __init__(
        self,
        name: str,
        module: str,
        config: Mapping[str, Any],
        *,
        stuck_after_s: float,
        pass_fds: Sequence[int] = (),
        output: int | None = None,
        on_start: Callable[[int], None] = lambda _: None,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self._module = module
        self._config = config
        self._stuck_after_s = stuck_after_s
        self._pass_fds = pass_fds
        self._output = output
        self._on_start = on_start
        self._on_end = on_end
        self._current: ChildProcess | None = None
        self._living: set[ChildProcess] = set()
        """More than one while it is renewed."""
        self._deaths_s: deque[float] = deque(maxlen=_MAX_DEATHS)
        self._stop = asyncio.Event()
        self._naming = asyncio.Lock()
        """While one is started, or takes another's place: no two processes ever have one name."""

    async def keep(self) -> None:
        """Run the process, and run it again when it dies, until `stop`.

        Raises:
            ChildGaveUp: it is configured badly, or died too often.
        """
        try:
            while not self._stop.is_set():
                async with self._naming:
                    process = self._current = self._current or await self._start(self.name)
                await asyncio.wait({process.ended})
                if process is self._current and not self._stop.is_set():
                    self._current = None
                    await self._pause(process.ended.result())
            while self._living:
                await asyncio.wait({process.ended for process in self._living})
        finally:
            for process in self._living:
                process.ended.cancel()

    async def renew(self, name: str, *, grace_s: float) -> bool:
        """Start another process under another name; as soon as it serves, end the former one in order, with SIGHUP.

        Args:
            name: of the new one. It is the child's name from then on, and the former one is free.
            grace_s: how long the former one may take to end.

        Returns:
            False when the new one ended before it served. The former one then goes on.
        """
        try:
            async with self._naming:
                fresh = await self._start(name, planned=True)
        except OSError:
            _log.exception("child_not_renewed", child=self.name)
            return False
        serving = asyncio.create_task(fresh.serving.wait())
        await asyncio.wait({serving, fresh.ended}, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if fresh.ended.done():
            _log.error("child_not_renewed", child=self.name, exit_code=fresh.ended.result())
            return False
        async with self._naming:
            former, self._current, self.name = self._current, fresh, name
        if former is not None:
            await former.end(signal.SIGHUP, grace_s)
            _log.info("child_renewed", child=name, former=former.name)
        return True

    async def _start(self, name: str, *, planned: bool = False) -> ChildProcess:
        process = await ChildProcess.start(
            name,
            self._module,
            {**self._config, "planned": planned},
            pass_fds=self._pass_fds,
            output=self._output,
            stuck_after_s=self._stuck_after_s,
        )
        self._living.add(process)
        process.ended.add_done_callback(lambda _: self._ended(process))
        if self._stop.is_set():
            process.send_signal(signal.SIGKILL)
        self._on_start(process.pid)
        return process

    def _ended(self, process: ChildProcess) -> None:
        self._living.discard(process)
        self._on_end(process.name)

    async def _pause(self, code: int) -> None:
        """What follows a death that nobody asked for."""
        if code == EXIT_CONFIGURATION:
            raise ChildGaveUp(f"{self.name} cannot start", configured_badly=True)
        now_s = time.monotonic()
        self._deaths_s.append(now_s)
        recent = sum(now_s - death_s < _DEATHS_WINDOW_S for death_s in self._deaths_s)
        if recent >= _MAX_DEATHS:
            minutes = math.ceil((now_s - self._deaths_s[0]) / 60)
            raise ChildGaveUp(f"{self.name} died {recent} times in {minutes} minutes", configured_badly=False)
        pause_s = min(_BACK_OFF_MAX_S, _BACK_OFF_MIN_S * 2 ** (recent - 1))
        _log.error("child_died", child=self.name, exit_code=code, restart_in_s=pause_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), pause_s)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Do not start it again; send a signal to whatever of it runs."""
        self._stop.set()
        for process in self._living:
            process.send_signal(number)
