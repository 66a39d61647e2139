"""Decoding alone, by Lensgate's own decoder, in a process without a server: how many pictures the cores can decode at all.

Reads `{"picture": "small.jpg", "seconds": 1.0}` line by line and answers images a second, by a thread and by a process for each core,
and the median of a single one.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from inference.allocator import keep_a_picture
from inference.image import decode
from inference.types import Preprocessing

_CARD = Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear")
_MAX_PIXELS = 50_000_000


def main() -> None:
    """Answer until standard input ends."""
    keep_a_picture()  # as every decoder: without, a third of the time may go into page faults
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as threads, _processes(cores) as processes:
        for line in sys.stdin:
            question = json.loads(line)
            picture, seconds = Path(question["picture"]).read_bytes(), question["seconds"]
            answer = {
                "threads_per_s": _rate(threads, cores, picture, seconds),
                "processes_per_s": _rate(processes, cores, picture, seconds),
                "p50_ms": statistics.median(decode_for(picture, seconds / 2)) * 1e3,
            }
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def decode_for(picture: bytes, seconds: float) -> list[float]:
    """Decode the picture again and again; the seconds that each took."""
    took_s: list[float] = []
    while sum(took_s) < seconds:
        began_s = time.perf_counter()
        decode(picture, preprocessing=_CARD, max_pixels=_MAX_PIXELS)
        took_s.append(time.perf_counter() - began_s)
    return took_s


def _processes(cores: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=keep_a_picture)


def _rate(executor: Executor, cores: int, picture: bytes, seconds: float) -> float:
    list(executor.map(decode_for, [picture] * cores, [0.05] * cores))  # every thread and process is there
    runs = executor.map(decode_for, [picture] * cores, [seconds] * cores)
    return sum(len(took_s) / sum(took_s) for took_s in runs)


if __name__ == "__main__":
    main()
