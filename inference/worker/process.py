"""The engine process: load, warm up, serve until told to stop. One event loop reads the wire; one thread for each lane answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from inference.garbage import keep_what_exists
from inference.settings import InferenceSettings
from inference.types import EngineStatus
from inference.worker.batcher import Batcher
from inference.worker.metrics import EngineMetrics
from inference.worker.queue import FairQueue
from inference.worker.server import EngineServer
from inference.worker.watchdog import LOOK_EVERY_S, Watchdog

_log: Final = structlog.get_logger()


async def serve(
    candidates: Sequence[InferenceSettings],
    socket: Path,
    *,
    connect_timeout_s: float,
    stop: asyncio.Event,
    metrics: EngineMetrics,
    on_alive: Callable[[bool], None],
    gpu_number: int | None = None,
) -> None:
    """Run one engine until `stop` is set.

    Args:
        candidates: the model to serve. More than one only in the demo, which takes the first whose weights can be had.
        socket: where to listen.
        connect_timeout_s: how long a download may take to connect.
        stop: set from outside, on the loop's thread, to end.
        metrics: what is measured.
        on_alive: called every second with whether the engine is ready, for as long as the event loop runs and no lane is stuck.
        gpu_number: what the service calls the GPU that this process alone sees, and therefore calls 0.

    Raises:
        ModelLoadError: the model cannot be served as configured.
        InferenceFailed: the device does not compute as it did at warm-up.
        LaneStuck: a forward pass does not end.
    """
    loop = asyncio.get_running_loop()
    queue = FairQueue(candidates[0].queue_size)
    server = EngineServer(queue)
    server.listen(socket)
    failed: asyncio.Future[None] = loop.create_future()

    def fail(error: BaseException) -> None:
        if not failed.done():
            failed.set_exception(error)

    def start(name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  handed to the loop's thread, which raises it
                with contextlib.suppress(RuntimeError):  # the loop has closed: the engine is ending anyway
                    loop.call_soon_threadsafe(fail, error)

        # A daemon: a forward pass or a download cannot be interrupted, and must not keep a stopped engine alive.
        threading.Thread(target=guarded, name=name, daemon=True).start()

    looks: list[Callable[[], None]] = []
    """Done every second. Empty until the model is warm: whatever comes before may take minutes."""

    def load_and_run() -> None:
        batcher = _load(candidates, server, queue, connect_timeout_s, metrics, gpu_number)
        looks.append(Watchdog(batcher.passes, stuck_after_s=candidates[0].stuck_after_s).look)
        # Not at every change: with the model stubbed that was a fifth of what a picture costs this process.
        looks.append(lambda: metrics.queue_seen(len(queue), batcher.predicted_wait_s()))
        # At once: whoever holds it to be still starting is more patient.
        loop.call_soon_threadsafe(on_alive, True)
        for lane in range(1, batcher.lanes):
            start(f"lane-{lane}", partial(batcher.run, lane))
        batcher.run(0)

    start("lane-0", load_and_run)
    stopped, watched = asyncio.create_task(stop.wait()), asyncio.create_task(_watch(server, looks, on_alive))
    waits: set[asyncio.Future[Any]] = {stopped, watched, failed}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for cause in (failed, watched):
            if cause.done():
                cause.result()
    finally:
        stopped.cancel()
        watched.cancel()
        await server.aclose()
        socket.unlink(missing_ok=True)


async def _watch(server: EngineServer, looks: Sequence[Callable[[], None]], on_alive: Callable[[bool], None]) -> None:
    while True:
        for look in looks:
            look()
        on_alive(server.status.ready)
        await asyncio.sleep(LOOK_EVERY_S)


def _load(
    candidates: Sequence[InferenceSettings],
    server: EngineServer,
    queue: FairQueue,
    connect_timeout_s: float,
    metrics: EngineMetrics,
    gpu_number: int | None,
) -> Batcher:
    """Make the model ready and open the queue to the API workers."""
    began_s = time.monotonic()
    server.publish(EngineStatus(phase="loading", detail="Loading the model."))
    # Imported here: the socket is there, and says so, while torch takes its seconds to load.
    from inference.worker.device import pci_bus_id
    from inference.worker.gpu_metrics import GpuMetrics
    from inference.worker.preparation import prepare_model

    model = prepare_model(candidates, publish=server.publish, connect_timeout_s=connect_timeout_s)
    info = model.info
    bus_id = pci_bus_id(info.device)
    if bus_id is not None:
        GpuMetrics(bus_id).start()
        if gpu_number is not None:
            info = msgspec.structs.replace(info, device=f"cuda:{gpu_number}")
    metrics.model_ready(info)
    batcher = Batcher(queue, model, deliver=server.deliver, metrics=metrics, seconds_per_batch=model.seconds_per_full_batch())
    keep_what_exists()
    server.admit = batcher.admit
    server.publish(EngineStatus(phase="ready", models=(info,)))
    _log.info(
        "engine_ready",
        model=info.name,
        version=info.version,
        digest=info.digest,
        device=info.device,
        precision=info.precision,
        compiled=model.compiled,
        seconds=round(time.monotonic() - began_s, 3),
    )
    return batcher
