"""`lensgate serve`: engines and API workers, started at once, kept running, renewed, and ended in order."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from api.children import Child, ChildGaveUp
from api.connection_counts import ConnectionCounts
from api.metric_files import forget_gauges, make_metric_files, remove_metric_files
from api.settings import ConfigurationError, Settings
from api.tls import check_tls
from api.worker_memory import make_connection_memory, make_limit_memory
from inference.gpus import Gpu, gpus_for_engines
from inference.settings import InferenceSettings

_ENGINE_STOP_S: Final = 2.0
"""What is kept of the grace period for the engine to end, after the API workers have."""
_UNIX_PATH_MAX_BYTES: Final = 100
"""`sun_path` holds 108 bytes on Linux and 104 on macOS."""

_log: Final = structlog.get_logger()


class Supervisor:
    """Runs one service.

    Args:
        settings: what the children get.
        listener: the bound socket that the API workers share.
        candidates: the models for the engine; the settings' own one, but in the demo.
        connect_timeout_s: how long a weights download may take to connect.
        output: a file descriptor for the children's output; their log goes to ours when None.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        *,
        candidates: Sequence[InferenceSettings] = (),
        connect_timeout_s: float = 10.0,
        output: int | None = None,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._candidates = tuple(candidates) or (settings.inference,)
        self._connect_timeout_s = connect_timeout_s
        self._output = output
        self._on_terminal = os.isatty(0)
        self._renewal_requested = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._kill_requested = asyncio.Event()

    def request_stop(self) -> None:
        """End in order; asked a second time, end at once."""
        if self._stop_requested.is_set():
            self._kill_requested.set()
        self._stop_requested.set()

    def request_renewal(self) -> None:
        """Replace the API workers one after another, without losing a request. For one that was started in a terminal it means its end."""
        if self._on_terminal:
            self.request_stop()  # the terminal has been closed
        else:
            self._renewal_requested.set()

    async def run(self) -> None:
        """Serve until `request_stop`, SIGTERM or SIGINT. SIGHUP is `request_renewal`.

        Raises:
            ChildGaveUp: a child could not be kept running; everything else has been ended.
        """
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.request_stop, signal.SIGINT: self.request_stop, signal.SIGHUP: self.request_renewal}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        _log.info("listening", url=self._settings.url, workers=self._settings.http.workers, model=self._settings.inference.model)
        # One more name than there are workers: whoever is renewed lives beside its successor for a while, and each counts for itself.
        *worker_names, spare_name = names = [f"api-{index}" for index in range(self._settings.http.workers + 1)]
        limits = make_limit_memory(len(names))
        connections = make_connection_memory(len(names))
        gpus = await self._gpus()
        runtime_dir = _make_runtime_dir()
        engine_configs = [self._engine_config(runtime_dir, index, gpu) for index, gpu in enumerate(gpus)]
        engine_names = [f"engine-{index}" for index in range(len(engine_configs))]
        worker_config = self._worker_config([config["socket"] for config in engine_configs], names, limits, connections)
        counts = ConnectionCounts(connections)
        metrics_dir = make_metric_files([*engine_names, *names])
        engines = [
            self._child(name, "api.engine_process", config, metrics_dir) for name, config in zip(engine_names, engine_configs, strict=True)
        ]
        inherited = (self._listener.fileno(), limits, connections)
        workers = [
            self._child(name, "api.worker_process", worker_config, metrics_dir, inherited, lambda name: counts.close(names.index(name)))
            for name in worker_names
        ]
        keepers = {child: asyncio.create_task(child.keep(), name=child.name) for child in (*engines, *workers)}
        stop = asyncio.create_task(self._stop_requested.wait())
        renewal = asyncio.create_task(self._renew(workers, spare_name))
        try:
            stop_cause = await self._until_the_end(stop, set(keepers.values()), {keepers[engine] for engine in engines})
            renewal.cancel()
            _log.info("stopping", grace_s=self._settings.http.grace_s, reason="requested" if stop_cause is None else str(stop_cause))
            await self._end(engines, workers, keepers)
            if stop_cause is not None:
                raise stop_cause
        finally:
            for task in (stop, renewal, *keepers.values()):
                task.cancel()
            await asyncio.gather(renewal, *keepers.values(), return_exceptions=True)
            os.close(limits)
            os.close(connections)
            shutil.rmtree(runtime_dir, ignore_errors=True)
            remove_metric_files(metrics_dir)
            for number in handlers:
                loop.remove_signal_handler(number)

    async def _renew(self, workers: Sequence[Child], spare_name: str) -> None:
        while True:
            await self._renewal_requested.wait()
            self._renewal_requested.clear()
            try:
                await asyncio.to_thread(check_tls, self._settings.http)
            except ConfigurationError as error:
                _log.error("workers_not_renewed", reason=str(error), effect="the old certificate stays in use")
                continue
            for worker in workers:
                former_name = worker.name
                if not await worker.renew(spare_name, grace_s=self._settings.http.grace_s):
                    break  # the others would fare no better, and this one still serves
                spare_name = former_name
            else:
                _log.info("workers_renewed")

    async def _gpus(self) -> Sequence[Gpu | None]:
        # In the demo there are several candidates, and two engines might settle on different ones.
        if len(self._candidates) > 1:
            return (None,)
        # In a thread: a driver may take a second for each GPU to say what it is.
        return await asyncio.to_thread(gpus_for_engines, self._candidates[0].device)

    async def _until_the_end(
        self, stop: asyncio.Task[Any], keepers: set[asyncio.Task[None]], engines: set[asyncio.Task[None]]
    ) -> BaseException | None:
        """Wait until the service has to end; return why, if nobody asked for it. An engine that is given up ends it if it was the last."""
        running = set(keepers)
        while True:
            await asyncio.wait({stop, *running}, return_when=asyncio.FIRST_COMPLETED)
            ended = {task for task in running if task.done()}
            causes = [task.exception() for task in ended]
            running -= ended
            others_serve = bool(engines & running) and ended <= engines
            if stop.done() or not others_serve or any(not isinstance(cause, ChildGaveUp) or cause.configured_badly for cause in causes):
                return next(iter(causes), None)
            for cause in causes:
                _log.error("engine_given_up", reason=str(cause), engines_left=len(engines & running))

    def _child(
        self,
        name: str,
        module: str,
        config: Mapping[str, Any],
        metrics_dir: Path | None,
        pass_fds: Sequence[int] = (),
        on_end: Callable[[str], None] = lambda _: None,
    ) -> Child:
        def end(name: str) -> None:
            on_end(name)
            if metrics_dir is not None:
                forget_gauges(metrics_dir, name)

        return Child(
            name,
            module,
            {**config, "metrics_dir": None if metrics_dir is None else str(metrics_dir)},
            stuck_after_s=self._settings.inference.stuck_after_s,
            pass_fds=pass_fds,
            output=self._output,
            on_end=end,
        )

    def _engine_config(self, runtime_dir: Path, index: int, gpu: Gpu | None) -> dict[str, Any]:
        return {
            "candidates": [candidate.model_dump(mode="json") for candidate in self._candidates],
            "gpu": None if gpu is None else gpu._asdict(),
            "socket": str(runtime_dir / f"engine-{index}.sock"),
            "connect_timeout_s": self._connect_timeout_s,
            "log": self._settings.log.model_dump(mode="json"),
        }

    def _worker_config(self, engine_sockets: Sequence[str], names: Sequence[str], limits: int, connections: int) -> dict[str, Any]:
        return {
            "settings": self._settings.dump(),
            "listener": self._listener.fileno(),
            "workers": names,
            "limits": limits,
            "connections": connections,
            "engines": engine_sockets,
        }

    async def _end(self, engines: Sequence[Child], workers: Sequence[Child], keepers: Mapping[Child, asyncio.Task[None]]) -> None:
        # Ours is the last copy: once the workers have closed theirs, the kernel refuses new connections by itself.
        self._listener.close()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._settings.http.grace_s
        for group, until_s in ((workers, deadline_s - _ENGINE_STOP_S), (engines, deadline_s)):
            for child in group:
                child.stop()
            await self._wait([keepers[child] for child in group], until_s - loop.time())
        for child in (*workers, *engines):
            child.stop(signal.SIGKILL)
        await asyncio.wait(keepers.values())
        _log.info("stopped")

    async def _wait(self, waiting: Sequence[asyncio.Task[None]], timeout_s: float) -> None:
        kill = asyncio.create_task(self._kill_requested.wait())
        waits: set[asyncio.Future[Any]] = {kill, asyncio.gather(*waiting, return_exceptions=True)}
        try:
            await asyncio.wait(waits, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
        finally:
            kill.cancel()


def _make_runtime_dir() -> Path:
    # mkdtemp makes it 0700: nobody else on the machine can reach the engine.
    path = tempfile.mkdtemp(prefix="lensgate-")
    if len(os.fsencode(path)) > _UNIX_PATH_MAX_BYTES - len("/engine-00.sock"):
        Path(path).rmdir()
        path = tempfile.mkdtemp(prefix="lensgate-", dir="/tmp")  # nosec B108  a unix socket needs a short path; mkdtemp is safe there
    return Path(path)
