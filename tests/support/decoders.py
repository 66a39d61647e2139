"""Decoder processes, seen from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import psutil

DECODER = "inference.decoding.process"


def decoders_of(parent: psutil.Process) -> list[psutil.Process]:
    """The decoders of a worker, or of a test that has a pool of its own."""
    found = []
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if DECODER in child.cmdline():
                found.append(child)
    return found


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """The CPU time that they have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)
