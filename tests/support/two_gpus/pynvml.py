"""NVML on a machine with two GPUs, for services on a machine without one: their engines find no driver, and run on the CPU.

Put into every process that has its folder on PYTHONPATH.
"""

from __future__ import annotations


class NVMLError(Exception):
    """As NVML's."""


def nvmlInit() -> None:  # noqa: N802  as NVML's, like those below
    """Nothing to prepare."""


def nvmlShutdown() -> None:  # noqa: N802
    """Nothing to give back."""


def nvmlDeviceGetCount() -> int:  # noqa: N802
    """Two."""
    return 2


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    """A handle is the index."""
    return index


def nvmlDeviceGetUUID(gpu: int) -> str:  # noqa: N802
    """Tells them apart."""
    return f"GPU-{gpu}"
