"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota_file: Path = _CGROUP_QUOTA) -> int:
    """The cores that the process may run on, or its container's share of CPU time where that is less; at least 1.

    More threads than that wait for one another: a container limited to 2 of a host's 64 cores would run 64 threads, most of them stopped.

    Args:
        quota_file: the cgroup's `cpu.max` (Linux, Documentation/admin-guide/cgroup-v2.rst): microseconds of CPU time in a period of
            microseconds, or `max`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, _, period = quota_file.read_text().partition(" ")
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup of version 2, or no limit
        return cores
