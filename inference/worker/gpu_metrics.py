"""What NVIDIA's management library (NVML) says of the GPU that an engine runs on, a few times a minute, on a thread of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pynvml
import structlog
from prometheus_client import CollectorRegistry, Gauge

_SAMPLE_EVERY_S: Final = 5.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class _Reading(NamedTuple):
    name: str
    help: str
    read: Callable[[Any], float]
    """Given NVML's handle of the GPU."""


_READINGS: Final = (
    _Reading(
        "lensgate_gpu_utilization_ratio",
        "The share of the time, 0 to 1, in which the GPU ran something, whoever started it.",
        lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    _Reading("lensgate_gpu_memory_used_bytes", "GPU memory in use, whoever uses it.", lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
    _Reading("lensgate_gpu_memory_total_bytes", "GPU memory there is.", lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).total),
    _Reading(
        "lensgate_gpu_temperature_celsius",
        "The temperature of the GPU's die.",
        lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
    ),
    _Reading("lensgate_gpu_power_watts", "The power that the GPU draws.", lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
)


class GpuMetrics:
    """The gauges of one GPU. One that the GPU or its driver does not know is left out.

    Args:
        pci_bus_id: such as `00000000:3B:00.0`: CUDA's own numbers are counted within CUDA_VISIBLE_DEVICES, and NVML knows nothing of that.
        registry: only to list the metrics.
    """

    def __init__(self, pci_bus_id: str, registry: CollectorRegistry | None = None) -> None:
        self._pci_bus_id = pci_bus_id
        # Two engines on one GPU read the same: the sum of both would be wrong.
        self._all = [
            (reading, Gauge(reading.name, reading.help, ["gpu", "uuid"], multiprocess_mode="max", registry=registry))
            for reading in _READINGS
        ]
        self._known: list[tuple[_Reading, Gauge]] = []
        self._gpu: Any = None
        self._lost = False

    def start(self) -> None:
        """Sample until the process ends, on a thread of its own: NVML may take its time."""
        threading.Thread(target=self._run, name="gpu metrics", daemon=True).start()

    def _run(self) -> None:
        if self.find():
            while True:
                self.sample()
                time.sleep(_SAMPLE_EVERY_S)

    def find(self) -> bool:
        """Find the GPU, and what it knows. Where there is no NVML, or it knows no such GPU, the log says so: there are no gauges then."""
        try:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByPciBusId(self._pci_bus_id)
            labels = (pynvml.nvmlDeviceGetIndex(self._gpu), pynvml.nvmlDeviceGetUUID(self._gpu))
        except pynvml.NVMLError as error:
            _log.warning("gpu_metrics_unavailable", pci_bus_id=self._pci_bus_id, reason=str(error))
            return False
        self._known = [(reading, gauge.labels(*labels)) for reading, gauge in self._all if self._knows(reading)]
        return True

    def _knows(self, reading: _Reading) -> bool:
        try:
            reading.read(self._gpu)
        except pynvml.NVMLError:
            return False
        return True

    def sample(self) -> None:
        """Read everything once."""
        try:
            for reading, gauge in self._known:
                gauge.set(reading.read(self._gpu))
            self._lost = False
        except pynvml.NVMLError as error:
            # A GPU that has fallen off the bus, for one: its last temperature must not stand there for good.
            for _, gauge in self._known:
                gauge.set(math.nan)
            if not self._lost:
                _log.error("gpu_metrics_lost", pci_bus_id=self._pci_bus_id, reason=str(error))
            self._lost = True
