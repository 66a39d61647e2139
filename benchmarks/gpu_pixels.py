"""Hands pixels to a running engine, as an API worker does, a number of them at any time; prints JSON.

python -m benchmarks.gpu_pixels engine.sock --in-flight 128 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import uvloop

from inference.process_engine import ProcessEngine

_DIFFERENT_PICTURES = 32


async def _measure(socket: Path, in_flight: int, seconds: float, ready_timeout_s: float) -> dict[str, float]:
    engine = ProcessEngine([socket], max_pending=in_flight)
    engine.start()
    async with asyncio.timeout(ready_timeout_s):
        while not engine.status().ready:  # noqa: ASYNC110  the status comes from another process
            await asyncio.sleep(0.02)
    side = engine.status().models[0].preprocessing.crop_px
    pictures = list(np.random.default_rng(0).integers(0, 256, (_DIFFERENT_PICTURES, side, side, 3), dtype=np.uint8))
    took_s: list[float] = []
    counting_from_s = time.perf_counter() + seconds / 3
    until_s = counting_from_s + seconds

    async def caller(number: int) -> None:
        turn = number
        while (began_s := time.perf_counter()) < until_s:
            turn += 1
            await engine.predict(pictures[turn % _DIFFERENT_PICTURES], top_k=5, timeout_s=60, client="benchmark")
            now_s = time.perf_counter()
            if counting_from_s <= now_s < until_s:
                took_s.append(now_s - began_s)

    cpu_s = time.process_time()
    await asyncio.gather(*(caller(number) for number in range(in_flight)))
    cpu_s = time.process_time() - cpu_s
    await engine.aclose()
    return {
        "images_per_s": len(took_s) / seconds,
        "p50_ms": statistics.median(took_s) * 1e3 if took_s else 0.0,
        "cores": cpu_s / (seconds * 4 / 3),
    }


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ready-timeout-s", type=float, default=120.0)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(uvloop.run(_measure(options.socket, options.in_flight, options.seconds, options.ready_timeout_s))) + "\n")


if __name__ == "__main__":
    main()
