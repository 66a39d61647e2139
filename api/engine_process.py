"""The entry point of an engine process (`python -m api.engine_process engine-0`): the engine itself is `inference.worker`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import structlog
import uvloop

from api.child_config import read_config, when_supervisor_dies
from api.children import EXIT_CONFIGURATION
from api.log import configure_logging
from api.log_writer import LAST_WORDS_S, standard_output
from api.metric_files import log_drops, remove_metric_files, share_metrics
from api.pulse import Pulse
from inference.errors import ModelLoadError
from inference.gpus import Gpu
from inference.settings import InferenceSettings
from inference.worker.metrics import EngineMetrics
from inference.worker.process import serve


async def _run(config: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    metrics_dir = share_metrics(config["metrics_dir"], config["name"], planned=config["planned"])

    def end() -> None:
        remove_metric_files(metrics_dir)
        loop.call_soon_threadsafe(stop.set)

    when_supervisor_dies(end)
    standard_output().on_drops(count=log_drops().inc)
    metrics = EngineMetrics(config["name"])
    pulse = Pulse(config["pulse"])
    candidates = [InferenceSettings.model_validate(values) for values in config["candidates"]]
    gpu = None if config["gpu"] is None else Gpu(**config["gpu"])
    if gpu is not None:
        gpu.make_the_only_one()
    await serve(
        candidates,
        Path(config["socket"]),
        connect_timeout_s=config["connect_timeout_s"],
        stop=stop,
        metrics=metrics,
        on_alive=lambda ready: pulse.beat(serving=ready),
        gpu_number=None if gpu is None else gpu.number,
    )


def main() -> None:
    """Serve until SIGTERM or the supervisor's end; exit code 78 when the model cannot be served as configured."""
    config = read_config()
    configure_logging(config["log"]["level"], config["log"]["format"], process=config["name"])
    # torch makes this folder as soon as it is loaded; here it goes with the process.
    cache_dir = Path(config["socket"]).with_suffix(".inductor")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir)
    # How long torch's threads look for one another before they sleep: some 20 µs. GNU OpenMP's own default is milliseconds, and as soon as
    # anything else wants a core, the looking keeps it from the very thread that is waited for (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    code = 0
    try:
        uvloop.run(_run(config))
    except ModelLoadError as error:
        structlog.get_logger().error("start_failed", reason=str(error))
        sys.stderr.write(f"lensgate: error: {error}\n")
        code = EXIT_CONFIGURATION
    except Exception:  # noqa: BLE001  logged in our form; the supervisor starts another engine
        structlog.get_logger().exception("engine_failed")
        code = 1
    shutil.rmtree(cache_dir, ignore_errors=True)
    standard_output().drain(LAST_WORDS_S)
    sys.stderr.flush()
    # The device thread may be deep in a forward pass or a download, where an ordinary exit would wait or crash.
    os._exit(code)


if __name__ == "__main__":
    main()
