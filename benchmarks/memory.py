"""What the processes of a real service hold after many requests: an API worker after 10,000, the engine over 50,000.

    python -m benchmarks.memory [--requests 50000]

The worker serves the small JPEG with the model stubbed. The engine runs a small real network (ShuffleNet), with the decoder stubbed so that
it does not take an hour.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contenders import Contender, Model, start_lensgate
from benchmarks.grid import measure, write_request
from benchmarks.targets import Target
from benchmarks.weights import random_weights

WORKER_REQUESTS = 10_000
ENGINE_REQUESTS = 50_000
_CONNECTIONS = 16
_REST_S = 5.0
_SAMPLE_S = 0.05
_TENTHS = 10


def worker_memory(folder: Path, requests: int) -> dict[str, float]:
    """An API worker's resident memory, in MiB, after `requests` and a rest."""
    contender = start_lensgate(folder / "memory" / "worker", "model", None)
    try:
        before_mib = max(_rss_mib(one) for one in _children(contender, "api.worker_process"))
        _send(contender, write_request(contender, "raw", "small", folder), requests)
        time.sleep(_REST_S)
        after_mib = max(_rss_mib(one) for one in _children(contender, "api.worker_process"))
    finally:
        contender.tree.stop()
    return {"requests": requests, "before_mib": before_mib, "after_mib": after_mib}


def engine_memory(folder: Path, requests: int) -> dict[str, Any]:
    """The engine's resident memory, in MiB, as the mean over each tenth of `requests`."""
    model = Model(random_weights("shufflenet_v2_x0_5", folder), name="shufflenet_v2_x0_5", precision="fp32")
    contender = start_lensgate(folder / "memory" / "engine", "decode", model, extra={"LENSGATE_INFERENCE__COMPILE": "off"})
    try:
        engine = _children(contender, "api.engine_process")[0]
        request = write_request(contender, "raw", "small", folder)
        tenths_mib = [_mean_during(engine, contender, request, requests // _TENTHS) for _ in range(_TENTHS)]
    finally:
        contender.tree.stop()
    return {"requests": requests, "tenths_mib": tenths_mib, "growth": tenths_mib[-1] / tenths_mib[0] - 1}


def memory_targets(worker: dict[str, float], engine: dict[str, Any]) -> list[Target]:
    """The claims of issue 4 about memory."""
    return [
        Target(f"MB of an API worker after {worker['requests']:,} requests", worker["after_mib"] * 2**20 / 1e6, 150.0, at_least=False),
        Target(f"growth of the engine over {engine['requests']:,} requests, %", engine["growth"] * 100, 2.0, at_least=False),
    ]


def _mean_during(engine: psutil.Process, contender: Contender, request: Path, requests: int) -> float:
    samples_mib: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            samples_mib.append(_rss_mib(engine))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        _send(contender, request, requests)
    finally:
        done.set()
        sampler.join()
    return statistics.fmean(samples_mib or [_rss_mib(engine)])


def _send(contender: Contender, request: Path, requests: int) -> None:
    result = measure(contender, request, _CONNECTIONS, 1.0, requests=requests)
    if result.errors:
        raise RuntimeError(f"{result.errors} errors: {result.first_error}\n{contender.tree.log_tail()}")


def _children(contender: Contender, module: str) -> Sequence[psutil.Process]:
    return [process for process in contender.tree.processes() if module in process.cmdline()]


def _rss_mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--requests", type=int, default=ENGINE_REQUESTS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(exist_ok=True)
    print(worker_memory(folder, options.requests // 5))
    print(engine_memory(folder, options.requests))


if __name__ == "__main__":
    main()
