"""The engine process: load, warm up, serve until told to stop. One event loop for the wire, one thread for the device."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from inference.errors import ModelLoadError
from inference.settings import InferenceSettings
from inference.types import EngineStatus
from inference.worker.batcher import Batcher
from inference.worker.metrics import EngineMetrics
from inference.worker.queue import FairQueue
from inference.worker.server import EngineServer

_log: Final = structlog.get_logger()

_PROGRESS_EVERY_S: Final = 0.5
_LOG_PROGRESS_EVERY_S: Final = 10.0


async def serve(
    candidates: Sequence[InferenceSettings], socket: Path, *, connect_timeout_s: float, stop: asyncio.Event, metrics: EngineMetrics
) -> None:
    """Run one engine until `stop` is set.

    Args:
        candidates: the model to serve. More than one only in the demo, which takes the first whose weights can be had.
        socket: where to listen.
        connect_timeout_s: how long a download may take to connect.
        stop: set from outside, on the loop's thread, to end.
        metrics: what is measured.

    Raises:
        ModelLoadError: the model cannot be served as configured.
    """
    loop = asyncio.get_running_loop()
    queue = FairQueue(candidates[0].queue_size)
    server = EngineServer(queue)
    await server.listen(socket)
    failed: asyncio.Future[None] = loop.create_future()

    def work() -> None:
        try:
            _load_and_run(candidates, server, queue, connect_timeout_s, metrics)
        except BaseException as error:  # noqa: BLE001  handed to the loop's thread, which raises it
            loop.call_soon_threadsafe(failed.set_exception, error)

    # A daemon: a forward pass or a download cannot be interrupted, and must not keep a stopped engine alive.
    device_thread = threading.Thread(target=work, name="device", daemon=True)
    device_thread.start()
    stopped = asyncio.create_task(stop.wait())
    waits: set[asyncio.Future[Any]] = {stopped, failed}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
    finally:
        stopped.cancel()
        await server.aclose()
        socket.unlink(missing_ok=True)


def _load_and_run(
    candidates: Sequence[InferenceSettings], server: EngineServer, queue: FairQueue, connect_timeout_s: float, metrics: EngineMetrics
) -> None:
    server.publish(EngineStatus(phase="loading", detail="Loading the model."))
    # Imported here: the socket is there, and says so, while torch takes its seconds to load.
    from inference.worker.device import pci_bus_id
    from inference.worker.gpu_metrics import GpuMetrics
    from inference.worker.model import DeviceModel
    from inference.worker.weights import LoadedWeights, load_weights

    def first_available() -> tuple[LoadedWeights, InferenceSettings]:
        for settings in candidates[:-1]:
            try:
                return load_weights(settings, progress=_Progress(server), connect_timeout_s=connect_timeout_s), settings
            except ModelLoadError as error:
                _log.warning("weights_unavailable", model=settings.model, weights=settings.weights, reason=str(error))
        last = candidates[-1]
        return load_weights(last, progress=_Progress(server), connect_timeout_s=connect_timeout_s), last

    started_s = time.monotonic()
    loaded, settings = first_available()
    model = DeviceModel(loaded, settings)
    del loaded
    server.publish(EngineStatus(phase="warming", detail="Warming up the model."))
    model.warm_up()
    side = model.info.preprocessing.crop_px
    blank = [np.zeros((side, side, 3), np.uint8)] * model.max_batch
    paced_from_s = time.monotonic()
    model.infer(blank)
    metrics.model_ready(model.info)
    bus_id = pci_bus_id(model.info.device)
    if bus_id is not None:
        GpuMetrics(bus_id).start()
    batcher = Batcher(queue, model, deliver=server.deliver, metrics=metrics, seconds_per_batch=time.monotonic() - paced_from_s)
    server.admit = batcher.admit
    server.publish(EngineStatus(phase="ready", models=(model.info,)))
    _log.info(
        "engine_ready",
        model=model.info.name,
        version=model.info.version,
        digest=model.info.digest,
        device=model.info.device,
        precision=model.info.precision,
        seconds=round(time.monotonic() - started_s, 3),
    )
    batcher.run()


class _Progress:
    """Publishes a download's progress, a few times a second at most."""

    def __init__(self, server: EngineServer) -> None:
        self._server = server
        self._next_s = 0.0
        self._next_log_s = 0.0

    def __call__(self, received_bytes: int, total_bytes: int | None) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _PROGRESS_EVERY_S
        done = f"{received_bytes * 100 // total_bytes} %" if total_bytes else f"{received_bytes // 1_000_000} MB"
        self._server.publish(EngineStatus(phase="downloading", detail=f"Downloading the weights: {done}."))
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + _LOG_PROGRESS_EVERY_S
            _log.info("weights_downloading", received_bytes=received_bytes, total_bytes=total_bytes)
